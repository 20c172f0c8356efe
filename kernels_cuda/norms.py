"""Launchers of src/norms.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels_cuda.kernel import Source, dtype_macro, product, require
from kernels_cuda.launch import launch

VECTOR = 8  # elements of one 16-byte access
MAX_HIDDEN = 1024 * 4 * VECTOR  # threads of a block, vectors per thread

# 64 registers let a block of 1,024 threads start at all.
SOURCE = Source(
    "norms.cu",
    (*product({"DTYPE_BF16": [1]}), *product({"DTYPE_FP16": [1]})),
    {"add_rms_norm": 64, "layer_norm": 64},
)


def add_rms_norm(residual: Any, delta: Any | None, weight: Any, out: Any, eps: float, scale: float = 1.0, offset: float = 0.0) -> None:
    """residual += scale * delta, in place (not at all for None); out = residual / rms(residual) * (weight + offset).

    residual, delta, out: [rows, hidden], weight [hidden], contiguous and of one dtype; out may be delta. offset is 1 for models that store
    weight - 1. Raises UnsupportedShape.
    """
    hidden, kernel = _check(residual, "add_rms_norm", out, weight, *(() if delta is None else (delta,)))
    if not residual.shape[0]:
        return
    pointers = (residual.data_ptr(), 0 if delta is None else delta.data_ptr(), weight.data_ptr(), out.data_ptr())
    launch(kernel, (residual.shape[0],), (_threads(hidden),), 0, *pointers, np.int32(hidden), *map(np.float32, (scale, offset, eps)))


def layer_norm(x: Any, weight: Any | None, bias: Any | None, out: Any, eps: float) -> None:
    """out = (x - mean) / sqrt(variance + eps) * weight + bias; None is 1 and 0. Shapes as for add_rms_norm; out may be x."""
    hidden, kernel = _check(x, "layer_norm", out, *(t for t in (weight, bias) if t is not None))
    if not x.shape[0]:
        return
    pointers = (x.data_ptr(), *(0 if t is None else t.data_ptr() for t in (weight, bias)), out.data_ptr())
    launch(kernel, (x.shape[0],), (_threads(hidden),), 0, *pointers, np.int32(hidden), np.float32(eps))


def _check(x: Any, entry: str, *others: Any) -> tuple[int, Any]:
    hidden = x.shape[-1]
    require(hidden % VECTOR == 0 and 0 < hidden <= MAX_HIDDEN, f"{entry}: hidden size {hidden} is not a multiple of 8 up to {MAX_HIDDEN}")
    for tensor in (x, *others):
        require(tensor.dtype == x.dtype, f"{entry}: dtypes differ ({tensor.dtype}, {x.dtype})")
        require(
            tensor.is_contiguous() and tensor.shape[-1] == hidden, f"{entry}: needs contiguous rows of {hidden}, got {tuple(tensor.shape)}"
        )
        require(tensor.ndim == 1 or tensor.shape == x.shape, f"{entry}: shapes differ ({tuple(tensor.shape)}, {tuple(x.shape)})")
    return hidden, SOURCE.kernel(entry, ((f"DTYPE_{dtype_macro(x.dtype, entry)}", "1"),))


def _threads(hidden: int) -> int:
    """As many threads as vectors, whole warps; rows above 8,192 give each thread several. A function of hidden alone."""
    vectors = hidden // VECTOR
    return min(1024, -(-vectors // 32) * 32)
