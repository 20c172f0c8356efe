"""Mistral: Llama without biases and with one sliding window for all layers."""

from __future__ import annotations

from gpu_workers.models.config_reader import ConfigReader
from gpu_workers.models.families.llama import IGNORED, NAMES
from gpu_workers.models.spec import DecoderSpec

__all__ = ["IGNORED", "NAMES", "spec"]


def spec(config: ConfigReader) -> DecoderSpec:
    hidden, heads, layers = (config.integer(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = config.integer("head_dim", hidden // heads)
    return DecoderSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", 8),
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rotary=config.rotary(head_dim),
        windows=config.windows(layers, default_window=4096, all_layers=True),
        activation=config.activation(),
        tied_head=config.boolean("tie_word_embeddings", False),
    )
