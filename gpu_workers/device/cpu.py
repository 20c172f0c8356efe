"""The CPU: torch's OpenMP threads, weights packed by oneDNN or for kernels of ours, KV memory that is only taken when touched."""

from __future__ import annotations

import logging
import os
import platform
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from gpu_workers.attention.cpu_attention import AttentionKernel
from gpu_workers.attention.cpu_paged import CPUPagedAttention
from gpu_workers.device.base import AttentionShape, Deliver, PackedLinear, Runner, Serving
from gpu_workers.device.kernel_sets import KernelSet
from gpu_workers.device.thread_choice import ThreadChoice
from gpu_workers.kv_cache import bytes_per_block
from gpu_workers.layers.cpu_linear import PanelLinear, PanelProducts
from gpu_workers.layers.cpu_ops import CPUOps
from gpu_workers.layers.cpu_tile_linear import GATED_MULTIPLE, TileLinear, TileProducts
from gpu_workers.layers.cpu_tile_linear import supported as has_unit
from gpu_workers.layers.ops import Ops
from gpu_workers.quantization.rounding import BITS, rounded
from ipc.config import Config
from ipc.errors import ConfigError
from ipc.memory import available_memory, total_memory

if TYPE_CHECKING:
    from gpu_workers.kv_cache import KVCache
    from gpu_workers.models.spec import DecoderSpec

log = logging.getLogger(__name__)

# The prefix cache keeps what was ever computed until its memory is full, so all of it is touched in time: a small model shall not take
# gigabytes. It gets the largest of these: a floor, a multiple of its weights, so many requests of full length.
KV_BYTES_LEAST = 256 * 2**20
KV_PER_WEIGHT_BYTE = 4
KV_LONGEST = 4
KV_BYTES_MOST = 4 * 2**30
KV_SHARE_OF_FREE = 0.25
# oneDNN picks the blocked layout for this many rows; it serves other counts as well (measured, 1 to 256 rows).
PACK_FOR_ROWS = 64
# Up to so many rows of a float32 weight of up to so many elements, torch's default product wins (measured: 4 against 13 us).
FEW_ROWS = 4
# What one core does about, from which a step's time on it is guessed (thread_choice.py).
CORE_FLOPS = 150e9
CORE_BANDWIDTH = 11e9
SMALL_WEIGHT = 2**20


class CPUDevice:
    """See device/base.py for the methods."""

    name = "cpu"
    torch_device = torch.device("cpu")
    collectives = "gloo"

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for a setting that only a GPU can serve."""
        _check_config(config)
        self._block_size = config.cache.block_size
        self.num_workers = config.parallel.tensor_parallel_size
        self.threads = config.device.cpu_threads or max(1, len(os.sched_getaffinity(0)) // self.num_workers)
        self.attention_kernel: AttentionKernel | None = None
        self.fused_ops: CPUOps | None = None
        self._panels: PanelProducts | None = None
        self._tiles: TileProducts | None = None
        self._quantization = config.model.quantization
        # With several workers a step's time is that of the slowest.
        self._choice, self._began = ThreadChoice(self.threads, learns=self.num_workers == 1), 0.0
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)

    def dtype(self, wanted: str, checkpoint: torch.dtype) -> torch.dtype:
        if wanted == "auto":
            return torch.bfloat16 if checkpoint == torch.float16 else checkpoint
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]

    def cache_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def begin_step(self, num_tokens: int, num_weights: int, num_bytes: int) -> None:
        alone = max(2 * num_tokens * num_weights / CORE_FLOPS, num_bytes / CORE_BANDWIDTH)
        torch.set_num_threads(self._choice.choose(alone))
        self._began = time.perf_counter()

    def end_step(self) -> None:
        self._choice.took(time.perf_counter() - self._began)

    def kv_cache_bytes(self, wanted: int | None, serving: Serving) -> int:
        """Raises ConfigError for more than the machine has: pages come when they are first written, and so would the end."""
        if wanted is not None:
            # Not what is free just now: a worker that is started again must get what the one before it had.
            if wanted * self.num_workers > (total := total_memory()):
                each = " on each worker" * (self.num_workers > 1)
                raise ConfigError(
                    f"KV blocks of {wanted / 2**30:.1f} GiB{each} were asked for, the machine has {total / 2**30:.1f} GiB: "
                    "lower --kv-cache-memory or --num-blocks"
                )
            return wanted
        model = serving.model
        longest = serving.info.max_model_len * bytes_per_block(
            model.spec.num_layers, model.heads.num_kv, 1, model.spec.head_dim, model.dtype
        )
        useful = max(KV_BYTES_LEAST, KV_PER_WEIGHT_BYTE * model.size[1], KV_LONGEST * longest)
        return min(KV_BYTES_MOST, useful, int(available_memory() * KV_SHARE_OF_FREE) // self.num_workers)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # numpy's zeros come from calloc: the kernel gives pages when they are first written. torch.zeros would touch them all.
        raw = np.zeros(int(np.prod(shape)) * dtype.itemsize, np.uint8)
        return torch.from_numpy(raw).view(dtype).view(shape)

    def pack_linear(self, weight: torch.Tensor) -> PackedLinear | None:
        if self._tiles is not None and not self._tiles.int8:
            return TileLinear(self._tiles, weight)
        if _can_pack(weight.dtype):
            return _MkldnnLinear(weight)
        if weight.dtype == torch.bfloat16 and self._panels is not None:
            return PanelLinear(self._panels, "bfloat16", weight)
        return None

    def pack_gated(self, weight: torch.Tensor, activation: str) -> PackedLinear | None:
        if self._tiles is not None and not self._tiles.int8 and _can_gate(weight, activation):
            return TileLinear(self._tiles, weight, gated=True)
        return None

    def check_quantization(self, name: str, dtype: torch.dtype) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            kind = str(dtype).removeprefix("torch.")
            raise ConfigError(f"--quantization {name}: the CPU's kernels work with --dtype bfloat16 or float32, not {kind}")

    def round_linear(self, weight: torch.Tensor, name: str) -> PackedLinear:
        few_bits = rounded(weight, BITS[name])
        if self._tiles is not None and name == "int8":
            return TileLinear(self._tiles, few_bits)
        assert self._panels is not None
        return PanelLinear(self._panels, name, few_bits)

    def round_gated(self, weight: torch.Tensor, name: str, activation: str) -> PackedLinear | None:
        if self._tiles is not None and name == "int8" and _can_gate(weight, activation):
            return TileLinear(self._tiles, rounded(weight, BITS[name]), gated=True)
        return None

    def close(self) -> None:
        """Nothing to end: a process that still compiles kernels ends with this one (kernels_cpu/build.py)."""

    def ops(self, dtype: torch.dtype) -> Ops:
        self.fused_ops = CPUOps(dtype, self.threads)
        return self.fused_ops

    def prepare(self, shape: AttentionShape, weight_bytes: int) -> None:
        on_tiles = shape.dtype == torch.bfloat16 and has_unit()
        # The head of an int4 model is int8.
        formats = set() if self._quantization == "none" else {self._quantization, "int8"}
        if on_tiles:
            self._tiles = TileProducts("int8" in formats, self.threads)
            formats.discard("int8")
        elif shape.dtype == torch.bfloat16 and not formats and not _can_pack(shape.dtype):
            formats = {"bfloat16"}
        if formats:
            self._panels = PanelProducts(formats, shape.dtype, self.threads)
        self.attention_kernel = AttentionKernel(shape, self.threads)

    @property
    def kernel_sets(self) -> list[KernelSet]:
        """Kernels that are or will be there; torch computes the same without them."""
        return [kernels for kernels in (self._panels, self._tiles, self.attention_kernel, self.fused_ops) if kernels is not None]

    def explain(self, error: BaseException) -> BaseException:
        return error

    def runner(self, serving: Serving, num_blocks: int, deliver: Deliver) -> Runner:
        from gpu_workers.runner import ModelRunner

        for kernels in self.kernel_sets:
            kernels.on_change = self._tell
        self._tell()
        return ModelRunner(serving.model, self, serving.ranks, serving.arena.dimensions, self._block_size, num_blocks)

    def _tell(self) -> None:
        """Which kernels are in use; once more when that changes."""
        ready = [kernels.what for kernels in self.kernel_sets if kernels.ready]
        awaited = [kernels.what for kernels in self.kernel_sets if kernels.awaited]
        log.info("CPU kernels in use: %s%s", ", ".join(ready) or "none", f"; being compiled: {', '.join(awaited)}" if awaited else "")

    def attention(self, spec: DecoderSpec, cache: KVCache) -> CPUPagedAttention:
        """The attention backend over `cache`."""
        assert self.attention_kernel is not None
        return CPUPagedAttention(spec, cache, self.attention_kernel)


def _check_config(config: Config) -> None:
    kind = config.cache.kv_cache_dtype
    if kind != "auto":
        raise ConfigError(
            f"--kv-cache-dtype {kind}: on the CPU keys and values have the model's dtype; leave it at auto, or use --device cuda"
        )
    if config.device.attention_prefill != "auto":
        raise ConfigError(
            f"--attention-prefill {config.device.attention_prefill}: it names a CUDA kernel; leave it at auto, or use --device cuda"
        )
    if config.device.batch_invariant:
        raise ConfigError(
            "--batch-invariant: the CPU's kernels share out their work by what the batch holds; leave it out, or use --device cuda"
        )


class _MkldnnLinear:
    """A weight in oneDNN's blocked layout.

    bf16: read at memory speed, where the plain layout reaches two thirds (docs/benchmarks.md). float32: 2 to 7 times faster than torch's
    default product on AMD CPUs, which MKL serves with old instructions; only for a few rows of a small weight is that one faster.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_FOR_ROWS)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._plain = weight if weight.dtype == torch.float32 and weight.numel() <= SMALL_WEIGHT else None

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._plain is not None and x.shape[0] <= FEW_ROWS:
            return F.linear(x, self._plain, bias)
        return self._multiply(x, self._packed, bias, "none", [], "")


def _can_gate(weight: torch.Tensor, activation: str) -> bool:
    """Whether a product on tiles may apply the activation to this layer's outputs."""
    return activation == "silu" and weight.shape[0] % GATED_MULTIPLE == 0


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operators, and this CPU instructions that make products of this dtype worth it."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available():
        return False
    if not (hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        # Arm's oneDNN takes a packed bfloat16 weight to its reference, a scalar loop, also where the CPU has the instructions (torch 2.10).
        if platform.machine() not in ("x86_64", "AMD64"):
            return False
        return hasattr(operators, "_is_mkldnn_bf16_supported") and bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32
