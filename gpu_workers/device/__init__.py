"""What differs between the CPU and a GPU, behind one interface."""

from __future__ import annotations

from gpu_workers.device.base import Device
from ipc.config import Config
from ipc.errors import ConfigError

__all__ = ["Device", "open_device"]


def open_device(name: str, index: int, config: Config) -> Device:
    """The device that worker `index` computes on, set up for this process.

    Raises ConfigError when there is no such device in this version.
    """
    if name == "cpu":
        from gpu_workers.device.cpu import CPUDevice

        return CPUDevice(config)
    raise ConfigError(f"the {name.upper()} device is not built yet in this version; use --device cpu")
