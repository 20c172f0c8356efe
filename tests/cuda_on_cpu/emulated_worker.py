"""A worker process whose GPU is emulated, and whose results come late: `python -m tests.cuda_on_cpu.emulated_worker`, as quire.child."""

from __future__ import annotations

import sys
import time

from gpu_workers import worker
from gpu_workers.device.cuda import CUDADevice
from ipc.config import Config
from quire import child
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.sync_machine import SyncEvent, SyncMachine

LATE_SECONDS = 0.02


class LateEvent(SyncEvent):
    """A point that whoever waits for it sees a while after it is reached."""

    def __init__(self) -> None:
        self._recorded = 0.0

    def record(self, stream: object) -> None:
        self._recorded = time.monotonic()

    def synchronize(self) -> None:
        time.sleep(max(0.0, self._recorded + LATE_SECONDS - time.monotonic()))


class LateMachine(SyncMachine):
    def event(self) -> LateEvent:
        return LateEvent()


def open_device(name: str, index: int, config: Config) -> CUDADevice:
    device = CUDADevice(index, config, LateMachine())
    device.collectives = "gloo"
    return device


if __name__ == "__main__":
    worker.open_device = open_device  # type: ignore[assignment]
    with emulated():
        sys.exit(child.main())
