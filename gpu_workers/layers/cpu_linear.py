"""Matrix products of our own on the CPU: weights packed into panels, in bfloat16, int8 or int4.

torch multiplies bfloat16 without bfloat16 instructions hundreds of times slower than memory delivers the weights (docs/benchmarks.md).
These kernels widen the weights in registers and add up in float32, for any number of rows: a few at memory speed, many at the rate
of a float32 product; int4 beside bfloat16 rows goes through VNNI or the matrix unit where the CPU has them. Until they are there, torch
computes from the plain weight, which is packed and dropped at its first use after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpu_workers.device.kernel_sets import KernelSet
from gpu_workers.quantization.rounding import GROUP, Rounded
from kernels_cpu import features
from kernels_cpu import linear_layout as places
from kernels_cpu.image import launcher, run
from kernels_cpu.recipe import Kernel

FORMATS = ("bfloat16", "int8", "int4")
# Inputs are filled up with zeros to a multiple of what a loop takes at once.
MULTIPLE = {"bfloat16": 4, "int8": 4, "int4": GROUP}
# More rows than this take turns, which bounds the memory for their float32 copy.
ROWS_AT_ONCE = 1026
# From so many rows on, int4 weights are multiplied by the matrix unit where the CPU has one; TILE_BYTES of rows at a time, which shall stay
# in the second cache.
TILE_ROWS = 16
TILE_BYTES = 2 * 2**20
# Each thread lays out all rows for itself up to so many numbers: less work than waiting for the others.
ALONE = 2**15
# Threads take panels in portions: at least so many portions per thread, of at most so many panels.
PORTIONS, PORTION_MOST = 8, 16


class PanelProducts(KernelSet):
    """The kernels for weights of some formats and activations of one dtype."""

    def __init__(self, formats: set[str], dtype: torch.dtype, threads: int) -> None:
        super().__init__("matrix products")
        self.dtype, self.threads = dtype, threads
        self._addresses: Mapping[str, int] = {}
        # int4 on tiles, where there is a matrix unit; int4 by VNNI, where there are these instructions.
        int4 = dtype == torch.bfloat16 and "int4" in formats
        self.tiles, self.vnni = int4 and features.amx(), int4 and features.vnni()
        self.configuration = features.tile_configuration()
        self._scratch = np.empty(0, np.uint8)
        self._scratch_at = 0
        if formats:
            self.start(self._recipe(sorted(formats)))

    def scratch(self, size: int) -> int:
        """The address of `size` bytes that any product may overwrite."""
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.uint8)
            self._scratch_at = self._scratch.ctypes.data
        return self._scratch_at

    def launchers(self, name: str, arguments: np.ndarray) -> dict[int, Any]:
        """The kernels of a format by their blocks' height, over these arguments."""
        found = {height: self._addresses.get(f"{name}_{height}") for height in (*places.VNNI_HEIGHTS, *dict(places.HEIGHTS))}
        return {height: launcher(address, arguments) for height, address in found.items() if address is not None}

    def tile_launcher(self, name: str, arguments: np.ndarray) -> Any:
        """The kernel on tiles, or None."""
        return launcher(self._addresses["int4_tiles"], arguments) if self.tiles and name == "int4" else None

    def pack(self, name: str, arguments: np.ndarray) -> None:
        run(self._addresses[f"{name}_packer"], arguments, self.threads)

    def take(self, addresses: Mapping[str, int]) -> None:
        self._addresses = addresses

    def _recipe(self, formats: list[str]) -> dict[str, Kernel]:
        recipe, bf16 = {}, self.dtype == torch.bfloat16
        for name in formats:
            kind = places.KINDS[name]
            recipe[f"{name}_packer"] = Kernel("linear", "packer_int4") if name == "int4" else Kernel("linear", "packer", (kind,))
            if name == "int4" and self.vnni:
                recipe |= {f"{name}_{height}": Kernel("vnni", "product", (height,)) for height in places.VNNI_HEIGHTS}
                continue
            for height, unroll in places.HEIGHTS:
                recipe[f"{name}_{height}"] = Kernel("linear", "product", (kind, bf16, height, unroll))
        if self.tiles:
            recipe["int4_tiles"] = Kernel("tile_int4", "product")
        return recipe


class PanelLinear:
    """A linear whose weight [out, in] is packed into panels as soon as the kernels are there (`weight` is None from then on)."""

    def __init__(self, products: PanelProducts, name: str, weight: torch.Tensor | Rounded) -> None:
        self._products, self._name = products, name
        self.weight: torch.Tensor | Rounded | None = weight
        self._outputs, self._inputs = (weight.numbers if isinstance(weight, Rounded) else weight).shape
        self._panels = self._scales = np.empty(0)
        self._arguments = np.zeros(0, np.int64)
        self._launch: dict[int, Any] = {}
        self._launch_tiles: Any = None
        if products.ready:
            self._pack()

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.weight is not None:
            if not self._products.ready:
                weight = self.weight.restored(x.dtype) if isinstance(self.weight, Rounded) else self.weight
                return F.linear(x, weight, bias)
            self._pack()
        rows = x.shape[0]
        out = torch.empty(rows, self._outputs, dtype=x.dtype)
        a, size = self._arguments, x.element_size()
        threads = min(self._products.threads, torch.get_num_threads())
        a[places.BIAS], a[places.THREADS] = 0 if bias is None else bias.data_ptr(), threads
        portions = self._outputs // (threads * PORTIONS * places.PANEL)
        a[places.PORTION] = max(1, min(PORTION_MOST, portions))
        on_tiles = self._launch_tiles is not None and rows >= TILE_ROWS
        at_once = max(32, TILE_BYTES // (2 * self._inputs) // 32 * 32) if on_tiles else ROWS_AT_ONCE
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            a[places.X], a[places.OUT] = x.data_ptr() + first * self._inputs * size, out.data_ptr() + first * self._outputs * size
            if on_tiles:
                self._multiply_on_tiles(count, threads)
            elif self._name == "int4" and self._products.vnni:
                self._multiply_by_vnni(count, threads)
            else:
                self._multiply(count, threads)
        return out

    def _multiply_on_tiles(self, rows: int, threads: int) -> None:
        a, products = self._arguments, self._products
        alone = threads == 1 or rows * self._inputs <= ALONE
        a[places.ROWS], a[places.ALONE], a[places.COUNTER] = rows, alone, 0
        a[places.SCRATCH] = products.scratch(places.tile_scratch_bytes(rows, int(a[places.PADDED]), threads, alone))
        self._launch_tiles(threads)

    def _multiply_by_vnni(self, rows: int, threads: int) -> None:
        a, products = self._arguments, self._products
        height = next((height for height in places.VNNI_HEIGHTS if rows <= height), places.VNNI_HEIGHTS[-1])
        alone = threads == 1 or rows * self._inputs <= ALONE
        a[places.ROWS], a[places.ALONE], a[places.COUNTER] = rows, alone, 0
        a[places.SCRATCH] = products.scratch(places.vnni_scratch_bytes(rows, int(a[places.PADDED]), threads, alone, height))
        self._launch[height](threads)

    def _multiply(self, rows: int, threads: int) -> None:
        a = self._arguments
        height = next((height for height, _ in places.HEIGHTS if rows <= height), 4 if 6 < rows <= 8 else 6)
        # int4 adds a number to every group of inputs.
        numbers = -(-rows // height) * height * (int(a[places.PADDED]) // GROUP * (GROUP + 1) + GROUP)
        alone = numbers <= ALONE or threads == 1
        a[places.ROWS], a[places.ALONE], a[places.COUNTER] = rows, alone, 0
        a[places.SCRATCH] = self._products.scratch(threads * places.SUMS_BYTES + numbers * 4 * (threads if alone else 1))
        self._launch[height](threads)

    def _pack(self) -> None:
        weight, products = self.weight, self._products
        multiple = MULTIPLE[self._name]
        padded = -(-self._inputs // multiple) * multiple
        a = np.zeros(places.NUM_ARGUMENTS, np.int64)
        a[places.INPUTS], a[places.PADDED], a[places.OUTPUTS], a[places.THREADS] = self._inputs, padded, self._outputs, products.threads
        if isinstance(weight, Rounded):
            self._scales = weight.scales.numpy()
            a[places.SCALES] = self._scales.ctypes.data
            plain = weight.numbers.contiguous()
        else:
            assert weight is not None
            plain = weight.contiguous()
        # numpy asks for huge pages, which spare the CPU a third of its misses in the page table.
        self._panels = np.empty(places.packed_bytes(self._name, self._outputs, padded), np.uint8)
        a[places.X], a[places.OUT] = plain.data_ptr(), self._panels.ctypes.data
        products.pack(self._name, a)
        if self._name == "int4":
            self._scales = np.empty(0)
        a[places.WEIGHTS], a[places.NEXT] = self._panels.ctypes.data, a.ctypes.data + places.COUNTER * a.itemsize
        a[places.CONFIGURATION] = products.configuration.ctypes.data
        self._arguments, self._launch, self.weight = a, products.launchers(self._name, a), None
        self._launch_tiles = products.tile_launcher(self._name, a)
