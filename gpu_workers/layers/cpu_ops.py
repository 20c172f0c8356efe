"""Fused small operations for the CPU: one pass over memory and one wake-up of the threads instead of up to seven.

torch serves them until the kernels are compiled, and everything the kernels do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpu_workers.device.kernel_sets import KernelSet
from gpu_workers.layers.ops import Ops
from kernels_cpu.image import launcher
from kernels_cpu.recipe import Kernel

# Below this many elements the calling thread does it alone: waking the others costs more.
WORTH_THREADS = 2**16
# The same for a search: it comes after the last product, when the other threads may sleep already.
WORTH_SEARCHING = 2**20


class CPUOps(KernelSet, Ops):
    """Contract of Ops; x and gate_up must be contiguous, as they are in the decoder."""

    def __init__(self, dtype: torch.dtype, threads: int) -> None:
        super().__init__("small operations")
        self._dtype, self._threads = dtype, threads
        self._arguments = np.zeros(16, np.int64)
        self._norm: Any = None
        self._add_norm: Any = None
        self._gated: Any = None
        self._argmax: dict[torch.dtype, Any] = {}
        if dtype in (torch.float32, torch.bfloat16):
            bf16 = dtype == torch.bfloat16
            recipe = {
                "norm": Kernel("ops", "norm", (bf16, False)),
                "add_norm": Kernel("ops", "norm", (bf16, True)),
                "silu_gated": Kernel("ops", "silu_gated", (bf16,)),
                # Logits that something was done to are float32.
                "argmax_float32": Kernel("ops", "argmax", (False,)),
            }
            if bf16:
                recipe["argmax_bfloat16"] = Kernel("ops", "argmax", (True,))
            self.start(recipe)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not self.ready:
            return super().rms_norm(x, weight, eps)
        return self._normed(self._norm, x, x, 1.0, weight, eps)

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, scale: float, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not self.ready:
            return super().add_rms_norm(x, delta, scale, weight, eps)
        return self._normed(self._add_norm, x, delta, scale, weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor:
        if not self.ready or activation != "silu":
            return super().gated(gate_up, activation)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, width, dtype=gate_up.dtype)
        a = self._arguments
        a[0], a[3], a[4], a[5] = gate_up.data_ptr(), out.data_ptr(), rows, width
        self._launch(self._gated, rows * width)
        return out

    def most_likely(self, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        if not self.ready or logits.dtype not in self._argmax or not logits.is_contiguous():
            return super().most_likely(logits)
        ids, top = np.empty(logits.shape[0], np.int64), np.empty(logits.shape[0], np.float32)
        a = self._arguments
        a[0], a[1], a[3], a[4], a[5] = logits.data_ptr(), ids.ctypes.data, top.ctypes.data, *logits.shape
        a[6] = threads = self._threads if logits.numel() >= WORTH_SEARCHING else 1
        self._argmax[logits.dtype](threads)
        return ids, top

    def _normed(self, kernel: Any, x: torch.Tensor, delta: torch.Tensor, scale: float, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = torch.empty_like(x)
        a = self._arguments
        a[0], a[1], a[2], a[3] = x.data_ptr(), delta.data_ptr(), weight.data_ptr(), out.data_ptr()
        a[4], a[5] = x.shape
        a[7], a[8] = np.array((eps, scale), np.float32).view(np.uint32)
        self._launch(kernel, x.numel())
        return out

    def _launch(self, kernel: Any, elements: int) -> None:
        threads = self._threads if elements >= WORTH_THREADS else 1
        self._arguments[6] = threads
        kernel(threads)

    def take(self, addresses: Mapping[str, int]) -> None:
        launchers = {name: launcher(address, self._arguments) for name, address in addresses.items()}
        self._norm, self._add_norm, self._gated = (launchers[name] for name in ("norm", "add_norm", "silu_gated"))
        self._argmax = {dtype: launchers[f"argmax_{str(dtype).removeprefix('torch.')}"] for dtype in {self._dtype, torch.float32}}
