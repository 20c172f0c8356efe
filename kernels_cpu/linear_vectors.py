"""The inner loops of the CPU's matrix products, written out as vector code.

Weights lie in panels (linear_layout.py). Partial sums stay in registers over all inputs. LLVM splits the vectors where the CPU has
narrower ones (Arm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu.linear_layout import BFLOAT16, FLOAT32, GROUP, GROUP_BYTES, LANES, NIBBLES, PANEL, WORDS, panel_bytes
from kernels_cpu.vectors import prefetch

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_PREFETCH_BYTES = 1024


def _load(builder: ir.IRBuilder, address: ir.Value, offset: int, kind: ir.Type, align: int) -> ir.Value:
    place = builder.inttoptr(builder.add(address, _I64(offset)), kind.as_pointer())
    value = builder.load(place, typ=kind)
    value.align = align
    return value


def _store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: int, align: int = 4) -> None:
    builder.store(value, builder.inttoptr(builder.add(address, _I64(offset)), value.type.as_pointer()), align=align)


def _all(kind: ir.VectorType, number: int) -> ir.Constant:
    return ir.Constant(kind, [number] * LANES)


def _spread(builder: ir.IRBuilder, address: ir.Value, offset: int) -> ir.Value:
    """The float32 there in every lane."""
    number = _load(builder, address, offset, _F32, 4)
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), _all(ir.VectorType(_I32, LANES), 0))


def _multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


def _split_bf16(builder: ir.IRBuilder, pairs: ir.Value) -> list[ir.Value]:
    """LANES pairs of bfloat16 as two float32 vectors: the low halves, the high halves."""
    low = builder.shl(pairs, _all(_INTS, 16))
    high = builder.and_(pairs, _all(_INTS, 0xFFFF0000))
    return [builder.bitcast(low, _FLOATS), builder.bitcast(high, _FLOATS)]


def _weights(builder: ir.IRBuilder, address: ir.Value, offset: int, kind: int) -> list[ir.Value]:
    """One input's weights of a panel as two float32 vectors; int8 without its scale."""
    if kind == FLOAT32:
        return [_load(builder, address, offset + part * LANES * 4, _FLOATS, 4) for part in range(2)]
    if kind == BFLOAT16:
        return _split_bf16(builder, _load(builder, address, offset, _INTS, 4))
    small = ir.VectorType(_I8, LANES)
    parts = [_load(builder, address, offset + part * LANES, small, 1) for part in range(2)]
    return [builder.sitofp(builder.sext(part, _INTS), _FLOATS) for part in parts]


def _prefetch(builder: ir.IRBuilder, address: ir.Value, size: int) -> None:
    """Ask for the cache lines of `size` bytes a little ahead of `address`."""
    for line in range(0, size, 64):
        prefetch(builder, builder.add(address, _I64(_PREFETCH_BYTES + line)), cache=1)


def _variables(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> list[ir.Value]:
    return [cgutils.alloca_once_value(builder, value) for value in values]


def _sum(builder: ir.IRBuilder, variables: Sequence[ir.Value]) -> ir.Value:
    """The sum of what the variables hold, neighbours first."""
    values = [builder.load(variable) for variable in variables]
    while len(values) > 1:
        values = [builder.fadd(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def _literals(*arguments: Any) -> bool:
    return all(isinstance(argument, types.IntegerLiteral) for argument in arguments)


@intrinsic(prefer_literal=True)
def multiply_panel(_context, x, weights, count, sums, rows, unroll, kind):  # type: ignore[no-untyped-def]
    """sums[r, j] = x[:, r] . weights[:, j], over `count` inputs, a multiple of `unroll`.

    Addresses of float32 x [count, rows], weights [count, PANEL] of `kind` and float32 sums [rows, PANEL].
    """
    if not _literals(rows, unroll, kind):
        return None
    num_rows, at_once, which = rows.literal_value, unroll.literal_value, kind.literal_value
    step_bytes = panel_bytes(which)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        x_at, weights_at, inputs, sums_at = arguments[:4]
        zero = _all(_FLOATS, 0)
        # One set of sums per input of an unrolled step while rows are few: a chain of additions alone would wait for each of them.
        chains = at_once if num_rows * 2 * at_once <= 12 else 1
        totals = _variables(builder, [zero] * (num_rows * 2 * chains))
        with cgutils.for_range_slice(builder, _I64(0), inputs, _I64(at_once)) as (index, _):
            x_here = builder.add(x_at, builder.mul(index, _I64(num_rows * 4)))
            weights_here = builder.add(weights_at, builder.mul(index, _I64(step_bytes)))
            if which != FLOAT32:
                _prefetch(builder, weights_here, at_once * step_bytes)
            for step in range(at_once):
                pair = _weights(builder, weights_here, step * step_bytes, which)
                for row in range(num_rows):
                    value = _spread(builder, x_here, (step * num_rows + row) * 4)
                    for part in range(2):
                        total = totals[((step % chains) * num_rows + row) * 2 + part]
                        builder.store(_multiply_add(builder, value, pair[part], builder.load(total)), total)
        for row in range(num_rows):
            for part in range(2):
                own = [totals[(chain * num_rows + row) * 2 + part] for chain in range(chains)]
                _store(builder, _sum(builder, own), sums_at, (row * PANEL + part * LANES) * 4)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, rows, unroll, kind), code


@intrinsic(prefer_literal=True)
def multiply_panel_int4(_context, x, weights, groups, sums, rows):  # type: ignore[no-untyped-def]
    """sums[r, j] = x[r] . weights[:, j] over `groups` groups of int4 inputs.

    Addresses of float32 x [groups, GROUP + 1, rows], weights and float32 sums [rows, PANEL]. Four bits are used where they stand in their
    word, as numbers 0 to 15: x is divided by what their place multiplies them with (nibble_factor), and a group's last entry of x is -8
    times the sum of the undivided ones, which makes them -8 to 7.
    """
    if not _literals(rows):
        return None
    num_rows = rows.literal_value
    chains = max(1, 4 // num_rows)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        x_at, weights_at, count, sums_at = arguments[:4]
        zero = _all(_FLOATS, 0)
        totals = _variables(builder, [zero] * (num_rows * 2))
        partial = _variables(builder, [zero] * (num_rows * 2 * chains))
        with cgutils.for_range(builder, count) as group:
            x_here = builder.add(x_at, builder.mul(group.index, _I64((GROUP + 1) * num_rows * 4)))
            weights_here = builder.add(weights_at, builder.mul(group.index, _I64(GROUP_BYTES)))
            _prefetch(builder, weights_here, GROUP_BYTES)
            for row in range(num_rows):
                start = _spread(builder, x_here, (GROUP * num_rows + row) * 4)
                for part in range(2):
                    for chain in range(chains):
                        builder.store(zero if chain else start, partial[(chain * num_rows + row) * 2 + part])
            with cgutils.for_range(builder, _I64(WORDS)) as word:
                words_at = builder.add(weights_here, builder.mul(word.index, _I64(PANEL * 4)))
                x_word = builder.add(x_here, builder.mul(word.index, _I64(NIBBLES * num_rows * 4)))
                words = [_load(builder, words_at, part * LANES * 4, _INTS, 4) for part in range(2)]
                for nibble in range(NIBBLES):
                    pair = [_nibble(builder, value, nibble) for value in words]
                    for row in range(num_rows):
                        value = _spread(builder, x_word, (nibble * num_rows + row) * 4)
                        for part in range(2):
                            total = partial[((nibble % chains) * num_rows + row) * 2 + part]
                            builder.store(_multiply_add(builder, value, pair[part], builder.load(total)), total)
            scales = _split_bf16(builder, _load(builder, weights_here, WORDS * PANEL * 4, _INTS, 4))
            for row in range(num_rows):
                for part in range(2):
                    own = [partial[(chain * num_rows + row) * 2 + part] for chain in range(chains)]
                    total = totals[row * 2 + part]
                    builder.store(_multiply_add(builder, _sum(builder, own), scales[part], builder.load(total)), total)
        for row in range(num_rows):
            for part in range(2):
                _store(builder, builder.load(totals[row * 2 + part]), sums_at, (row * PANEL + part * LANES) * 4)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, rows), code


def _nibble(builder: ir.IRBuilder, words: ir.Value, place: int) -> ir.Value:
    """Four bits of each word as a float32 vector, multiplied by what their place is worth; the highest ones are moved down."""
    if place == NIBBLES - 1:
        return builder.uitofp(builder.lshr(words, _all(_INTS, 28)), _FLOATS)
    return builder.sitofp(builder.and_(words, _all(_INTS, 0xF << (4 * place))), _FLOATS)


def nibble_factor(place: int) -> float:
    return 1.0 if place == NIBBLES - 1 else 16.0**-place


@intrinsic
def fetch_add(_context, address, number):  # type: ignore[no-untyped-def]
    """Add `number` to the int64 at `address` as one indivisible act; what was there before."""

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        place = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), code
