"""Dot products of 512-bit vectors (AVX512_BF16, AVX512_VNNI), for compiled loops: what a CPU without a matrix unit multiplies best with.

`dot` adds to each of 16 float32 the products of two bfloat16 with two others; `dot_int8` adds to each of 16 int32 the products of four
unsigned bytes with four signed ones. Written as inline assembly, since LLVM's own names for them differ by version.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir

# What unsigned bytes have too much that stand for int8: one is subtracted for every unit of the other operand.
OFFSET = 128
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)


def available() -> bool:
    """Whether this CPU has both instructions."""
    features = llvmlite.binding.get_host_cpu_features()
    if not all(features.get(name) for name in ("avx512f", "avx512bw", "avx512vl", "avx512bf16", "avx512vnni")):
        return False
    llvmlite.binding.initialize_native_asmparser()
    return True


def dot(builder: ir.IRBuilder, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """total float32 [16] + sums of pairs; a and b int32 [16], bfloat16 pairs."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _INTS, _INTS])
    return builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [total, a, b], False)


def dot_int8(builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """total int32 [16] + sums of fours; the others int32 [16], four bytes each."""
    kind = ir.FunctionType(_INTS, [_INTS] * 3)
    return builder.asm(kind, "vpdpbusd $3, $2, $0", "=v,0,v,v", [total, unsigned, signed], False)
