"""Vectors as bytes, in the number formats that clients may ask for; names and meaning as in vLLM."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
DTYPES = ("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
ENDIANNESS = ("native", "little", "big")


def packed(vector: F32, dtype: str = "float32", endianness: str = "native") -> bytes:
    """vector: float32[n]. Numbers are rounded to the nearest, of two as near to the one whose last bit is 0."""
    match dtype:
        case "float32":
            numbers: npt.NDArray[np.generic] = vector
        case "float16":
            with np.errstate(over="ignore"):
                numbers = vector.astype(np.float16)
        case "bfloat16":
            numbers = _bfloat16(vector)
        case _:
            numbers = _float8(vector, *(4, 7) if dtype == "fp8_e4m3" else (5, 15))
    if endianness != "native":
        numbers = numbers.astype(numbers.dtype.newbyteorder(">" if endianness == "big" else "<"))
    return numbers.tobytes()


def _bfloat16(vector: F32) -> npt.NDArray[np.uint16]:
    """The upper half of each float32."""
    bits = vector.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(vector), 0x7FC0, rounded).astype(np.uint16)


def _float8(vector: F32, exponent_bits: int, bias: int) -> npt.NDArray[np.uint8]:
    """OCP's 8-bit formats. What is too large becomes infinity in e5m2, and the largest number in e4m3, which has none."""
    halfway = _float8_halfway(exponent_bits, bias)
    size = np.abs(vector).astype(np.float64)
    code = np.searchsorted(halfway, size, side="left")  # a number halfway goes down ...
    tie = halfway[np.minimum(code, len(halfway) - 1)] == size
    code = np.where(tie & (code % 2 == 1), code + 1, code)  # ... unless the one above is even
    if exponent_bits == 4:
        code = np.minimum(code, 0x7E)
    code = np.where(np.isnan(vector), 0x7F, code)
    return (code | (np.signbit(vector) << 7)).astype(np.uint8)


@cache
def _float8_halfway(exponent_bits: int, bias: int) -> npt.NDArray[np.float64]:
    """The numbers halfway between those of neighbouring codes, 0 and up, as if the largest had a successor."""
    mantissa_bits = 7 - exponent_bits
    finite = 0x7E if exponent_bits == 4 else 0x7B
    codes = np.arange(finite + 2)
    exponent, mantissa = codes >> mantissa_bits, (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - float(bias)))
    halfway: npt.NDArray[np.float64] = (values[1:] + values[:-1]) / 2
    return halfway
