"""The one decoder: computes what a DecoderSpec says, for this rank's share of heads, features and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gpu_workers.attention import Attention, HeadNorms
from gpu_workers.collectives import Collectives
from gpu_workers.device import Device
from gpu_workers.layers.embedding import VocabParallelEmbedding
from gpu_workers.layers.linear import ColumnParallelLinear, RowParallelLinear, column_shards, row_shard
from gpu_workers.layers.ops import Ops
from gpu_workers.layers.rotary import Rotary
from gpu_workers.models.spec import DecoderSpec
from gpu_workers.quantization.method import LinearMethod, Shard
from gpu_workers.quantization.unquantized import Unquantized
from gpu_workers.quantization.weight_only import WeightOnly
from gpu_workers.weights.part import Part
from ipc.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Build:
    """What every layer needs to be made."""

    spec: DecoderSpec
    ranks: Collectives
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    quantization: str

    def method(self, activation: str = "") -> LinearMethod:
        """activation: of a layer whose outputs are gate and up."""
        if self.quantization == "none":
            return Unquantized(self.dtype, self.device, activation)
        return WeightOnly(self.quantization, self.dtype, self.device, activation)

    def head_method(self) -> Unquantized:
        """The head decides between tokens that are close to each other: it gets no less than 8 bits."""
        return Unquantized(self.dtype, self.device) if self.quantization == "none" else WeightOnly("int8", self.dtype, self.device)

    def ones(self, *shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Heads:
    """Which query and KV heads a rank has; with fewer KV heads than ranks, several ranks hold the same one."""

    num: int
    start: int
    num_kv: int
    kv_start: int

    @classmethod
    def of(cls, spec: DecoderSpec, ranks: Collectives) -> Heads:
        num = ranks.share(spec.num_heads, "num_attention_heads")
        if spec.num_heads % spec.num_kv_heads:
            raise ConfigError(f"num_attention_heads ({spec.num_heads}) is no multiple of num_key_value_heads ({spec.num_kv_heads})")
        if spec.num_kv_heads % ranks.size == 0:
            num_kv = spec.num_kv_heads // ranks.size
            return cls(num, ranks.rank * num, num_kv, ranks.rank * num_kv)
        if ranks.size % spec.num_kv_heads:
            raise ConfigError(
                f"tensor_parallel_size {ranks.size} neither divides nor is a multiple of "
                f"the model's num_key_value_heads ({spec.num_kv_heads})"
            )
        return cls(num, ranks.rank * num, 1, ranks.rank * spec.num_kv_heads // ranks.size)


class AttentionLayer:
    """q, k, v in one product, attention, and the way back."""

    def __init__(self, build: Build, index: int, heads: Heads) -> None:
        spec, dim = build.spec, build.spec.head_dim
        self._index, self._heads, self._dim, self._eps = index, heads, dim, spec.norm_eps
        self._name = f"layers.{index}"
        q = Shard(f"{self._name}.q", spec.num_heads * dim, spec.hidden_size, 0, heads.start * dim, heads.num * dim, 0, spec.qkv_bias)
        kv = [
            Shard(
                f"{self._name}.{part}", spec.num_kv_heads * dim, spec.hidden_size, 0, heads.kv_start * dim, heads.num_kv * dim, row * dim,
                spec.qkv_bias,
            )
            for part, row in (("k", heads.num), ("v", heads.num + heads.num_kv))
        ]  # fmt: skip
        self.qkv = ColumnParallelLinear(build.method(), [q, *kv])
        output = row_shard(f"{self._name}.o", spec.hidden_size, spec.num_heads * dim, spec.output_bias, build.ranks, "attention width")
        self.output = RowParallelLinear(build.method(), output, build.ranks)
        self._qk_norm = (build.ones(dim), build.ones(dim)) if spec.qk_norm else None
        self._norms: HeadNorms | None = None

    def parts(self) -> Iterator[Part]:
        yield from self.qkv.parts()
        yield from self.output.parts()
        if self._qk_norm is not None:
            for name, weight in zip(("q_norm", "k_norm"), self._qk_norm):
                yield Part(f"{self._name}.{name}.weight", (self._dim,), weight)

    def process(self, device: Device) -> None:
        self.qkv.process(device)
        self.output.process(device)
        if self._qk_norm is not None:
            q, k = self._qk_norm
            by_head = torch.cat((q.expand(self._heads.num, -1), k.expand(self._heads.num_kv, -1)))
            self._norms = HeadNorms(q, k, by_head, self._eps)

    def __call__(self, x: torch.Tensor, attention: Attention, wanted: torch.Tensor | None) -> torch.Tensor:
        heads = self._heads
        qkv = self.qkv(x).view(x.shape[0], heads.num + 2 * heads.num_kv, self._dim)
        attended = attention.run(qkv, self._norms, self._index)
        return self.output(attended if wanted is None else attended[wanted])


class MLP:
    """down(activation(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, build: Build, index: int) -> None:
        spec, name = build.spec, f"layers.{index}"
        gate_up = [(f"{name}.{part}", spec.intermediate_size, spec.mlp_bias) for part in ("gate", "up")]
        self.gate_up = ColumnParallelLinear(
            build.method(spec.activation), column_shards(gate_up, spec.hidden_size, build.ranks, "intermediate_size")
        )
        down = row_shard(f"{name}.down", spec.hidden_size, spec.intermediate_size, spec.mlp_bias, build.ranks, "intermediate_size")
        self.down = RowParallelLinear(build.method(), down, build.ranks)
        self._ops = build.ops

    def parts(self) -> Iterator[Part]:
        yield from self.gate_up.parts()
        yield from self.down.parts()

    def process(self, device: Device) -> None:
        self.gate_up.process(device)
        self.down.process(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.gate_up.gated(x, self._ops))


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, build: Build, index: int, heads: Heads) -> None:
        self._name, self._eps, self._scale = f"layers.{index}", build.spec.norm_eps, build.spec.residual_scale
        self._shape, self._ops = (build.spec.hidden_size,), build.ops
        self._attention_norm, self._mlp_norm = build.ones(*self._shape), build.ones(*self._shape)
        self.attention = AttentionLayer(build, index, heads)
        self.mlp = MLP(build, index)

    def parts(self) -> Iterator[Part]:
        yield Part(f"{self._name}.attention_norm.weight", self._shape, self._attention_norm)
        yield Part(f"{self._name}.mlp_norm.weight", self._shape, self._mlp_norm)
        yield from self.attention.parts()
        yield from self.mlp.parts()

    def process(self, device: Device) -> None:
        self.attention.process(device)
        self.mlp.process(device)

    def __call__(
        self, x: torch.Tensor, delta: torch.Tensor | None, attention: Attention, wanted: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, hidden] gets, in place, what the layer before left to add (delta; None: nothing) and this one's attention.

        Returns x and what is still to be added to it, so that adding and the norm after it are one operation. With `wanted`, int64[n], both
        are of these tokens only, and of the others nothing is computed but their keys and values.
        """
        if delta is None:
            normed = self._ops.rms_norm(x, self._attention_norm, self._eps)
        else:
            normed = self._ops.add_rms_norm(x, delta, self._scale, self._attention_norm, self._eps)
        attended = self.attention(normed, attention, wanted)
        if wanted is not None:
            x = x[wanted]
        return x, self.mlp(self._ops.add_rms_norm(x, attended, self._scale, self._mlp_norm, self._eps))


class Decoder:
    """A whole model on one rank.

    Life: make it, fill every one of `parts()`, call `process` once, then `forward` and `logits` as often as wanted.
    """

    def __init__(
        self, spec: DecoderSpec, max_length: int, ranks: Collectives, dtype: torch.dtype, device: Device, quantization: str
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self.size = (0, 0)  # elements and bytes of this rank's parameters, set when they are loaded
        self.ops = device.ops(dtype)
        build = Build(spec, ranks, dtype, device.torch_device, self.ops, quantization)
        self.heads = Heads.of(spec, ranks)
        self._ranks = ranks
        self._rotary = Rotary(spec.rotary, max_length, dtype, device.torch_device)
        self._embedding = VocabParallelEmbedding(spec.vocab_size, spec.hidden_size, ranks, dtype, device.torch_device)
        self._layers = [DecoderLayer(build, index, self.heads) for index in range(spec.num_layers)]
        self._final_norm = build.ones(spec.hidden_size)
        head = column_shards([("head", spec.vocab_size, False)], spec.hidden_size, ranks, "vocab_size")
        self._head = build.head_method()
        self._head_shards = [] if spec.tied_head else head

    def parts(self) -> Iterator[Part]:
        """Every checkpoint tensor this rank needs and where it goes."""
        yield from self._embedding.parts()
        for layer in self._layers:
            yield from layer.parts()
        yield Part("final_norm.weight", (self.spec.hidden_size,), self._final_norm)
        if self._head_shards:
            yield from self._head.load(self._head_shards)

    def process(self, device: Device) -> None:
        """Pack the loaded weights for `device`."""
        for layer in self._layers:
            layer.process(device)
        if not self._head_shards:
            self._head.use(self._embedding.weight)
        self._head.process(device)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attention, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Integers token_ids and positions [T] to hidden states [T, hidden], before the final norm. `attention` is planned for it.

        wanted: int64[n], the tokens whose hidden states [n, hidden] are asked for, None for all. The last layer spares the others most of
        its work: for a prompt, whose last token alone is sampled from, nearly a layer's time.
        """
        x = self._embedding(token_ids)
        if self.spec.embedding_scale != 1.0:
            x.mul_(self.spec.embedding_scale)
        attention.begin(self._rotary, positions)
        delta = None
        for layer in self._layers[:-1]:
            x, delta = layer(x, delta, attention)
        x, delta = self._layers[-1](x, delta, attention, wanted)
        return x.add_(delta, alpha=self.spec.residual_scale)

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] as the head sees it, and as the vectors of texts are made of it."""
        return self.ops.rms_norm(hidden, self._final_norm, self.spec.norm_eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """hidden [n, hidden] to logits [n, vocab_size] in the model's dtype on rank 0; None on the others."""
        logits = self._ranks.gather_columns(self._head.apply(self.final_norm(hidden)))
        if logits is not None and self.spec.logit_scale != 1.0:
            logits.mul_(self.spec.logit_scale)
        return logits
