"""The CPU's matrix products with weights in panels (linear_layout.py): for any rows, and bfloat16, int8 or int4 weights."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from kernels_cpu.linear_layout import (
    ALONE,
    BFLOAT16,
    BIAS,
    GROUP,
    GROUP_BYTES,
    INPUTS,
    INT4,
    INT8,
    LANES,
    NEXT,
    NIBBLES,
    NUM_ARGUMENTS,
    OUT,
    OUTPUTS,
    PADDED,
    PANEL,
    PORTION,
    ROWS,
    SCALES,
    SCRATCH,
    SUMS_BYTES,
    THREADS,
    WEIGHTS,
    WORDS,
    X,
    panel_bytes,
)
from kernels_cpu.linear_vectors import fetch_add, multiply_panel, multiply_panel_int4, nibble_factor
from kernels_cpu.native import FAST, Source, as_bits, barrier, kernel, narrow, pointer, thread_number, widen

_FACTORS = np.array([nibble_factor(place) for place in range(NIBBLES)], np.float32)


@njit(inline="always")
def _lay_out(x, packed, first, end, rows, inputs, padded, height, bf16):  # type: ignore[no-untyped-def]
    """Blocks first .. end of `height` rows each, as float32 [block, padded, height]; zeros where there is no row or input."""
    for block in range(first, end):
        for r in range(height):
            row = block * height + r
            target = block * padded * height + r
            known = inputs if row < rows else 0
            for k in range(known):
                value = x[row * inputs + k]
                packed[target + k * height] = widen(value) if bf16 else value
            for k in range(known, padded):
                packed[target + k * height] = np.float32(0.0)


@njit(inline="always")
def _lay_out_groups(x, packed, first, end, rows, inputs, padded, height, bf16):  # type: ignore[no-untyped-def]
    """The same for int4: float32 [block, groups, GROUP + 1, height], as multiply_panel_int4 wants it."""
    groups = padded // GROUP
    for block in range(first, end):
        for r in range(height):
            row = block * height + r
            known = inputs if row < rows else 0
            for group in range(groups):
                target = (block * groups + group) * (GROUP + 1) * height + r
                total = np.float32(0.0)
                for i in range(GROUP):
                    k = group * GROUP + i
                    value = np.float32(0.0)
                    if k < known:
                        value = widen(x[row * inputs + k]) if bf16 else x[row * inputs + k]
                    total += value
                    packed[target + i * height] = value * _FACTORS[i % NIBBLES]
                packed[target + GROUP * height] = total * np.float32(-8.0)


def product(kind: int, bf16: bool, height: int, unroll: int) -> Source:
    """out = x @ weights.T + bias for blocks of `height` rows; x, bias and out bfloat16 if bf16, else float32.

    All threads lay out the rows, then each takes a few panels at a time until none is left, so that a thread that another process
    holds up does not hold up the rest.
    """
    dtype = np.uint16 if bf16 else np.float32
    input_bytes = panel_bytes(kind)
    scaled, grouped = kind == INT8, kind == INT4
    panel = PANEL

    @kernel(FAST)
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        rows, inputs, padded, outputs, threads, me = a[ROWS], a[INPUTS], a[PADDED], a[OUTPUTS], a[THREADS], thread_number()
        blocks = (rows + height - 1) // height
        block_numbers = padded * height + (padded // GROUP * height if grouped else 0)
        x = carray(pointer(a[X]), (rows * inputs,), dtype)
        out = carray(pointer(a[OUT]), (rows * outputs,), dtype)
        bias = carray(pointer(a[BIAS]), (outputs,), dtype)
        scales = carray(pointer(a[SCALES]), (outputs,), np.float32)
        has_bias = a[BIAS] != 0
        sums_at = a[SCRATCH] + me * SUMS_BYTES
        sums = carray(pointer(sums_at), (height * panel,), np.float32)
        packed_at = a[SCRATCH] + threads * SUMS_BYTES
        first, end = blocks * me // threads, blocks * (me + 1) // threads
        if a[ALONE]:
            packed_at += me * blocks * block_numbers * 4
            first, end = 0, blocks
        packed = carray(pointer(packed_at), (blocks * block_numbers,), np.float32)
        if grouped:
            _lay_out_groups(x, packed, first, end, rows, inputs, padded, height, bf16)
        else:
            _lay_out(x, packed, first, end, rows, inputs, padded, height, bf16)
        if not a[ALONE]:
            barrier()
        panels = (outputs + panel - 1) // panel
        portion = a[PORTION]
        first = fetch_add(a[NEXT], portion)
        while first < panels:
            for p in range(first, min(first + portion, panels)):
                width = min(panel, outputs - p * panel)
                for block in range(blocks):
                    x_at = packed_at + block * block_numbers * 4
                    if grouped:
                        weights_at = a[WEIGHTS] + p * (padded // GROUP) * input_bytes
                        multiply_panel_int4(x_at, weights_at, padded // GROUP, sums_at, height)
                    else:
                        weights_at = a[WEIGHTS] + p * padded * input_bytes
                        multiply_panel(x_at, weights_at, padded, sums_at, height, unroll, kind)
                    for r in range(min(height, rows - block * height)):
                        target = (block * height + r) * outputs + p * panel
                        for j in range(width):
                            value = sums[r * panel + j]
                            if scaled:
                                value *= scales[p * panel + j]
                            if has_bias:
                                value += widen(bias[p * panel + j]) if bf16 else bias[p * panel + j]
                            out[target + j] = narrow(value) if bf16 else value
            first = fetch_add(a[NEXT], portion)

    return run


def packer(kind: int) -> Source:
    """weights [outputs, inputs], bfloat16 or int8, into panels. Arguments as above: X are the weights, OUT the panels."""
    lanes, panel = LANES, PANEL
    dtype = np.uint16 if kind == BFLOAT16 else np.int8
    halves = kind == BFLOAT16

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        inputs, padded, outputs, threads, me = a[INPUTS], a[PADDED], a[OUTPUTS], a[THREADS], thread_number()
        plain = carray(pointer(a[X]), (outputs * inputs,), dtype)
        panels = (outputs + panel - 1) // panel
        packed = carray(pointer(a[OUT]), (panels * padded * panel,), dtype)
        for p in range(panels * me // threads, panels * (me + 1) // threads):
            for k in range(padded):
                for j in range(panel):
                    row = p * panel + j
                    place = (j * 2 if j < lanes else (j - lanes) * 2 + 1) if halves else j
                    packed[(p * padded + k) * panel + place] = plain[row * inputs + k] if row < outputs and k < inputs else dtype(0)

    return run


def packer_int4() -> Source:
    """int8 weights [outputs, inputs] of -8 to 7 and float32 SCALES [outputs, groups] into int4 panels; the rest as in `packer`."""
    lanes, panel = LANES, PANEL

    @kernel()
    def run(address):  # type: ignore[no-untyped-def]
        a = carray(address, (NUM_ARGUMENTS,), np.int64)
        inputs, padded, outputs, threads, me = a[INPUTS], a[PADDED], a[OUTPUTS], a[THREADS], thread_number()
        plain = carray(pointer(a[X]), (outputs * inputs,), np.int8)
        panels, groups = (outputs + panel - 1) // panel, padded // GROUP
        scales = carray(pointer(a[SCALES]), (outputs * groups,), np.float32)
        for p in range(panels * me // threads, panels * (me + 1) // threads):
            for g in range(groups):
                words = carray(pointer(a[OUT] + (p * groups + g) * GROUP_BYTES), (GROUP_BYTES // 4,), np.uint32)
                for j in range(panel):
                    row = p * panel + j
                    for w in range(WORDS):
                        word = np.uint32(0)
                        for n in range(NIBBLES):
                            k = g * GROUP + w * NIBBLES + n
                            number = plain[row * inputs + k] if row < outputs and k < inputs else np.int8(0)
                            word |= np.uint32(number + 8) << np.uint32(4 * n)
                        words[w * panel + j] = word
                for j in range(lanes):
                    low, high = p * panel + j, p * panel + lanes + j
                    bits = as_bits(scales[low * groups + g]) >> np.uint32(16) if low < outputs else np.uint32(0)
                    if high < outputs:
                        bits |= as_bits(scales[high * groups + g]) & np.uint32(0xFFFF0000)
                    words[WORDS * panel + j] = bits

    return run
