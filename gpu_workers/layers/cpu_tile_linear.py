"""Matrix products of our own for bfloat16 activations and bfloat16 or int8 weights: by AMX (device/cpu_tiles.py) or, where there is none,
by the dot products of 512-bit vectors (device/cpu_dots.py).

Against oneDNN's on the same bfloat16 weights: a decode step of few rows takes 0.5 to 0.7 of the time, since memory is read in one run of
huge pages; from 64 rows on both are alike (docs/benchmarks.md). With int8 weights, a row of activations becomes whole numbers of 16 bits,
whose two digits are multiplied as int8 each: exact sums (of up to 2**16 inputs), in the time of bfloat16 and with half the memory. Until
the kernels are compiled, torch computes from the plain weight.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpu_workers.device.compiling import Compiling
from gpu_workers.layers.ops import Ops
from gpu_workers.quantization.rounding import Rounded

# More rows than so many bytes take turns, which bounds the memory for their copy as tiles.
ROWS_BYTES = 5 * 2**20
# Each thread lays out all rows for itself up to so many numbers: less work than waiting for the others.
ALONE = 2**15
# Outputs of a gated product: a panel holds 16 gates beside what they are multiplied with.
GATED_MULTIPLE = 32
_PER_CALL = struct.Struct("7q")  # what changes with every call: the first places of cpu_tile_kernels.py
_COUNTER = 8  # int64 from one thread's counter to the next: a cache line


def supported() -> bool:
    """Whether torch sees a unit that multiplies bfloat16 and int8: AMX, which the kernel must allow, or dot instructions."""

    def has(*names: str) -> bool:
        return all((ask := getattr(torch.cpu, name, None)) is not None and bool(ask()) for name in names)

    return has("_is_amx_tile_supported", "_init_amx") or has("_is_avx512_bf16_supported", "_is_vnni_supported")


class TileProducts(Compiling):
    """The kernels for all layers of a model, with bfloat16 or with int8 weights."""

    def __init__(self, int8: bool, threads: int) -> None:
        super().__init__("matrix products")
        self.int8, self.threads = int8, threads
        self.kernels: Any = None
        self.counters = np.zeros(threads * _COUNTER, np.int64)
        self.configuration = np.empty(0, np.uint8)
        # By whether silu and gate are part of them.
        self.products: dict[bool, Any] = {}
        self.packers: dict[bool, Any] = {}
        self._scratch = np.empty(0, np.uint8)
        self._scratch_at = 0
        self.start()

    def scratch(self, size: int) -> int:
        """The address of `size` bytes that any product may overwrite."""
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.uint8)
            self._scratch_at = self._scratch.ctypes.data
        return self._scratch_at

    def build(self, cache: bool) -> bool:
        from gpu_workers.device import cpu_dots, cpu_tiles

        dots = not cpu_tiles.available()
        if dots and not cpu_dots.available():
            return False
        from gpu_workers.layers import cpu_tile_kernels as kernels

        self.kernels, self.configuration = kernels, cpu_tiles.configuration()
        for gated in (False, True):
            self.products[gated] = kernels.product(self.int8, gated, dots, cache)
            self.packers[gated] = kernels.packer(self.int8, gated, dots, cache)
        return True


class TileLinear:
    """A linear whose weight [out, in] is packed as soon as the kernels are there (`weight` is None from then on).

    weight: bfloat16, or rounded to int8, as the products are. gated: it gives silu(first half of the outputs) * second half; out is a
    multiple of GATED_MULTIPLE then.
    """

    def __init__(self, products: TileProducts, weight: torch.Tensor | Rounded, gated: bool = False) -> None:
        self._products, self._gated = products, gated
        self.weight: torch.Tensor | Rounded | None = weight
        self._outputs, self._inputs = (weight.numbers if isinstance(weight, Rounded) else weight).shape
        self._at_once = max(32, ROWS_BYTES // (2 * self._inputs) // 32 * 32)
        self._panels = np.empty(0, np.uint8)
        self._scales = np.empty(0, np.float32)
        self._arguments = np.zeros(0, np.int64)
        self._launch: Any = None
        if products.ready:
            self._pack(weight)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.weight is not None:
            if not self._products.ready:
                weight = self.weight.restored(x.dtype) if isinstance(self.weight, Rounded) else self.weight
                plain = F.linear(x, weight, bias)
                return Ops().gated(plain, "silu") if self._gated else plain
            self._pack(self.weight)
        x = x.contiguous()
        rows = x.shape[0]
        width = self._outputs // 2 if self._gated else self._outputs
        out = torch.empty(rows, width, dtype=x.dtype)
        threads = min(self._products.threads, torch.get_num_threads())
        bias_at = 0 if bias is None else bias.data_ptr()
        for first in range(0, rows, self._at_once):
            count = min(self._at_once, rows - first)
            self._multiply(x.data_ptr() + first * self._inputs * 2, out.data_ptr() + first * width * 2, bias_at, count, threads)
        return out

    def _multiply(self, x_at: int, out_at: int, bias_at: int, rows: int, threads: int) -> None:
        products = self._products
        alone = threads == 1 or rows * self._inputs <= ALONE
        scratch = products.scratch(products.kernels.scratch_bytes(rows, self._inputs, threads, alone, products.int8))
        _PER_CALL.pack_into(self._arguments, 0, x_at, out_at, bias_at, scratch, rows, threads, alone)
        products.counters.fill(0)
        self._launch(threads)

    def _pack(self, weight: torch.Tensor | Rounded) -> None:
        from gpu_workers.device.cpu_native import launcher, run

        products, places = self._products, self._products.kernels
        a = np.zeros(places.NUM_ARGUMENTS, np.int64)
        a[places.INPUTS], a[places.OUTPUTS], a[places.THREADS] = self._inputs, self._outputs, products.threads
        plain = (weight.numbers if isinstance(weight, Rounded) else weight).contiguous()
        # numpy asks for huge pages, which spare the CPU most misses in its page table.
        self._panels = np.empty(places.packed_bytes(self._outputs, self._inputs, products.int8), np.uint8)
        a[places.X], a[places.OUT] = plain.data_ptr(), self._panels.ctypes.data
        run(products.packers[self._gated], a, products.threads)
        a[places.WEIGHTS], a[places.COUNTERS] = self._panels.ctypes.data, products.counters.ctypes.data
        if isinstance(weight, Rounded):
            self._scales = np.zeros(-(-self._outputs // places.PANEL) * places.PANEL, np.float32)
            self._scales[: self._outputs] = weight.scales[:, 0].numpy()
            a[places.SCALES] = self._scales.ctypes.data
        a[places.CONFIGURATION] = products.configuration.ctypes.data
        self._arguments, self._launch, self.weight = a, launcher(products.products[self._gated], a), None
