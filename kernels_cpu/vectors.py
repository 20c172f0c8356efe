"""Vector code by hand for compiled loops: what LLVM does not find in plain loops is built from these."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def at(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | int, kind: ir.Type, align: int = 4) -> ir.Value:
    """What lies `offset` bytes after `address`."""
    place = builder.add(address, _I64(offset) if isinstance(offset, int) else offset)
    value = builder.load(builder.inttoptr(place, kind.as_pointer()), typ=kind)
    value.align = align
    return value


def put(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: ir.Value | int, align: int = 4) -> None:
    place = builder.add(address, _I64(offset) if isinstance(offset, int) else offset)
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=align)


def prefetch(builder: ir.IRBuilder, address: ir.Value, cache: int = 2) -> None:
    """Have the line there brought into the first or second cache while this thread goes on. Any address will do."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, byte), _I32(0), _I32(4 - cache), _I32(1)])


def everywhere(kind: ir.VectorType, number: float) -> ir.Constant:
    """The constant in every lane."""
    return ir.Constant(kind, [number] * kind.count)


def spread(builder: ir.IRBuilder, number: ir.Value, kind: ir.VectorType) -> ir.Value:
    """The scalar in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere(ir.VectorType(_I32, kind.count), 0))


def larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The larger of each two lanes; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def swapped(builder: ir.IRBuilder, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """A square of vectors, rows and columns swapped: in each of log2 rounds, halves of blocks change places."""
    values, size = list(rows), len(rows)
    mask = ir.VectorType(_I32, size)
    width = size // 2
    while width:
        low = [place if not place & width else place - width + size for place in range(size)]
        high = [place + width if not place & width else place + size for place in range(size)]
        for row in range(size):
            if not row & width:
                a, b = values[row], values[row + width]
                values[row] = builder.shuffle_vector(a, b, ir.Constant(mask, low))
                values[row + width] = builder.shuffle_vector(a, b, ir.Constant(mask, high))
        width //= 2
    return values


def totals(builder: ir.IRBuilder, rows: Sequence[ir.Value]) -> ir.Value:
    """The sums of as many vectors as one has lanes, in their order: each round adds neighbours and halves the number of vectors."""
    values, lanes = list(rows), len(rows)
    even, odd = (ir.Constant(ir.VectorType(_I32, lanes), list(range(first, 2 * lanes, 2))) for first in (0, 1))
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2])
        values = [builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd)) for a, b in pairs]
    return values[0]


def floats(lanes: int) -> ir.VectorType:
    return ir.VectorType(_F32, lanes)


def read(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | int, lanes: int, bf16: bool) -> ir.Value:
    """So many float32, or bfloat16 widened to float32."""
    if not bf16:
        return at(builder, address, offset, floats(lanes))
    wide = ir.VectorType(_I32, lanes)
    bits = builder.zext(at(builder, address, offset, ir.VectorType(_I16, lanes), 2), wide)
    return builder.bitcast(builder.shl(bits, everywhere(wide, 16)), floats(lanes))


def write(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: ir.Value | int, bf16: bool) -> None:
    """float32 as they are, or rounded to bfloat16: to nearest even, a NaN stays one."""
    if not bf16:
        put(builder, value, address, offset)
        return
    lanes = value.type.count
    wide = ir.VectorType(_I32, lanes)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, everywhere(wide, 16)), everywhere(wide, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, odd), everywhere(wide, 0x7FFF)), everywhere(wide, 16))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), everywhere(wide, 0x7FC0), rounded)
    put(builder, builder.trunc(kept, ir.VectorType(_I16, lanes)), address, offset, 2)


def math(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's functions on vectors of float32, as floor and fma."""
    kind = arguments[0].type
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(arguments)), f"llvm.{name}.v{kind.count}f32"
    )
    return builder.call(function, arguments)


def exponential(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e to the x for x <= 0, relative error below 3e-7; as native.exponential."""
    kind = x.type
    whole = ir.VectorType(_I32, kind.count)
    x = larger(builder, x, everywhere(kind, -87.0))
    octave = math(builder, "floor", math(builder, "fma", x, everywhere(kind, 1.44269504088896341), everywhere(kind, 0.5)))
    r = math(builder, "fma", octave, everywhere(kind, -0.693359375), x)
    r = math(builder, "fma", octave, everywhere(kind, 2.12194440e-4), r)
    p = everywhere(kind, 1.0 / 5040.0)
    for factor in (1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        p = math(builder, "fma", p, r, everywhere(kind, factor))
    exponent = builder.shl(builder.add(builder.fptosi(octave, whole), everywhere(whole, 127)), everywhere(whole, 23))
    return builder.fmul(p, builder.bitcast(exponent, kind))


def silu_times(builder: ir.IRBuilder, gate: ir.Value, up: ir.Value) -> ir.Value:
    """gate / (1 + e to the -gate) * up, without an overflow for any gate."""
    kind = gate.type
    ones = everywhere(kind, 1.0)
    e = exponential(builder, builder.fneg(math(builder, "fabs", gate)))
    share = builder.select(builder.fcmp_ordered("<", gate, everywhere(kind, 0.0)), e, ones)
    return builder.fdiv(builder.fmul(builder.fmul(gate, up), share), builder.fadd(ones, e))
