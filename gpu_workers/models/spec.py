"""What a decoder-only model computes, as data. A family file makes one from config.json; models/decoder.py runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RotarySpec:
    """Rotary position embedding (RoFormer, arXiv:2104.09864), halves rotated against each other.

    dim: how many of a head's first dimensions turn. factor and the rest belong to `kind` (layers/rotary.py says which to what).
    """

    dim: int
    theta: float
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # cos and sin are multiplied by it


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A stack of pre-norm decoder layers with RMS norms, grouped-query attention and a gated MLP.

    windows: per layer how many last positions a token sees, itself included; 0 is all. qk_norm: RMS norm over each head of q and k
    before the rotation. Scales multiply the embedding, each branch before it joins the residual, and the logits.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rotary: RotarySpec
    windows: tuple[int, ...]
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False
    attention_scale: float | None = None  # None: head_dim ** -0.5
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    @property
    def num_weights(self) -> int:
        """Elements of all matrices."""
        attention = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.hidden_size
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * layer + (1 if self.tied_head else 2) * self.vocab_size * self.hidden_size

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
