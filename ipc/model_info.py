"""Reads what the processes must agree on from a model directory: config.json and generation_config.json, no weights, no torch."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

from ipc.config import ModelConfig, ModelInfo
from ipc.errors import ConfigError, InvalidRequestError
from ipc.sampling_params import SamplingParams

GENERATION_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read(path: str, config: ModelConfig, name: str) -> ModelInfo:
    """ModelInfo of the checkpoint in directory `path`.

    Raises ConfigError naming the missing or unreadable file, or the key that makes no sense.
    """
    if not os.path.isdir(path):
        raise ConfigError(f"model directory {path} does not exist")
    document = _json(path, "config.json")
    text = document.get("text_config", document)
    if not isinstance(text, dict):
        raise ConfigError(f"{path}/config.json: text_config must be an object")
    architectures = document.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise ConfigError(f"{path}/config.json has no 'architectures' entry, so the model family is unknown")
    vocab_size = _positive(path, text, "vocab_size")
    own_length = _positive(path, text, "max_position_embeddings")
    length = config.max_model_len or own_length
    if length > own_length:
        raise ConfigError(f"max_model_len {length} is more than the model's max_position_embeddings {own_length}")
    generation = _json(path, "generation_config.json") if os.path.exists(os.path.join(path, "generation_config.json")) else {}
    eos = generation.get("eos_token_id", document.get("eos_token_id", text.get("eos_token_id")))
    eos_ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if any(not isinstance(token, int) or not 0 <= token < vocab_size for token in eos_ids):
        raise ConfigError(f"{path}: eos_token_id {eos!r} is not a token id below vocab_size {vocab_size}")
    return ModelInfo(
        path=path,
        tokenizer_path=config.tokenizer or path,
        name=name,
        architecture=architectures[0],
        vocab_size=vocab_size,
        max_model_len=length,
        eos_token_ids=eos_ids,
        generation_defaults=_advice(path, generation, vocab_size) if generation.get("do_sample", True) else {},
        hidden_size=_positive(path, text, "hidden_size") if "hidden_size" in text else 1,
        pooling=_pooling(path) if config.pooling == "auto" else config.pooling,
    )


def _advice(path: str, generation: dict[str, Any], vocab_size: int) -> dict[str, float]:
    """What generation_config.json recommends for sampling. Raises ConfigError for what no request could be served with."""
    advice: dict[str, Any] = {key: generation[key] for key in GENERATION_DEFAULTS if generation.get(key) is not None}
    if isinstance(advice.get("top_k"), float) and advice["top_k"].is_integer():
        advice["top_k"] = int(advice["top_k"])
    try:
        SamplingParams(**advice).validate(vocab_size)
    except InvalidRequestError as error:
        raise ConfigError(f"{path}/generation_config.json: {error.message}") from None
    return {key: float(value) for key, value in advice.items()}


def _pooling(path: str) -> Literal["last", "mean"]:
    """How the sentence-transformers library would make one vector of the tokens' states; the last token's if it was never asked to.

    Raises ConfigError for a way that we do not have.
    """
    modules = os.path.join(path, "modules.json")
    if os.path.exists(modules):
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in _list(modules)]
        unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if unknown:
            raise ConfigError(f"{modules} has the module {unknown[0]!r}, which embeddings here do not have; --pooling last goes without it")
    if not os.path.exists(os.path.join(path, "1_Pooling", "config.json")):
        return "last"
    document = _json(os.path.join(path, "1_Pooling"), "config.json")
    found = [name for name, value in document.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(document.get("pooling_mode"), str):
        found = [document["pooling_mode"]]
    known: dict[str, Literal["last", "mean"]] = {
        "pooling_mode_lasttoken": "last", "lasttoken": "last", "pooling_mode_mean_tokens": "mean", "mean": "mean",
    }  # fmt: skip
    if len(found) != 1 or found[0] not in known:
        raise ConfigError(
            f"{path}/1_Pooling/config.json asks for {' and '.join(found) or 'no pooling'}; there are last and mean, which --pooling sets"
        )
    return known[found[0]]


def _list(file: str) -> list[dict[str, Any]]:
    try:
        with open(file, encoding="utf-8") as handle:
            document = json.load(handle)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise ConfigError(f"{file} does not hold a list of JSON objects")
    return document


def _json(path: str, file: str) -> dict[str, Any]:
    full = os.path.join(path, file)
    try:
        with open(full, encoding="utf-8") as handle:
            document = json.load(handle)
    except FileNotFoundError:
        raise ConfigError(f"{path} has no {file}: it is not a model directory") from None
    except OSError as error:
        raise ConfigError(f"cannot read {full}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{full} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{full} does not hold a JSON object")
    return document


def _positive(path: str, document: dict[str, Any], key: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"{path}/config.json: {key} must be a positive integer, got {value!r}")
    if value >= 2**31:
        raise ConfigError(f"{path}/config.json: {key} must be below 2**31, got {value:.6g}")
    return value
