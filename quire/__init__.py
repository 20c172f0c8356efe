"""quire: a serving engine for large language models. The public names are here; each is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quire.version import __version__

if TYPE_CHECKING:
    from ipc.errors import (
        ConfigError,
        EngineDeadError,
        InvalidRequestError,
        QueueFullError,
        QuireError,
        RequestFailedError,
    )
    from ipc.grammar import StructuredOutputsParams
    from ipc.sampling_params import RepetitionDetectionParams, RequestOutputKind, SamplingParams
    from quire.async_llm import AsyncLLM
    from quire.beam_search import BeamSearchOutput, BeamSearchParams
    from quire.conversations import ChatOptions
    from quire.llm import LLM

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "ChatOptions",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineDeadError",
    "InvalidRequestError",
    "QueueFullError",
    "QuireError",
    "RepetitionDetectionParams",
    "RequestFailedError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "LLM": "quire.llm",
    "ChatOptions": "quire.conversations",
    "AsyncLLM": "quire.async_llm",
    **dict.fromkeys(("BeamSearchOutput", "BeamSearchParams"), "quire.beam_search"),
    **dict.fromkeys(("RepetitionDetectionParams", "RequestOutputKind", "SamplingParams"), "ipc.sampling_params"),
    "StructuredOutputsParams": "ipc.grammar",
    "RequestOutput": "frontend.outputs",
    **dict.fromkeys(("CompletionOutput", "EmbeddingOutput", "EmbeddingRequestOutput"), "frontend.outputs"),
    **dict.fromkeys(
        ("ConfigError", "EngineDeadError", "InvalidRequestError", "QueueFullError", "QuireError", "RequestFailedError"), "ipc.errors"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    import importlib

    from quire import packages

    packages.check()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
