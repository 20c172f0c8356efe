"""The interface of a device. Everything else in the worker is written against it and never asks which device it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ipc.arena import Arena, PlanColumns, ResultColumns
from ipc.config import ModelInfo

if TYPE_CHECKING:
    from gpu_workers.collectives import Collectives
    from gpu_workers.layers.ops import Ops
    from gpu_workers.models.decoder import Decoder

# Calls something on the loop's thread, as loop.call_soon_threadsafe does.
Deliver = Callable[[Callable[[], None]], object]


@dataclass(frozen=True, slots=True)
class Serving:
    """What a worker serves: the loaded model, what is known of its directory, this rank's group, and the engine's shared memory."""

    model: Decoder
    info: ModelInfo
    ranks: Collectives
    arena: Arena


class Device(Protocol):
    """name: for logs. torch_device: where tensors live. collectives: over what several ranks talk, gloo or nccl."""

    name: str
    torch_device: torch.device
    collectives: str

    def dtype(self, wanted: str, checkpoint: torch.dtype) -> torch.dtype:
        """The dtype of weights and activations for config.model.dtype `wanted`; 'auto' follows the checkpoint."""
        ...

    def cache_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of cached keys and values beside activations of `dtype`, as config.cache.kv_cache_dtype says."""
        ...

    def begin_step(self, num_tokens: int, num_weights: int, num_bytes: int) -> None:
        """Called before each forward pass of num_tokens tokens through so many weights of this rank.

        num_bytes: what it reads of them and of keys and values.
        """
        ...

    def end_step(self) -> None:
        """Called after it, when its logits are there or on their way."""
        ...

    def kv_cache_bytes(self, wanted: int | None, serving: Serving) -> int:
        """Bytes this worker may give to KV blocks, now that the weights are loaded; None decides by what is free."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeroed memory that costs nothing before it is touched, where the device can do that."""
        ...

    def pack_linear(self, weight: torch.Tensor) -> PackedLinear | None:
        """The weight [out, in] in the layout the device multiplies fastest, or None where the plain one is that."""
        ...

    def pack_gated(self, weight: torch.Tensor, activation: str) -> PackedLinear | None:
        """The same for a product that gives activation(gate) * up of its outputs, gate first; None where that takes two steps."""
        ...

    def check_quantization(self, name: str, dtype: torch.dtype) -> None:
        """Raise ConfigError unless weights can be held as `name` (int8, int4) beside activations of `dtype`."""
        ...

    def round_linear(self, weight: torch.Tensor, name: str) -> PackedLinear:
        """The weight [out, in] rounded to a quantization that passed the check."""
        ...

    def round_gated(self, weight: torch.Tensor, name: str, activation: str) -> PackedLinear | None:
        """The same for a product that gives activation(gate) * up of its outputs; None where that takes two steps."""
        ...

    def close(self) -> None:
        """End what still runs in the background, before the process ends."""
        ...

    def ops(self, dtype: torch.dtype) -> Ops:
        """The small operations between matrix products."""
        ...

    def prepare(self, shape: AttentionShape, weight_bytes: int) -> None:
        """Start what attention of this shape needs and what takes time; called once, before about so many bytes of weights are read.

        Raises ConfigError when the device cannot compute this shape, or has no room for the weights.
        """
        ...

    def explain(self, error: BaseException) -> BaseException:
        """What to tell of an error at start: itself, or a ConfigError with what a user can do about it."""
        ...

    def runner(self, serving: Serving, num_blocks: int, deliver: Deliver) -> Runner:
        """What executes plans, with a KV cache of its own; called once. Results come through `deliver` where they come later."""
        ...


class Runner(Protocol):
    """Executes plans in order, each in two halves: `finish` what `begin` gave before the next `begin`."""

    def begin(self, plan: PlanColumns) -> Any:
        """Compute a plan up to the logits, or give it to the device, without a look at its masks. The result has the step's
        StepRows as `inputs`.

        Raises ProtocolError or msgspec.ValidationError for a plan that makes no sense.
        """
        ...

    def finish(self, begun: Any, result: ResultColumns, done: Callable[[], None]) -> None:
        """Sample; the plan's masks are complete. Calls done() when the result is, at once or later on the loop."""
        ...

    @property
    def waiting_seconds(self) -> float:
        """How long the step that the device is at has been waited for."""
        ...

    def spare_time(self) -> bool:
        """Use a moment without work for what makes later steps faster; whether there is more of it to do."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One rank's attention. group: query heads per KV head."""

    head_dim: int
    group: int
    kv_heads: int
    block_size: int
    dtype: torch.dtype


class PackedLinear(Protocol):
    """A weight in a layout of the device's own."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [T, in] to [T, out]."""
        ...
