"""Qwen 3 (dense): norms on q and k, a head size of its own, no biases unless asked for."""

from __future__ import annotations

from gpu_workers.models.config_reader import ConfigReader
from gpu_workers.models.families.llama import IGNORED, NAMES
from gpu_workers.models.spec import DecoderSpec

__all__ = ["IGNORED", "NAMES", "spec"]


def spec(config: ConfigReader) -> DecoderSpec:
    layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", 128)
    bias = config.boolean("attention_bias", False)
    return DecoderSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rotary=config.rotary(head_dim),
        windows=config.windows(layers, default_window=4096, all_layers=False),
        activation=config.activation(),
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        tied_head=config.boolean("tie_word_embeddings", False),
    )
