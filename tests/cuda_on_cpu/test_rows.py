"""Plan columns applied to the batch, and a step's inputs gathered from it, against a loop over rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ipc.arena import RowFlag
from kernels_cuda import reference, rows
from tests.cuda_on_cpu.comparing import integers
from tests.cuda_on_cpu.emulator import SOURCES, EmulationError, emulated
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


def gathered(count: int, capacity: int, spare: int, seed: int, sources: Path = SOURCES) -> bool:
    """Whether the inputs of a step of `count` rows are right, in columns with room for `capacity` rows and `spare` more tokens."""
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
    with emulated(seed, sources):
        rows.gather_inputs(columns, integers(tables), integers(last), BLOCK, out)
    lists = (column[:count].tolist() for column in (row, num_new, start, remembered))
    ids, positions, slots, of = reference.gather_inputs(*lists, given.tolist(), tables, last, BLOCK)
    starts = np.concatenate(([0], np.cumsum(num_new[:count]), np.full(capacity - count, total)))
    wanted = (
        (out.token_ids, ids + [0] * spare),
        (out.positions, positions + [0] * spare),
        (out.slots, slots + [-1] * spare),
        (out.row_of_token, of + [-1] * spare),
        (out.query_starts, starts.tolist()),
        (out.seq_lens, [*(start + num_new)[:count], *[0] * (capacity - count)]),
    )
    return all(column.tolist() == values for column, values in wanted)


ORDERS = (0, 1, 2, 7)


@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize(
    "count,capacity,spare",
    [
        (0, 4, 3),
        (1, 1, 0),
        (7, 8, 5),
        (31, 31, 0),
        (32, 32, 1),
        (33, 40, 100),
        (65, 65, 0),
        (1023, 1023, 1),
        (1024, 1024, 1),
        (1500, 2100, 0),
    ],
)
def test_inputs(count: int, capacity: int, spare: int, seed: int) -> None:
    assert gathered(count, capacity, spare, seed)


BUGS = {
    "no barrier before the sums of the warps are read": ("    __syncthreads();\n    const int lanes_all", "    const int lanes_all"),
    "the sums of the next chunk come too early": ("    __syncthreads();   // the sums of this chunk have been read\n", ""),
    "a warp forgets those before it": ("all += __shfl_sync(FULL_WARP, sum_all - lanes_all, warp);", ""),
    "chunks of rows forget those before them": ("all_before += chunk_all;", ""),
    "remembered tokens are taken for given ones": ("flags[low] & DEVICE_TOKEN ?", "false ?"),
    "the last row of a token is found one too late": ("if (query_starts[middle] <= t)", "if (query_starts[middle] < t)"),
    "padding is written to slot 0": ("slots[t] = -1;", "slots[t] = 0;"),
    "rows are taken for their places": ("place = row[low];", "place = low;"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, tmp_path: Path) -> None:
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    text, (old, new) = (tmp_path / "rows.cu").read_text(), BUGS[name]
    assert text.count(old) == 1
    (tmp_path / "rows.cu").write_text(text.replace(old, new))
    assert not all(right(seed, tmp_path) for seed in ORDERS)


def right(seed: int, sources: Path) -> bool:
    try:
        return gathered(1100, 1200, 9, seed, sources)
    except EmulationError:
        return False
