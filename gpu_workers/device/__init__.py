"""What differs between the CPU and a GPU, behind one interface."""

from __future__ import annotations

from gpu_workers.device.base import Device
from ipc.config import Config

__all__ = ["Device", "open_device"]


def open_device(name: str, index: int, config: Config) -> Device:
    """The device that worker `index` computes on, set up for this process.

    Raises ConfigError when it cannot be used.
    """
    if name == "cpu":
        from gpu_workers.device.cpu import CPUDevice

        return CPUDevice(config)
    from gpu_workers.device.cuda import CUDADevice

    return CUDADevice(index, config)
