"""Fields of vLLM's and SGLang's that would change what is generated or shown, and that this version does not have.

They are declared so that they are seen at all: a client that sends one learns so instead of missing what it asked for.
"""

from __future__ import annotations

from typing import Any

import msgspec

from frontend.http_errors import not_supported


class RefusedFields(msgspec.Struct, kw_only=True):
    """Refused unless they say nothing. Not among them: what only says where a request may run (data_parallel_rank, rid, session_id)."""

    prompt_embeds: Any = None
    input_ids: Any = None
    watermarking: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None
    lora_path: Any = None
    extra_key: Any = None
    no_stop_trim: Any = None
    logits_processors: Any = None
    custom_logit_processor: Any = None
    custom_params: Any = None
    session_params: Any = None
    vllm_xargs: Any = None
    separate_reasoning: Any = None
    stream_reasoning: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None
    routed_experts_prompt_start: Any = None
    return_sampling_mask: Any = None
    return_meta_info: Any = None
    return_cached_tokens_details: Any = None
    return_spec_tokens_details: Any = None
    return_weight_versions: Any = None
    return_token_offsets: Any = None
    return_mm_kwargs: Any = None

    def refuse(self) -> None:
        """Raise HttpError 400 naming the first of them that means something."""
        for name in RefusedFields.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value != NOTHING.get(name, False) and value != {}:
                hint = HINTS.get(name)
                raise not_supported(f"{name} is not supported by this version of quire" + (f"; {hint}" if hint else ""), name)


# What says nothing; for all others that is false.
NOTHING: dict[str, Any] = {"separate_reasoning": True, "stream_reasoning": True, "prompt_embeds": None, "input_ids": None}
HINTS = {
    "extra_key": "cache_salt keeps cached prompts apart",
    "no_stop_trim": "include_stop_str_in_output keeps a stop string",
    "input_ids": "a prompt of /v1/completions may be token ids",
    "return_meta_info": "usage tells of tokens, choices of why they ended",
}
