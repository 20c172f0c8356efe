"""What a caller may pass as prompts, brought to one shape: a list of texts or token-id lists, with one SamplingParams each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ipc.config import ModelInfo
from ipc.errors import InvalidRequestError
from ipc.sampling_params import SamplingParams

Prompt = str | list[int]
Prompts = str | Sequence[int] | Sequence[Prompt] | Sequence[str] | Sequence[Sequence[int]] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Message = Mapping[str, Any]


def as_list(prompts: Prompts) -> list[Prompt]:
    """One prompt or many as a list. A list of integers is one prompt; an empty list is no prompts.

    A mapping has 'prompt' (text) or 'prompt_token_ids', as in vLLM. Raises InvalidRequestError naming what it cannot read.
    """
    if isinstance(prompts, (str, Mapping)):
        return [one(prompts)]
    items = list(prompts)
    if items and all(_is_id(item) for item in items):
        return [one(items)]
    return [one(item) for item in items]


def one(prompt: Any) -> Prompt:
    """One prompt: text, token ids, or a mapping that holds either. Raises InvalidRequestError."""
    if isinstance(prompt, Mapping):
        inner = prompt.get("prompt_token_ids", prompt.get("prompt"))
        if inner is None or isinstance(inner, Mapping):
            raise InvalidRequestError("a prompt given as a mapping needs 'prompt' or 'prompt_token_ids'", "prompt")
        return one(inner)
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(_is_id(item) for item in prompt):
        return [int(item) for item in prompt]
    raise InvalidRequestError(f"a prompt is a text or a list of token ids, got {prompt!r:.60}", "prompt")


def conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[list[Message]]:
    """One conversation (a list of messages) or several, as several. Raises InvalidRequestError."""
    items: list[Any] = list(messages)
    if items and all(isinstance(item, Mapping) for item in items):
        return [items]
    if any(isinstance(item, (str, Mapping)) or not isinstance(item, Sequence) or not item for item in items):
        raise InvalidRequestError("messages must be a list of {'role', 'content'} objects, or a list of such lists", "messages")
    return [list(item) for item in items]


def params_for(count: int, params: SamplingParams | Sequence[SamplingParams] | None, default: SamplingParams) -> list[SamplingParams]:
    """One SamplingParams per prompt. Raises InvalidRequestError for what is none, and for a list of another length than the prompts."""
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * count
    given = list(params) if isinstance(params, Sequence) else [params]
    for each in given:
        if not isinstance(each, SamplingParams):
            raise InvalidRequestError(f"sampling_params must be a SamplingParams or a list of them, got {each!r:.60}", "sampling_params")
    if len(given) != count:
        raise InvalidRequestError(f"{len(given)} sampling_params for {count} prompts; give one for all, or one for each", "sampling_params")
    return given


def default_params(model: ModelInfo) -> SamplingParams:
    """What the model's generation_config.json recommends; max_tokens 16."""
    advice: dict[str, Any] = dict(model.generation_defaults)
    if "top_k" in advice:
        advice["top_k"] = int(advice["top_k"])
    return SamplingParams(**advice)


def _is_id(item: Any) -> bool:
    return (isinstance(item, int) and not isinstance(item, bool)) or (type(item).__module__ == "numpy" and hasattr(item, "__index__"))
