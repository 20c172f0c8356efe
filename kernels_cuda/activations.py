"""Launcher of src/activations.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels_cuda.kernel import Source, dtype_macro, product, require
from kernels_cuda.launch import launch

VECTOR = 8  # elements of one 16-byte access
ENTRIES = {"silu": "silu_mul", "gelu_tanh": "gelu_tanh_mul", "gelu": "gelu_mul"}
SOURCE = Source(
    "activations.cu",
    (*product({"DTYPE_BF16": [1]}), *product({"DTYPE_FP16": [1]})),
    dict.fromkeys(ENTRIES.values(), 48),
)


def gated(gate_up: Any, out: Any, activation: str) -> None:
    """out [rows, width] = activation(gate) * up of gate_up [rows, 2 * width], gate first; contiguous, one dtype.

    activation: silu, gelu (by erf) or gelu_tanh. Raises UnsupportedShape.
    """
    rows, width = out.shape
    require(activation in ENTRIES, f"no gated activation {activation!r}; there are {', '.join(ENTRIES)}")
    require(width % VECTOR == 0, f"gated activation: width {width} is not a multiple of {VECTOR}")
    require(tuple(gate_up.shape) == (rows, 2 * width), f"gated activation: input {tuple(gate_up.shape)} for output {(rows, width)}")
    require(gate_up.dtype == out.dtype, f"gated activation: dtypes differ ({gate_up.dtype}, {out.dtype})")
    require(gate_up.is_contiguous() and out.is_contiguous(), "gated activation: tensors must be contiguous")
    if not rows:
        return
    kernel = SOURCE.kernel(ENTRIES[activation], ((f"DTYPE_{dtype_macro(out.dtype, 'gate_up')}", "1"),))
    threads = min(256, -(-width // VECTOR // 32) * 32)
    launch(kernel, (rows, -(-width // (VECTOR * threads))), (threads,), 0, gate_up.data_ptr(), out.data_ptr(), np.int32(width))
