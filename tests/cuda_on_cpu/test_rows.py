"""Plan columns applied to the batch, and a step's inputs gathered from it, against a loop over rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipc.arena import RowFlag
from kernels_cuda import reference, rows
from tests.cuda_on_cpu.comparing import integers
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded

ROWS, BLOCKS_PER_ROW, BLOCK = 40, 8, 16


def test_the_flag_is_the_plans() -> None:
    assert rows.DEVICE_TOKEN == RowFlag.DEVICE_TOKEN


@pytest.mark.parametrize("count", [0, 1, 255, 300])
def test_block_updates(count: int) -> None:
    """Only the first `count` columns count; those after it point out of bounds."""
    numbers = np.random.default_rng(count)
    places = numbers.permutation(ROWS * BLOCKS_PER_ROW)[:count]
    row, index = np.full(320, 10**6), np.full(320, 10**6)
    row[:count], index[:count] = np.divmod(places, BLOCKS_PER_ROW)
    ids = numbers.integers(0, 1000, 320)
    tables = guarded(torch.zeros(ROWS, BLOCKS_PER_ROW, dtype=torch.int32))
    expected = tables.clone()
    expected[row[:count], index[:count]] = torch.as_tensor(ids[:count]).int()
    header = integers([count], torch.int64)
    with emulated(seed=1):
        rows.apply_block_updates(tables, integers(row), integers(index), integers(ids), header.data_ptr())
    assert torch.equal(tables, expected)


def test_remembered_tokens() -> None:
    last, header = guarded(torch.full((ROWS,), 7, dtype=torch.int32)), integers([3], torch.int64)
    with emulated():
        rows.remember_tokens(last, integers([5, 0, 39, 10**6]), integers([100, -1, 300, 400]), header.data_ptr())
    expected = torch.full((ROWS,), 7, dtype=torch.int32)
    expected[5], expected[39] = 100, 300
    assert torch.equal(last, expected)


@pytest.mark.parametrize(
    "count,capacity,spare", [(0, 4, 3), (1, 1, 0), (7, 8, 5), (33, 40, 100), (1023, 1023, 1), (1024, 1024, 1), (1500, 2100, 0)]
)
def test_inputs(count: int, capacity: int, spare: int) -> None:
    numbers = np.random.default_rng(count)
    many = max(capacity, ROWS)
    row = numbers.permutation(many)[:capacity]
    start = numbers.integers(0, 60, capacity)
    flags = numbers.integers(0, 2, capacity) * RowFlag.DEVICE_TOKEN + RowFlag.SAMPLE
    remembered = (flags & RowFlag.DEVICE_TOKEN) != 0
    num_new = np.where(remembered, 1, numbers.integers(1, 5 if count > 500 else 60, capacity))
    given = numbers.integers(0, 5000, int(num_new[:count][~remembered[:count]].sum()))
    tables = torch.as_tensor(numbers.integers(0, 900, (many, BLOCKS_PER_ROW)))
    last = torch.as_tensor(numbers.integers(0, 5000, many))
    total = int(num_new[:count].sum())
    header = integers([count], torch.int64)
    columns = rows.StepColumns(*(integers(column) for column in (row, num_new, start, flags, given)), header.data_ptr())
    out = rows.StepTensors(
        *(integers(np.full(n, -77), dtype) for n, dtype in
          ((total + spare, torch.int32), (total + spare, torch.int32), (total + spare, torch.int64), (total + spare, torch.int32),
           (capacity + 1, torch.int32), (capacity, torch.int32), (capacity, torch.int32)))
    )  # fmt: skip
    with emulated(seed=3):
        rows.gather_inputs(columns, integers(tables), integers(last), BLOCK, out)
    lists = (column[:count].tolist() for column in (row, num_new, start, remembered))
    ids, positions, slots, of = reference.gather_inputs(*lists, given.tolist(), tables, last, BLOCK)
    assert out.token_ids.tolist() == ids + [0] * spare
    assert out.positions.tolist() == positions + [0] * spare
    assert out.slots.tolist() == slots + [-1] * spare
    assert out.row_of_token.tolist() == of + [-1] * spare
    starts = np.concatenate(([0], np.cumsum(num_new[:count]), np.full(capacity - count, total)))
    assert out.query_starts.tolist() == starts.tolist()
    assert out.seq_lens.tolist() == [*(start + num_new)[:count], *[0] * (capacity - count)]
