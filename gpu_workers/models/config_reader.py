"""Reads a checkpoint's config.json with types, and refuses by name what nobody has read.

A key that the family did not ask for may change the maths; ignoring it would give wrong text without an error. So every key must be
read, be known to be harmless, or be null.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, Literal, cast

import torch

from gpu_workers.models.spec import RotarySpec
from ipc.errors import ConfigError

# Names, ids, training and library settings: none of them changes what one forward pass computes.
HARMLESS = frozenset(
    """
    _name_or_path _attn_implementation_autoset architectures attention_dropout auto_map bos_token_id classifier_dropout dtype
    embd_pdrop eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder label2id max_position_embeddings model_type name num_return_sequences
    output_attentions output_hidden_states output_scores
    pad_token_id prefix pretraining_tp problem_type resid_pdrop return_dict
    return_dict_in_generate sep_token_id task_specific_params tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
    bad_words_ids begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams
    remove_invalid_values repetition_penalty suppress_tokens temperature tf_legacy_loss top_k
    top_p typical_p add_cross_attention tie_encoder_decoder pruned_heads
    """.split()
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REQUIRED = object()


class ConfigReader:
    """Typed access to one JSON object; `where` names it in errors. Every method raises ConfigError naming the key."""

    def __init__(self, document: dict[str, Any], where: str) -> None:
        self._document = document
        self._where = where
        self._read: set[str] = set()

    @classmethod
    def open(cls, directory: str) -> ConfigReader:
        path = os.path.join(directory, "config.json")
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(document, dict):
            raise ConfigError(f"{path} does not hold a JSON object")
        return cls(document, path)

    def get(self, key: str) -> Any:
        """The raw value; None if absent."""
        self._read.add(key)
        return self._document.get(key)

    def has(self, key: str) -> bool:
        return key in self._document

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.error(key, f"must be a positive integer, got {value!r}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(key, f"must be a number, got {value!r}")
        return float(value)

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, got {value!r}")
        return value

    def choice(self, key: str, known: dict[str, Any], default: Any = _REQUIRED) -> Any:
        value = self._value(key, default)
        if value not in known:
            raise self.error(key, f"{value!r} is not supported; there are {', '.join(sorted(known))}")
        return known[value]

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key} {problem}")

    def refuse_unread(self) -> None:
        """Raise ConfigError naming every key that has a value, was not read and is not known to be harmless."""
        unknown = [key for key, value in self._document.items() if value is not None and key not in self._read and key not in HARMLESS]
        if "quantization_config" in unknown:
            raise self.error("quantization_config", "is set: quantized checkpoints are not supported in this version")
        if unknown:
            raise ConfigError(f"{self._where}: unknown key {', '.join(map(repr, sorted(unknown)))}; it may change what the model computes")

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, "is missing")
            return default
        return value

    # What several families share.

    def dtype(self) -> torch.dtype:
        """The checkpoint's dtype, float32 when it says nothing."""
        return cast(torch.dtype, self.choice("dtype" if self.get("dtype") is not None else "torch_dtype", _DTYPES, "float32"))

    def activation(self) -> Literal["silu", "gelu", "gelu_tanh"]:
        known = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
        return self.choice("hidden_act", known, "silu")  # type: ignore[no-any-return]

    def rotary(self, head_dim: int) -> RotarySpec:
        """rope_parameters (Transformers 5), or rope_theta with rope_scaling (before)."""
        key = "rope_parameters" if self.get("rope_parameters") is not None else "rope_scaling"
        given = self.get(key) or {}
        theta = self.number("rope_theta", 10000.0)
        partial = self.number("partial_rotary_factor", 1.0)
        if not isinstance(given, dict):
            raise self.error(key, "must be an object")
        reader = ConfigReader(given, f"{self._where}: {key}")
        theta, partial = reader.number("rope_theta", theta), reader.number("partial_rotary_factor", partial)
        kind = "rope_type" if given.get("rope_type") is not None else "type"
        reader.get("type")
        reader.get("rope_type")
        read = reader.choice(kind, {"default": _plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn}, "default")
        spec: RotarySpec = read(reader, int(head_dim * partial), theta, self.integer("max_position_embeddings"))
        reader.refuse_unread()
        return spec

    def windows(self, num_layers: int, default_window: int, all_layers: bool) -> tuple[int, ...]:
        """Sliding windows: layer_types where given, else max_window_layers (Qwen) or all layers alike (Mistral)."""
        use = all_layers or self.boolean("use_sliding_window", False)
        window = self.get("sliding_window") if self.has("sliding_window") else default_window
        if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window <= 0):
            raise self.error("sliding_window", f"must be a positive integer or null, got {window!r}")
        window = window if use and window is not None else 0
        first = 0 if all_layers else self.get("max_window_layers")
        first = 28 if first is None else first
        types = None if all_layers else self.get("layer_types")
        if types is None:
            return tuple(window if layer >= first else 0 for layer in range(num_layers))
        if len(types) != num_layers or set(types) - {"full_attention", "sliding_attention"}:
            raise self.error("layer_types", f"must name full_attention or sliding_attention for each of {num_layers} layers")
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _plain(reader: ConfigReader, dim: int, theta: float, _length: int) -> RotarySpec:
    return RotarySpec(dim=dim, theta=theta)


def _linear(reader: ConfigReader, dim: int, theta: float, _length: int) -> RotarySpec:
    return RotarySpec(dim=dim, theta=theta, kind="linear", factor=reader.number("factor"))


def _llama3(reader: ConfigReader, dim: int, theta: float, _length: int) -> RotarySpec:
    return RotarySpec(
        dim=dim,
        theta=theta,
        kind="llama3",
        factor=reader.number("factor"),
        original_length=reader.integer("original_max_position_embeddings"),
        low_freq_factor=reader.number("low_freq_factor"),
        high_freq_factor=reader.number("high_freq_factor"),
    )


def _yarn(reader: ConfigReader, dim: int, theta: float, length: int) -> RotarySpec:
    factor = reader.number("factor")
    return RotarySpec(
        dim=dim,
        theta=theta,
        kind="yarn",
        factor=factor,
        original_length=reader.integer("original_max_position_embeddings", length),
        beta_fast=reader.number("beta_fast", 32.0),
        beta_slow=reader.number("beta_slow", 1.0),
        truncate=reader.boolean("truncate", True),
        attention_factor=reader.number("attention_factor", 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
    )
