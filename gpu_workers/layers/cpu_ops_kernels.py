"""The numba source of the CPU's fused small operations (cpu_ops.py). Imported only by the thread that compiles it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc

from gpu_workers.device.cpu_native import as_float, exponential, narrow, pointer, signature, thread_number, widen

FAST = {"reassoc", "contract", "nsz", "arcp"}


def norm(bf16: bool, add: bool, cache: bool) -> Any:
    """RMS norm of rows, after adding a scaled second operand to them in place if `add`.

    Arguments: x, delta, weight, out, rows, hidden, threads, bits of eps, bits of scale.
    """
    dtype, size = (np.uint16, 2) if bf16 else (np.float32, 4)

    @cfunc(signature, nopython=True, cache=cache, fastmath=FAST, error_model="numpy")
    def kernel(address):  # type: ignore[no-untyped-def]
        a = carray(address, (16,), np.int64)
        rows, hidden, threads, me = a[4], a[5], a[6], thread_number()
        eps, scale = as_float(np.uint32(a[7])), as_float(np.uint32(a[8]))
        weight = carray(pointer(a[2]), (hidden,), dtype)
        for row in range(rows * me // threads, rows * (me + 1) // threads):
            x = carray(pointer(a[0] + row * hidden * size), (hidden,), dtype)
            out = carray(pointer(a[3] + row * hidden * size), (hidden,), dtype)
            squares = np.float32(0.0)
            if add:
                delta = carray(pointer(a[1] + row * hidden * size), (hidden,), dtype)
                for i in range(hidden):
                    if bf16:
                        x[i] = narrow(widen(x[i]) + scale * widen(delta[i]))
                    else:
                        x[i] += scale * delta[i]
            for i in range(hidden):
                value = widen(x[i]) if bf16 else x[i]
                squares += value * value
            factor = np.float32(1.0) / np.sqrt(squares / np.float32(hidden) + eps)
            for i in range(hidden):
                if bf16:
                    out[i] = narrow(widen(x[i]) * factor * widen(weight[i]))
                else:
                    out[i] = x[i] * factor * weight[i]

    return kernel


def silu_gated(bf16: bool, cache: bool) -> Any:
    """silu(gate) * up. Arguments: gate_up, 0, 0, out, rows, width, threads."""
    dtype, size = (np.uint16, 2) if bf16 else (np.float32, 4)

    @cfunc(signature, nopython=True, cache=cache, fastmath=FAST, error_model="numpy")
    def kernel(address):  # type: ignore[no-untyped-def]
        a = carray(address, (16,), np.int64)
        rows, width, threads, me = a[4], a[5], a[6], thread_number()
        for row in range(rows * me // threads, rows * (me + 1) // threads):
            gates = carray(pointer(a[0] + row * 2 * width * size), (width,), dtype)
            ups = carray(pointer(a[0] + (row * 2 + 1) * width * size), (width,), dtype)
            out = carray(pointer(a[3] + row * width * size), (width,), dtype)
            for i in range(width):
                gate, up = (widen(gates[i]), widen(ups[i])) if bf16 else (gates[i], ups[i])
                e = exponential(-abs(gate))
                value = gate * up * (np.float32(1.0) if gate >= np.float32(0.0) else e) / (np.float32(1.0) + e)
                out[i] = narrow(value) if bf16 else value

    return kernel
