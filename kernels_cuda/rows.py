"""Launchers of src/rows.cu: plan columns applied to the persistent batch on the device, and a step's inputs gathered from it.

Counts are addresses of int64 words on the device (the plan's header), so a step needs no word from the host and a captured graph
serves every step of its bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels_cuda.kernel import Source, require
from kernels_cuda.launch import launch

DEVICE_TOKEN = 2  # the flag that rows.cu knows; equals ipc.arena.RowFlag.DEVICE_TOKEN, which a test holds
SOURCE = Source("rows.cu", ((),), {"apply_block_updates": 40, "remember_tokens": 40, "scan_rows": 64, "gather_inputs": 64})


@dataclass(frozen=True)
class StepColumns:
    """The plan's columns on the device: int32 each, num_rows the address of an int64."""

    row: Any
    num_new: Any
    start: Any
    flags: Any
    token_ids: Any
    num_rows: int


@dataclass(frozen=True)
class StepTensors:
    """What gather_inputs writes.

    Per token [padded]: token_ids, positions, row_of_token int32 (-1 past the step's tokens), slots int64 (-1 likewise). Per row:
    query_starts int32[capacity + 1], seq_lens int32[capacity]. given_starts int32[capacity] is scratch.
    """

    token_ids: Any
    positions: Any
    slots: Any
    row_of_token: Any
    query_starts: Any
    given_starts: Any
    seq_lens: Any


def apply_block_updates(tables: Any, row: Any, index: Any, block_id: Any, count: int) -> None:
    """tables[row[i], index[i]] = block_id[i] for i < the int64 at address `count`. tables int32[rows, blocks_per_row]; the rest int32."""
    _check_int32(tables=tables, row=row, index=index, block_id=block_id)
    pointers = (row.data_ptr(), index.data_ptr(), block_id.data_ptr(), count)
    launch(_kernel("apply_block_updates"), (_blocks(len(row)),), (256,), 0, tables.data_ptr(), np.int32(tables.shape[1]), *pointers)


def remember_tokens(last_token: Any, row: Any, token: Any, count: int) -> None:
    """last_token[row[i]] = token[i] for i < the int64 at address `count` where token[i] is one (>= 0). int32 each."""
    _check_int32(last_token=last_token, row=row, token=token)
    launch(_kernel("remember_tokens"), (_blocks(len(row)),), (256,), 0, last_token.data_ptr(), row.data_ptr(), token.data_ptr(), count)


def gather_inputs(plan: StepColumns, tables: Any, last_token: Any, block_size: int, out: StepTensors) -> None:
    """Write the step's inputs (see StepTensors); a plan has at most len(out.seq_lens) rows and len(out.token_ids) tokens.

    tables int32[rows, blocks_per_row], last_token int32[rows], indexed by plan.row.
    """
    capacity, padded = len(out.seq_lens), len(out.token_ids)
    _check_int32(tables=tables, last_token=last_token, **{name: value for name, value in vars(plan).items() if name != "num_rows"})
    _check_int32(**{name: value for name, value in vars(out).items() if name != "slots"})
    require(str(out.slots.dtype) == "torch.int64" and len(out.slots) == padded, "gather_inputs: slots must be int64, one per token")
    require(len(out.query_starts) == capacity + 1 and len(out.given_starts) == capacity, "gather_inputs: row outputs differ in length")
    scanned = (out.query_starts.data_ptr(), out.given_starts.data_ptr())
    launch(
        _kernel("scan_rows"), (1,), (1024,), 0,
        plan.num_new.data_ptr(), plan.flags.data_ptr(), plan.num_rows, np.int32(capacity), *scanned,
    )  # fmt: skip
    inputs = (plan.row, plan.num_new, plan.start, plan.flags, plan.token_ids)
    outputs = (out.token_ids, out.positions, out.slots, out.row_of_token, out.seq_lens)
    launch(
        _kernel("gather_inputs"), (-(-max(padded, capacity) // 128),), (128,), 0,
        *(t.data_ptr() for t in inputs), plan.num_rows, *scanned, tables.data_ptr(), last_token.data_ptr(),
        *map(np.int32, (tables.shape[1], block_size, capacity, padded)), *(t.data_ptr() for t in outputs),
    )  # fmt: skip


def _kernel(entry: str) -> Any:
    return SOURCE.kernel(entry, ())


def _blocks(count: int) -> int:
    return max(1, min(64, -(-count // 256)))


def _check_int32(**tensors: Any) -> None:
    for name, tensor in tensors.items():
        require(str(tensor.dtype) == "torch.int32" and tensor.is_contiguous(), f"rows: {name} must be contiguous int32, is {tensor.dtype}")
