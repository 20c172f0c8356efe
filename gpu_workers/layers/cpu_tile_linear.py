"""Matrix products of our own for bfloat16 activations and bfloat16 or int8 weights: by AMX (kernels_cpu/tiles.py) or, where there is
none, by the dot products of 512-bit vectors (kernels_cpu/dots.py).

Against oneDNN's on the same bfloat16 weights: a decode step of few rows takes 0.5 to 0.7 of the time, since memory is read in one run of
huge pages; from 64 rows on both are alike (docs/benchmarks.md). With int8 weights, a row of activations becomes whole numbers of 16 bits,
whose two digits are multiplied as int8 each: exact sums (of up to 2**16 inputs), in the time of bfloat16 and with half the memory. Until
the kernels are there, torch computes from the plain weight.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpu_workers.device.kernel_sets import KernelSet
from gpu_workers.layers.ops import Ops
from gpu_workers.quantization.rounding import Rounded
from kernels_cpu import features
from kernels_cpu import tile_layout as places
from kernels_cpu.image import launcher, run
from kernels_cpu.recipe import Kernel

# More rows than so many bytes take turns, which bounds the memory for their copy as tiles.
ROWS_BYTES = 5 * 2**20
# Each thread lays out all rows for itself up to so many numbers: less work than waiting for the others.
ALONE = 2**15
# Outputs of a gated product: a panel holds 16 gates beside what they are multiplied with.
GATED_MULTIPLE = 32
_PER_CALL = struct.Struct("7q")  # what changes with every call: the first places of kernels_cpu/tile_layout.py
_COUNTER = 8  # int64 from one thread's counter to the next: a cache line


def supported() -> bool:
    """Whether this machine has a unit that multiplies bfloat16 and int8: AMX, which Linux must allow, or dot instructions."""
    return features.amx() or features.dots()


class TileProducts(KernelSet):
    """The kernels for all layers of a model, with bfloat16 or with int8 weights."""

    def __init__(self, int8: bool, threads: int) -> None:
        super().__init__("matrix products")
        self.int8, self.threads = int8, threads
        self.counters = np.zeros(threads * _COUNTER, np.int64)
        self.configuration = features.tile_configuration()
        # By whether silu and gate are part of them.
        self.products: dict[bool, int] = {}
        self.packers: dict[bool, int] = {}
        self._scratch = np.empty(0, np.uint8)
        self._scratch_at = 0
        dots = not features.amx()
        recipe = {}
        for gated in (False, True):
            recipe[f"product_{gated}"] = Kernel("tile_linear", "product", (int8, gated, dots))
            recipe[f"packer_{gated}"] = Kernel("tile_linear", "packer", (int8, gated, dots))
        self.start(recipe)

    def scratch(self, size: int) -> int:
        """The address of `size` bytes that any product may overwrite."""
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.uint8)
            self._scratch_at = self._scratch.ctypes.data
        return self._scratch_at

    def take(self, addresses: Mapping[str, int]) -> None:
        self.products = {gated: addresses[f"product_{gated}"] for gated in (False, True)}
        self.packers = {gated: addresses[f"packer_{gated}"] for gated in (False, True)}


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
        scratch = products.scratch(places.scratch_bytes(rows, self._inputs, threads, alone, products.int8))
        _PER_CALL.pack_into(self._arguments, 0, x_at, out_at, bias_at, scratch, rows, threads, alone)
        products.counters.fill(0)
        self._launch(threads)

    def _pack(self, weight: torch.Tensor | Rounded) -> None:
        products = self._products
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
