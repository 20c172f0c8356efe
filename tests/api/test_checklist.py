"""Every field of the clients' and the peers' APIs is honoured, refused by name, or ignored by the documented rule.

None is dropped in silence. Names as in OpenAI's and Anthropic's clients, vLLM 0.33 and SGLang 0.5.23. What honouring means is tested where
each field has its tests; here it means that the field is read.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from frontend.schemas.chat import ChatRequest
from frontend.schemas.completions import CompletionRequest
from frontend.schemas.messages import MessagesRequest
from frontend.schemas.refused import RefusedFields
from frontend.schemas.responses import ResponsesRequest
from tests.api.server import ApiServer

COMMON = """
model n temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty seed max_tokens min_tokens stop stop_token_ids
stop_regex ignore_eos include_stop_str_in_output skip_special_tokens logit_bias bad_words allowed_token_ids prompt_logprobs
logprob_token_ids stream stream_options response_format structured_outputs priority cache_salt request_id add_special_tokens
return_token_ids return_prompt_text return_tokens_as_token_ids truncate_prompt_tokens truncation_side stream_interval repetition_detection
thinking_token_budget use_beam_search length_penalty logprobs echo guided_json guided_regex guided_choice guided_grammar
guided_whitespace_pattern guided_decoding_backend structural_tag regex ebnf json_schema
"""
HONOURED: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/v1/completions": (CompletionRequest, COMMON + "prompt best_of suffix"),
    "/v1/chat/completions": (
        ChatRequest,
        COMMON
        + """messages
        max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls reasoning_effort include_reasoning
        documents         chat_template_kwargs add_generation_prompt continue_final_message modalities""",
    ),
    "/v1/responses": (
        ResponsesRequest,
        """model input instructions max_output_tokens metadata previous_response_id store stream background temperature top_p text reasoning
        stop_regex tools tool_choice parallel_tool_calls truncation include top_logprobs top_k min_p repetition_penalty presence_penalty
        frequency_penalty seed stop stop_token_ids ignore_eos logit_bias skip_special_tokens include_stop_str_in_output include_reasoning
        structured_outputs priority cache_salt chat_template_kwargs""",
    ),
    "/v1/messages": (
        MessagesRequest,
        """model messages max_tokens system stop_sequences stream temperature top_p top_k thinking tools tool_choice output_config
        cache_salt chat_template_kwargs""",
    ),
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
}
# A value that would mean something.
REFUSED: dict[str, dict[str, Any]] = {
    "/v1/completions": {},
    "/v1/chat/completions": {
        "functions": [{"name": "f"}],
        "function_call": "auto",
        "chat_template": "{{ 1 }}",
        "audio": {"voice": "x"},
        "web_search_options": {"a": 1},
        "modalities": ["audio"],
        "best_of": 2,
    },
    "/v1/responses": {
        "prompt": {"id": "x"},
        "conversation": "conv_1",
        "context_management": [{"type": "x"}],
        "previous_input_messages": [{}],
        "enable_response_messages": True,
        "tools": [{"type": "web_search"}],
    },
    "/v1/messages": {
        "container": "x",
        "mcp_servers": [{"url": "x"}],
        "context_management": {"edits": [{"type": "x"}]},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    },
}
IGNORED: dict[str, dict[str, Any]] = {
    "user": "u",
    "metadata": {"user_id": "b"},
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "auto", "ttl": "1h"},
    "prompt_cache_retention": "24h",
    "moderation": {"a": 1},
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "session_id": "s",
    "rid": "r",
    "data_parallel_rank": 0,
    "cache_control": {"type": "ephemeral"},
    "inference_geo": "eu",
    "no_such_field_yet": [1],
}


@pytest.mark.parametrize("path", HONOURED)
def test_what_is_honoured_is_read(path: str) -> None:
    shape, names = HONOURED[path]
    missing = set(names.split()) - set(shape.__struct_fields__)
    assert not missing
    assert not set(names.split()) & set(RefusedFields.__struct_fields__)


@pytest.mark.parametrize("path", BODIES)
def test_what_would_be_missed_is_refused(server: ApiServer, path: str) -> None:
    other = dict.fromkeys(RefusedFields.__struct_fields__, 1) | {"separate_reasoning": False, "stream_reasoning": False}
    for name, value in {**other, **REFUSED[path]}.items():
        status, answer = server.post(path, {**BODIES[path], name: value})
        assert status == 400, (name, answer)
        error = answer["error"]
        assert name in (error.get("param"), *error["message"].replace("[", " ").split()), answer


@pytest.mark.parametrize("path", BODIES)
def test_what_cannot_matter_is_ignored(server: ApiServer, path: str) -> None:
    status, answer = server.post(path, {**BODIES[path], **IGNORED})
    assert status == 200, answer


def test_what_says_nothing_is_no_reason_to_refuse(server: ApiServer) -> None:
    nothing = dict.fromkeys(RefusedFields.__struct_fields__, False) | {"vllm_xargs": {}, "custom_params": {}, "media_io_kwargs": {}}
    nothing |= {"separate_reasoning": True, "stream_reasoning": True, "prompt_embeds": None, "input_ids": None}
    for path, body in BODIES.items():
        assert server.post(path, {**body, **nothing})[0] == 200
