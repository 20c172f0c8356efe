"""The CPU's fused small operations: norms, gated activations, the search for the largest number."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels_cpu import vectors
from kernels_cpu.native import FAST, Source, as_float, exponential, kernel, narrow, pointer, thread_number, widen, zeros_on_stack


def norm(bf16: bool, add: bool) -> Source:
    """RMS norm of rows, after adding a scaled second operand to them in place if `add`.

    Arguments: x, delta, weight, out, rows, hidden, threads, bits of eps, bits of scale.
    """
    dtype, size = (np.uint16, 2) if bf16 else (np.float32, 4)

    @kernel(FAST)
    def run(address):  # type: ignore[no-untyped-def]
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

    return run


_I64 = ir.IntType(64)
_LANES = 16


@intrinsic(prefer_literal=True)
def _gate(_context, gates, ups, out, count, bf16):  # type: ignore[no-untyped-def]
    """out = silu(gates) * ups for `count` numbers, a multiple of 16; addresses of bfloat16 if bf16, else float32."""
    if not isinstance(bf16, types.IntegerLiteral):
        return None
    narrow, size = bool(bf16.literal_value), 2 if bf16.literal_value else 4

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        gates_at, ups_at, out_at, number = arguments[:4]
        with cgutils.for_range_slice(builder, _I64(0), number, _I64(_LANES)) as (index, _):
            place = builder.mul(index, _I64(size))
            gate, up = (vectors.read(builder, address, place, _LANES, narrow) for address in (gates_at, ups_at))
            value = vectors.silu_times(builder, gate, up)
            vectors.write(builder, value, out_at, place, narrow)
        return ir.Constant(_I64, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64, bf16), code


def silu_gated(bf16: bool) -> Source:
    """silu(gate) * up. Arguments: gate_up, 0, 0, out, rows, width, threads."""
    dtype, size = (np.uint16, 2) if bf16 else (np.float32, 4)
    is_bf16, lanes = int(bf16), _LANES

    @kernel(FAST)
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (16,), np.int64)
        rows, width, threads, me = a[4], a[5], a[6], thread_number()
        whole = width // lanes * lanes
        for row in range(rows * me // threads, rows * (me + 1) // threads):
            gates_at, ups_at = a[0] + row * 2 * width * size, a[0] + (row * 2 + 1) * width * size
            out_at = a[3] + row * width * size
            _gate(gates_at, ups_at, out_at, whole, is_bf16)
            gates, ups = carray(pointer(gates_at), (width,), dtype), carray(pointer(ups_at), (width,), dtype)
            out = carray(pointer(out_at), (width,), dtype)
            for i in range(whole, width):
                gate, up = (widen(gates[i]), widen(ups[i])) if bf16 else (gates[i], ups[i])
                e = exponential(-abs(gate))
                value = gate * up * (np.float32(1.0) if gate >= np.float32(0.0) else e) / (np.float32(1.0) + e)
                out[i] = narrow(value) if bf16 else value

    return run


@intrinsic(prefer_literal=True)
def _largest_lanes(_context, numbers, count, state, bf16):  # type: ignore[no-untyped-def]
    """Of every 16th of `count` numbers, a multiple of 16, from each of the first 16 on: the largest, and the first place that has it.

    numbers: address of float32, or bfloat16 if bf16. state: address of float32 [16] and int32 [16] for the results. Returns whether there
    is a NaN.
    """
    if not isinstance(bf16, types.IntegerLiteral):
        return None
    narrow, size = bool(bf16.literal_value), 2 if bf16.literal_value else 4
    whole, floats = ir.VectorType(ir.IntType(32), _LANES), ir.VectorType(ir.FloatType(), _LANES)
    flags = ir.VectorType(ir.IntType(1), _LANES)

    def code(_ctx, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        numbers_at, number, state_at = arguments[:3]
        places = ir.Constant(whole, list(range(_LANES)))
        best, found, broken = (cgutils.alloca_once(builder, kind) for kind in (floats, whole, flags))
        builder.store(vectors.everywhere(floats, float("-inf")), best)
        builder.store(places, found)
        builder.store(vectors.everywhere(flags, 0), broken)
        with cgutils.for_range_slice(builder, _I64(0), number, _I64(_LANES)) as (index, _):
            value = vectors.read(builder, numbers_at, builder.mul(index, _I64(size)), _LANES, narrow)
            here = builder.add(vectors.spread(builder, builder.trunc(index, ir.IntType(32)), whole), places)
            larger = builder.fcmp_ordered(">", value, builder.load(best))
            builder.store(builder.select(larger, value, builder.load(best)), best)
            builder.store(builder.select(larger, here, builder.load(found)), found)
            builder.store(builder.or_(builder.load(broken), builder.fcmp_unordered("uno", value, value)), broken)
        vectors.put(builder, builder.load(best), state_at, 0)
        vectors.put(builder, builder.load(found), state_at, _LANES * 4)
        bits = builder.bitcast(builder.load(broken), ir.IntType(_LANES))
        return builder.zext(builder.icmp_unsigned("!=", bits, ir.IntType(_LANES)(0)), _I64)

    return types.int64(types.int64, types.int64, types.int64, bf16), code


def argmax(bf16: bool) -> Source:
    """Each row's largest number and its lowest place. Arguments: x, int64 places, 0, float32 largest, rows, width, threads.

    The largest of a row with a NaN is NaN; its place and that of a row of nothing but -inf mean nothing.
    """
    dtype, size, is_bf16, lanes = np.uint16 if bf16 else np.float32, 2 if bf16 else 4, int(bf16), _LANES
    state_bytes = 2 * 4 * _LANES

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (16,), np.int64)
        rows, width, threads, me = a[4], a[5], a[6], thread_number()
        places, largest = carray(pointer(a[1]), (rows,), np.int64), carray(pointer(a[3]), (rows,), np.float32)
        state = zeros_on_stack(state_bytes)
        tops, homes = carray(pointer(state), (lanes,), np.float32), carray(pointer(state + lanes * 4), (lanes,), np.int32)
        whole = width // lanes * lanes
        for row in range(rows * me // threads, rows * (me + 1) // threads):
            x_at = a[0] + row * width * size
            x = carray(pointer(x_at), (width,), dtype)
            broken = _largest_lanes(x_at, whole, state, is_bf16) != 0
            top, place = np.float32(-np.inf), np.int64(0)
            if whole:
                top, place = tops[0], np.int64(homes[0])
                for lane in range(1, lanes):
                    if tops[lane] > top or (tops[lane] == top and homes[lane] < place):
                        top, place = tops[lane], np.int64(homes[lane])
            for i in range(whole, width):
                value = widen(x[i]) if bf16 else x[i]
                broken = broken or np.isnan(value)
                if value > top:
                    top, place = value, i
            places[row], largest[row] = place, np.float32(np.nan) if broken else top

    return run
