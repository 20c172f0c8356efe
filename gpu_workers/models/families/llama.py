"""Llama 2 and 3 and what is built the same way."""

from __future__ import annotations

from gpu_workers.models.config_reader import ConfigReader
from gpu_workers.models.spec import DecoderSpec

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    **{f"layers.{{}}.{part}.{kind}": f"model.layers.{{}}.self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")},
    **{
        f"layers.{{}}.{part}.{kind}": f"model.layers.{{}}.mlp.{part}_proj.{kind}"
        for part in ("gate", "up", "down")
        for kind in ("weight", "bias")
    },
}
# Old checkpoints carry the rotary frequencies, which follow from the config.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def spec(config: ConfigReader) -> DecoderSpec:
    hidden, heads, layers = (config.integer(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = config.integer("head_dim", hidden // heads)
    bias = config.boolean("attention_bias", False)
    return DecoderSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rotary=config.rotary(head_dim),
        windows=(0,) * layers,
        activation=config.activation(),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.boolean("mlp_bias", False),
        tied_head=config.boolean("tie_word_embeddings", False),
    )
