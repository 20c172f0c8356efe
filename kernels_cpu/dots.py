"""Dot products of vectors (AVX512_BF16, AVX512_VNNI), for compiled loops: what a CPU without a matrix unit multiplies best with.

`dot` adds to each of 16 or 8 float32 the products of two bfloat16 with two others; `dot_int8` adds to each of 16 int32 the products of
four unsigned bytes with four signed ones. Written as inline assembly, since LLVM's own names for them differ by version.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

from kernels_cpu.vectors import at, everywhere, prefetch, put, spread

# What unsigned bytes have too much that stand for int8: one is subtracted for every unit of the other operand.
OFFSET = 128
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_INTS = ir.VectorType(_I32, 16)
_TILE, _ROW = 1024, 64


def dot(builder: ir.IRBuilder, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """total float32 [16 or 8] + sums of pairs; a and b int32 of the same, bfloat16 pairs."""
    kind = ir.FunctionType(total.type, [total.type, a.type, b.type])
    return builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [total, a, b], False)


def rounded(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """float32 [16] as bfloat16 int16 [16]: to nearest even, a NaN stays one, what is less than any normal number becomes zero."""
    kind = ir.FunctionType(ir.VectorType(ir.IntType(16), 16), [value.type])
    return builder.asm(kind, "vcvtneps2bf16 $1, $0", "=v,v", [value], False)


def dot_int8(builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """total int32 [16] + sums of fours; the others int32 [16], four bytes each."""
    kind = ir.FunctionType(_INTS, [_INTS] * 3)
    return builder.asm(kind, "vpdpbusd $3, $2, $0", "=v,0,v,v", [total, unsigned, signed], False)


def multiply_tiles(
    builder: ir.IRBuilder, rows: Sequence[tuple[ir.Value, int]], parts: int, x_step: int, vectors: ir.Value, vectors_step: int,
    count: ir.Value, sums: ir.Value, fresh: ir.Value | None, int8: bool = False, lanes: int = 16, ahead: ir.Value | None = None,
    part_bytes: int = _TILE, group_bytes: int = _ROW, ahead_step: ir.Value | None = None,
) -> None:  # fmt: skip
    """sums[row, part] += row . part over `count` steps of 64 bytes of inputs, in the layout of tiles (tiles.py).

    rows: address of a row's 64 bytes, x_step bytes apart from step to step, and where its sums lie, in bytes after `sums`. vectors: `parts`
    tiles a step, `part_bytes` apart, their rows `group_bytes` apart, steps `vectors_step` bytes apart; a part's sums are a tile behind
    those of the part before. The sums begin with zero where `fresh` (None: always). All stay in registers: rows times parts is 24 at most.
    lanes: 16, or 8 where the other half of each part does not matter. ahead: from there on memory is asked for, a line with each four
    bytes of inputs: more at once would wait for one another. ahead_step: bytes from one such line to the next, 64 where there is none.
    """
    ahead_step = _I64(_ROW) if ahead_step is None else ahead_step
    ints = ir.VectorType(_I32, lanes)
    kind, product = (ints, dot_int8) if int8 else (ir.VectorType(ir.FloatType(), lanes), dot)
    zero = everywhere(kind, 0)
    # One sum each, whatever the number of rows: a row's bits do not depend on how many others there are.
    totals = []
    for _, place in rows:
        totals.append([cgutils.alloca_once(builder, kind) for _ in range(parts)])
        for part, variable in enumerate(totals[-1]):
            before = zero
            if fresh is not None:
                before = builder.select(fresh, zero, at(builder, sums, place + part * _TILE, kind))
            builder.store(before, variable)
    with cgutils.for_range(builder, count) as loop:
        here = [builder.add(address, builder.mul(loop.index, _I64(x_step))) for address, _ in rows]
        vectors_here = builder.add(vectors, builder.mul(loop.index, _I64(vectors_step)))
        lines = None if ahead is None else builder.add(ahead, builder.mul(loop.index, builder.mul(ahead_step, _I64(_ROW // 4))))
        for group in range(_ROW // 4):
            if lines is not None:
                prefetch(builder, lines)
                lines = builder.add(lines, ahead_step)
            operands = [at(builder, vectors_here, part * part_bytes + group * group_bytes, ints) for part in range(parts)]
            for address, of_row in zip(here, totals):
                inputs = spread(builder, at(builder, address, group * 4, _I32), ints)
                for operand, variable in zip(operands, of_row):
                    builder.store(product(builder, builder.load(variable), operand, inputs), variable)
    for (_, place), of_row in zip(rows, totals):
        for part, variable in enumerate(of_row):
            put(builder, builder.load(variable), sums, place + part * _TILE)
