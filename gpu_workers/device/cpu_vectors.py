"""Vector code by hand for compiled loops: what LLVM does not find in plain loops is built from these."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def at(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | int, kind: ir.Type, align: int = 4) -> ir.Value:
    """What lies `offset` bytes after `address`."""
    place = builder.add(address, _I64(offset) if isinstance(offset, int) else offset)
    value = builder.load(builder.inttoptr(place, kind.as_pointer()), typ=kind)
    value.align = align
    return value


def put(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: ir.Value | int, align: int = 4) -> None:
    place = builder.add(address, _I64(offset) if isinstance(offset, int) else offset)
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=align)


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
