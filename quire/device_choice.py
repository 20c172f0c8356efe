"""Which device computes, decided without torch: asking the NVIDIA driver takes milliseconds, importing torch takes seconds."""

from __future__ import annotations

import ctypes
import os
from typing import Literal

from ipc.errors import ConfigError

# The worker's CUDA device is being built; until it serves, `auto` stays on the CPU even where there is a GPU.
CUDA_SERVES = False

NO_GPU = "no NVIDIA GPU found; running on the CPU"
NOT_YET = "there is an NVIDIA GPU, but the CUDA device is not built yet; running on the CPU"


def choose(device: Literal["auto", "cpu", "cuda"]) -> tuple[Literal["cpu", "cuda"], str]:
    """The device to run on, and one line for the user ('' when there is nothing to say).

    Raises ConfigError when `cuda` was asked for and cannot be had.
    """
    if device == "cpu":
        return "cpu", ""
    gpus = count_gpus()
    if gpus and CUDA_SERVES:
        return "cuda", ""
    if device == "auto":
        return "cpu", NOT_YET if gpus else NO_GPU
    if gpus:
        raise ConfigError("--device cuda: the CUDA device is not built yet; use --device cpu")
    raise ConfigError(
        "--device cuda: no usable NVIDIA GPU found. Check that nvidia-smi lists one (in a container: that it was started with the GPU), "
        "or use --device cpu"
    )


def count_gpus() -> int:
    """GPUs the NVIDIA driver offers this process; 0 without a driver. CUDA_VISIBLE_DEVICES counts, since the driver honours it."""
    if not (os.path.exists("/proc/driver/nvidia/version") or os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
