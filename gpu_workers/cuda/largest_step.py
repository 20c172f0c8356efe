"""The step that needs the most memory: a full token budget over a full batch, all of it sampled from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpu_workers.cuda.machine import Event, Machine
from ipc.arena import Dimensions, PlanColumns, PlanHeader, ResultColumns, RowFlag
from ipc.config import Config

if TYPE_CHECKING:
    from gpu_workers.device.base import Device, Serving


class _Nobody:
    """In a Waiter's place: whoever runs the step waits for the device itself."""

    def when(self, event: Event, done: Any) -> None:
        pass


def run(serving: Serving, device: Device, machine: Machine, config: Config) -> None:
    """Run it once, on a runner of its own whose rows share one KV block: the numbers mean nothing, the memory is the real one."""
    from gpu_workers.cuda.runner import CUDARunner

    dimensions = serving.arena.dimensions
    plan, result = largest_plan(dimensions, config.cache.block_size), ResultColumns(dimensions)
    runner = CUDARunner(serving, device, machine, config, 1, _Nobody(), graphs=False)  # type: ignore[arg-type]
    runner.finish(runner.begin(plan), result, lambda: None)


def largest_plan(dimensions: Dimensions, block_size: int) -> PlanColumns:
    """All rows, which share the token budget as evenly as their longest lengths allow."""
    plan = PlanColumns(dimensions)
    rows = min(dimensions.rows, dimensions.tokens)
    longest = dimensions.blocks_per_row * block_size
    num_new = np.minimum(np.diff(np.linspace(0, dimensions.tokens, rows + 1).astype(np.int64)), longest)
    plan.row[:rows], plan.num_new[:rows], plan.start[:rows], plan.flags[:rows] = np.arange(rows), num_new, 0, RowFlag.SAMPLE
    total = int(num_new.sum())
    plan.token_ids[:total] = 0
    plan.header[PlanHeader.NUM_ROWS], plan.header[PlanHeader.NUM_TOKENS], plan.header[PlanHeader.NUM_TOKEN_IDS] = rows, total, total
    return plan
