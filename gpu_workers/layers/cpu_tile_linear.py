"""Matrix products of our own in bfloat16 on CPUs with a matrix unit (device/cpu_tiles.py).

Against oneDNN's on the same weights: a decode step of few rows takes 0.5 to 0.6 of the time, since memory is asked for ahead and lies in
huge pages; from 64 rows on both are alike (docs/benchmarks.md). Until the kernels are compiled, torch computes from the plain weight.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpu_workers.layers.ops import Ops

log = logging.getLogger(__name__)

# More rows than so many bytes take turns, which bounds the memory for their copy as tiles.
ROWS_BYTES = 5 * 2**20
# Each thread lays out all rows for itself up to so many numbers: less work than waiting for the others.
ALONE = 2**15
# Outputs of a gated product: a panel holds 16 gates beside what they are multiplied with.
GATED_MULTIPLE = 32
_COUNTER = 8  # int64 from one thread's counter to the next: a cache line


def supported() -> bool:
    """Whether torch sees a matrix unit; what it may not be used for shows when the kernels are made."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return ask is not None and bool(ask())


class TileProducts:
    """The kernels for all layers of a model; `ready` once they are compiled, in a thread of their own."""

    def __init__(self, threads: int) -> None:
        self.ready = False
        self.threads = threads
        self.kernels: Any = None
        self.counters = np.zeros(threads * _COUNTER, np.int64)
        self.configuration = np.empty(0, np.uint8)
        # By whether silu and gate are part of them.
        self.products: dict[bool, Any] = {}
        self.packers: dict[bool, Any] = {}
        self._scratch = np.empty(0, np.uint8)
        self._thread = threading.Thread(target=self._compile, name="compile-products", daemon=True)
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Whether the kernels are ready within `timeout` seconds."""
        self._thread.join(timeout)
        return self.ready

    def scratch(self, size: int) -> int:
        """The address of `size` bytes that any product may overwrite."""
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.uint8)
        return int(self._scratch.ctypes.data)

    def _compile(self) -> None:
        began = time.monotonic()
        try:
            from gpu_workers.device import cpu_tiles

            if not cpu_tiles.available():
                log.info("the matrix unit may not be used: products stay with torch")
                return
            from gpu_workers.layers import cpu_tile_kernels as kernels

            self.kernels, self.configuration = kernels, cpu_tiles.configuration()
            try:
                self._build(True)
            except RuntimeError:  # numba found no directory for its cache
                self._build(False)
        except Exception as error:
            # Whatever numba or a missing libgomp may raise: torch computes the same, more slowly.
            log.warning("matrix products stay with torch: %s: %s", type(error).__name__, error)
            return
        self.ready = True
        log.debug("matrix products compiled in %.1f s", time.monotonic() - began)

    def _build(self, cache: bool) -> None:
        for gated in (False, True):
            self.products[gated] = self.kernels.product(gated, cache)
            self.packers[gated] = self.kernels.packer(gated, cache)


class TileLinear:
    """A linear whose weight [out, in] is packed as soon as the kernels are there (`weight` is None from then on).

    gated: it gives silu(first half of the outputs) * second half; out is a multiple of GATED_MULTIPLE then.
    """

    def __init__(self, products: TileProducts, weight: torch.Tensor, gated: bool = False) -> None:
        self._products, self._gated = products, gated
        self.weight: torch.Tensor | None = weight
        self._outputs, self._inputs = weight.shape
        self._panels = np.empty(0, np.uint8)
        self._arguments = np.zeros(0, np.int64)
        self._launch: Any = None
        if products.ready:
            self._pack(weight)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.weight is not None:
            if not self._products.ready:
                plain = F.linear(x, self.weight, bias)
                return Ops().gated(plain, "silu") if self._gated else plain
            self._pack(self.weight)
        x = x.contiguous()
        rows = x.shape[0]
        width = self._outputs // 2 if self._gated else self._outputs
        out = torch.empty(rows, width, dtype=x.dtype)
        a, places = self._arguments, self._products.kernels
        threads = min(self._products.threads, torch.get_num_threads())
        a[places.BIAS], a[places.THREADS] = 0 if bias is None else bias.data_ptr(), threads
        at_once = max(32, ROWS_BYTES // (2 * self._inputs) // 32 * 32)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            a[places.X], a[places.OUT] = x.data_ptr() + first * self._inputs * 2, out.data_ptr() + first * width * 2
            self._multiply(count, threads)
        return out

    def _multiply(self, rows: int, threads: int) -> None:
        a, places, products = self._arguments, self._products.kernels, self._products
        alone = threads == 1 or rows * self._inputs <= ALONE
        a[places.ROWS], a[places.ALONE] = rows, alone
        a[places.SCRATCH] = products.scratch(places.scratch_bytes(rows, self._inputs, threads, alone))
        products.counters[:] = 0
        self._launch(threads)

    def _pack(self, weight: torch.Tensor) -> None:
        from gpu_workers.device.cpu_native import launcher, run

        products, places = self._products, self._products.kernels
        a = np.zeros(places.NUM_ARGUMENTS, np.int64)
        a[places.INPUTS], a[places.OUTPUTS], a[places.THREADS] = self._inputs, self._outputs, products.threads
        plain = weight.contiguous()
        # numpy asks for huge pages, which spare the CPU most misses in its page table.
        self._panels = np.empty(places.packed_bytes(self._outputs, self._inputs), np.uint8)
        a[places.X], a[places.OUT] = plain.data_ptr(), self._panels.ctypes.data
        run(products.packers[self._gated], a, products.threads)
        a[places.WEIGHTS], a[places.COUNTERS] = self._panels.ctypes.data, products.counters.ctypes.data
        a[places.CONFIGURATION] = products.configuration.ctypes.data
        self._arguments, self._launch, self.weight = a, launcher(products.products[self._gated], a), None
