"""The inner loops of attention, written out as vector code.

LLVM makes scalar code of them when numba hands them over as loops (measured: ten times slower), so these intrinsics build the
vectors themselves: as wide as 16 floats, split by LLVM where the CPU has narrower ones. Sizes are literals, so everything over heads and
dimensions is unrolled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu.vectors import put, read, totals, write

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
# Query heads whose sums are kept in registers together while values stream by: AVX-512 has 32 registers.
_ACCUMULATORS = 20


class _Vectors:
    """Loads and stores of head_dim numbers as a few vectors. `lanes`: the widest power of two up to 16 that divides head_dim."""

    def __init__(self, builder: ir.IRBuilder, dim: int) -> None:
        self.builder = builder
        self.lanes = next(width for width in (16, 8, 4, 2, 1) if dim % width == 0)
        self.count = dim // self.lanes
        self.float = ir.VectorType(_F32, self.lanes)

    def load(self, address: ir.Value, offset: int, bf16: bool) -> list[ir.Value]:
        """head_dim numbers from `offset` numbers after `address`, widened to float32."""
        kind = ir.VectorType(_I16, self.lanes) if bf16 else self.float
        size = 2 if bf16 else 4
        loaded = []
        for part in range(self.count):
            place = self.builder.add(address, _I64((offset + part * self.lanes) * size))
            value = self.builder.load(self.builder.inttoptr(place, kind.as_pointer()), typ=kind)
            value.align = size
            loaded.append(self._widen(value) if bf16 else value)
        return loaded

    def store(self, values: list[ir.Value], address: ir.Value, offset: int) -> None:
        for part, value in enumerate(values):
            place = self.builder.add(address, _I64((offset + part * self.lanes) * 4))
            self.builder.store(value, self.builder.inttoptr(place, self.float.as_pointer()), align=4)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def spread(self, number: ir.Value) -> ir.Value:
        """A float32 in every lane."""
        first = self.builder.insert_element(ir.Constant(self.float, ir.Undefined), number, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(self.float, ir.Undefined), zeros)

    def total(self, value: ir.Value) -> ir.Value:
        """The sum of a vector's lanes, halves onto each other."""
        width = self.lanes
        while width > 1:
            width //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            low, high = (ir.Constant(ir.VectorType(_I32, width), list(range(first, first + width))) for first in (0, width))
            value = self.builder.fadd(
                self.builder.shuffle_vector(value, undefined, low), self.builder.shuffle_vector(value, undefined, high)
            )
        return self.builder.extract_element(value, _I32(0))

    def dot(self, query: list[ir.Value], key: list[ir.Value]) -> ir.Value:
        """Lane by lane products, added up over the vectors."""
        products = None
        for value, other in zip(query, key):
            products = self.builder.fmul(value, other) if products is None else self.multiply_add(value, other, products)
        return products

    def _widen(self, bits: ir.Value) -> ir.Value:
        wide = ir.VectorType(_I32, self.lanes)
        shifted = self.builder.shl(self.builder.zext(bits, wide), ir.Constant(wide, [16] * self.lanes))
        return self.builder.bitcast(shifted, self.float)


def _literals(*arguments: Any) -> bool:
    return all(isinstance(argument, types.IntegerLiteral) for argument in arguments)


@intrinsic(prefer_literal=True)
def score_keys(_context, query, keys, scores, stride, dim, group, size, bf16):  # type: ignore[no-untyped-def]
    """scores[g, j] = query[g] . keys[j] for `size` keys.

    Addresses of float32 query [group, dim], keys [size, dim] and float32 scores [group, stride].
    """
    if not _literals(dim, group, size, bf16):
        return None
    width, heads, count, narrow = dim.literal_value, group.literal_value, size.literal_value, bool(bf16.literal_value)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        vectors = _Vectors(builder, width)
        query_at, keys_at, scores_at, row = arguments[:4]
        number = 2 if narrow else 4
        if heads == 1 and vectors.lanes > 1 and count % vectors.lanes == 0:
            query_of = vectors.load(query_at, 0, False)
            for first in range(0, count, vectors.lanes):
                keys_of = [vectors.load(keys_at, (first + key) * width, narrow) for key in range(vectors.lanes)]
                vectors.store([totals(builder, [vectors.dot(query_of, key) for key in keys_of])], scores_at, first)
            return ir.Constant(_I64, 0)
        with cgutils.for_range(builder, _I64(count)) as loop:
            key = vectors.load(builder.add(keys_at, builder.mul(loop.index, _I64(width * number))), 0, narrow)
            for g in range(heads):
                products = vectors.dot(vectors.load(query_at, g * width, False), key)
                column = builder.add(builder.mul(row, _I64(g)), loop.index)
                place = builder.add(scores_at, builder.mul(column, _I64(4)))
                builder.store(vectors.total(products), builder.inttoptr(place, _F32.as_pointer()), align=4)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, dim, group, size, bf16), code


@intrinsic(prefer_literal=True)
def add_values(_context, weights, stride, values, sums, first, last, dim, group, bf16):  # type: ignore[no-untyped-def]
    """sums[g] += weights[g, j] * values[j] for first <= j < last.

    Addresses of float32 weights [group, stride], values [., dim] and float32 sums [group, dim].
    """
    if not _literals(dim, group, bf16):
        return None
    width, heads, narrow = dim.literal_value, group.literal_value, bool(bf16.literal_value)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        vectors = _Vectors(builder, width)
        weights_at, row, values_at, sums_at, begin, end = arguments[:6]
        together = max(1, _ACCUMULATORS // vectors.count)
        for base in range(0, heads, together):
            some = range(base, min(heads, base + together))
            slots = [[cgutils.alloca_once_value(builder, value) for value in vectors.load(sums_at, g * width, False)] for g in some]
            with cgutils.for_range_slice(builder, begin, end, _I64(1)) as (index, _):
                value = vectors.load(builder.add(values_at, builder.mul(index, _I64(width * (2 if narrow else 4)))), 0, narrow)
                for g, sums_of in zip(some, slots):
                    column = builder.add(builder.mul(row, _I64(g)), index)
                    place = builder.inttoptr(builder.add(weights_at, builder.mul(column, _I64(4))), _F32.as_pointer())
                    weight = vectors.spread(builder.load(place, typ=_F32))
                    for part, slot in enumerate(sums_of):
                        builder.store(vectors.multiply_add(weight, value[part], builder.load(slot)), slot)
            for g, sums_of in zip(some, slots):
                vectors.store([builder.load(slot) for slot in sums_of], sums_at, g * width)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, dim, group, bf16), code


@intrinsic(prefer_literal=True)
def widen_row(_context, source, numbers, dim, bf16):  # type: ignore[no-untyped-def]
    """float32 numbers [dim] from float32 or bfloat16 source [dim]."""
    if not _literals(dim, bf16):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        vectors = _Vectors(builder, dim.literal_value)
        vectors.store(vectors.load(arguments[0], 0, bool(bf16.literal_value)), arguments[1], 0)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, dim, bf16), code


@intrinsic(prefer_literal=True)
def narrow_row(_context, numbers, target, dim, bf16):  # type: ignore[no-untyped-def]
    """target [dim], float32 or bfloat16, from float32 numbers [dim]."""
    if not _literals(dim, bf16):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        vectors, is_narrow = _Vectors(builder, dim.literal_value), bool(bf16.literal_value)
        for part, value in enumerate(vectors.load(arguments[0], 0, False)):
            write(builder, value, arguments[1], part * vectors.lanes * (2 if is_narrow else 4), is_narrow)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, dim, bf16), code


@intrinsic(prefer_literal=True)
def norm_row(_context, numbers, weight, eps, dim, bf16):  # type: ignore[no-untyped-def]
    """numbers float32 [dim] divided by their root mean square, times weight [dim], float32 or bfloat16."""
    if not _literals(dim, bf16):
        return None

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        width = dim.literal_value
        vectors = _Vectors(builder, width)
        own = vectors.load(arguments[0], 0, False)
        mean = builder.fdiv(vectors.total(vectors.dot(own, own)), ir.Constant(_F32, float(width)))
        root = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, [_F32]), "llvm.sqrt.f32")
        factor = builder.fdiv(ir.Constant(_F32, 1.0), builder.call(root, [builder.fadd(mean, arguments[2])]))
        factors = vectors.spread(factor)
        weights = vectors.load(arguments[1], 0, bool(bf16.literal_value))
        vectors.store([builder.fmul(builder.fmul(value, factors), other) for value, other in zip(own, weights)], arguments[0], 0)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.float32, dim, bf16), code


@intrinsic
def rotate_row(_context, numbers, angles, half):  # type: ignore[no-untyped-def]
    """numbers float32 [2 * half] as pairs (d, half + d), each turned by its angle: angles float32 [cosines, sines][half].

    half: a multiple of 8. Rotary position embedding (arXiv:2104.09864), in the order of the Transformers library.
    """
    lanes = 8

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        numbers_at, angles_at, count = arguments
        second = builder.mul(count, _I64(4))
        with cgutils.for_range_slice(builder, _I64(0), second, _I64(4 * lanes)) as (offset, _):
            low, cosine = (read(builder, start, offset, lanes, False) for start in (numbers_at, angles_at))
            high, sine = (read(builder, builder.add(start, second), offset, lanes, False) for start in (numbers_at, angles_at))
            turned = builder.fsub(builder.fmul(low, cosine), builder.fmul(high, sine))
            other = builder.fadd(builder.fmul(high, cosine), builder.fmul(low, sine))
            put(builder, turned, numbers_at, offset)
            put(builder, other, builder.add(numbers_at, second), offset)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64), code
