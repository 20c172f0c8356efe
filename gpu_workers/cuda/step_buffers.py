"""A step's numbers on their way to the device: plan columns as the scheduler wrote them, and lists made of them here.

Both are copied on a stream of their own while the step before computes, into a buffer of a small ring; the compute stream then copies that
into memory whose addresses never change, where kernels, recorded graphs included, read it. The host waits for none of it.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.cuda.layout import Layout
from gpu_workers.cuda.machine import Event, Machine, host_bytes
from ipc.arena import PlanColumns, PlanHeader

# A buffer is written again two steps later, and no more than two are in flight (scheduler_proc/scheduler.py); events hold without that.
RING = 2
NOT_COPIED = ("setup", "masks")  # the host reads the one, the sampler fetches the other


class _Entry:
    """One buffer of the ring. arrived: copied to the device; taken: copied on into the kernels' memory."""

    def __init__(self, machine: Machine, plan_size: int, lists: Layout) -> None:
        self.device = torch.zeros(plan_size + lists.size, dtype=torch.uint8, device=machine.device)
        self.host = machine.pinned(lists.size)
        self.host.zero_()
        self.columns: dict[str, npt.NDArray[np.generic]] = {name: view.numpy() for name, view in lists.views(self.host).items()}
        self.arrived: Event = machine.event()
        self.taken: Event = machine.event()


class StepBuffers:
    """plan: the device's PlanColumns without setup and masks. lists: the device's columns of `lists`. Both of the step sent last."""

    def __init__(self, machine: Machine, example: PlanColumns, lists: Layout) -> None:
        """example: any plan of the arena; all have the same shape."""
        self._machine = machine
        self._plan_size = _address(example.setup) - _address(example.header)
        self._blocks = _address(example.block_row) - _address(example.header)
        self._ring = [_Entry(machine, self._plan_size, lists) for _ in range(RING)]
        self._turn = 0
        self.memory = torch.zeros(self._plan_size + lists.size, dtype=torch.uint8, device=machine.device)
        self.lists = lists.views(self.memory[self._plan_size :])
        names = [name for name in PlanColumns.__annotations__ if name not in NOT_COPIED]
        self.plan = SimpleNamespace(**{name: self._column(example, name) for name in names})

    def stage(self) -> dict[str, npt.NDArray[np.generic]]:
        """The lists of the next step, to be filled in before `send`; they hold what an earlier step left there."""
        entry = self._ring[self._turn]
        entry.arrived.synchronize()
        return entry.columns

    def send(self, plan: PlanColumns) -> None:
        """Copy the plan and the staged lists to where the kernels of the compute stream read them."""
        entry, copies, compute = self._ring[self._turn], self._machine.copies, self._machine.compute
        self._turn = (self._turn + 1) % RING
        header = plan.header
        address, used = _address(header), _address(plan.token_ids) - _address(header) + 4 * int(header[PlanHeader.NUM_TOKEN_IDS])
        with self._machine.on(copies):
            entry.taken.wait(copies)
            entry.device[:used].copy_(host_bytes(address, used), non_blocking=True)
            if header[PlanHeader.NUM_BLOCK_UPDATES]:
                blocks = slice(self._blocks, self._plan_size)
                entry.device[blocks].copy_(host_bytes(address + self._blocks, self._plan_size - self._blocks), non_blocking=True)
            entry.device[self._plan_size :].copy_(entry.host, non_blocking=True)
            entry.arrived.record(copies)
        with self._machine.on(compute):
            entry.arrived.wait(compute)
            self.memory.copy_(entry.device)
            entry.taken.record(compute)

    def clear(self) -> None:
        """Make the kernels see a step without rows."""
        self.memory.zero_()

    def _column(self, example: PlanColumns, name: str) -> torch.Tensor:
        column = getattr(example, name)
        offset = _address(column) - _address(example.header)
        return self.memory[offset : offset + column.nbytes].view(torch.from_numpy(column).dtype).view(column.shape)


def _address(column: npt.NDArray[np.generic]) -> int:
    return column.ctypes.data
