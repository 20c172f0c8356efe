"""Which device computes, decided without torch: asking the NVIDIA driver takes milliseconds, importing torch takes seconds."""

from __future__ import annotations

import ctypes
import glob
import os
from typing import Any, Literal

from ipc.errors import ConfigError

NO_GPU = "no NVIDIA GPU found; running on the CPU"
WITHOUT = "or use --device cpu to run without it"
SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")  # of a driver; the last one is WSL's
DEVICE_FILES = "/dev/nvidia[0-9]*"
LIBRARY = "libcuda.so.1"
NO_DEVICE = 100  # the driver's CUDA_ERROR_NO_DEVICE
NEEDED_CUDA = 13_000  # as the driver writes CUDA 13.0


def choose(device: Literal["auto", "cpu", "cuda"]) -> tuple[Literal["cpu", "cuda"], str]:
    """The device to run on, and one line for the user ('' when there is nothing to say).

    `auto` takes the CPU only where there is no GPU. Raises ConfigError when `cuda` was asked for and cannot be had, and when there is a GPU
    that cannot be used.
    """
    if device == "cpu":
        return "cpu", ""
    if count_gpus():
        return "cuda", ""
    if device == "auto":
        return "cpu", NO_GPU
    raise ConfigError(
        "--device cuda: no usable NVIDIA GPU found. Check that nvidia-smi lists one (in a container: that it was started with the GPU), "
        "or use --device cpu"
    )


def count_gpus() -> int:
    """GPUs the NVIDIA driver offers this process; 0 without a driver. CUDA_VISIBLE_DEVICES counts, since the driver honours it.

    Raises ConfigError when the driver cannot be used.
    """
    if not any(map(os.path.exists, SIGNS)):
        return 0
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        if not glob.glob(DEVICE_FILES):
            return 0  # as in a container that was started without the GPU
        raise ConfigError(
            f"there is an NVIDIA GPU, but the driver's library cannot be loaded ({error}): install it (in a container: "
            f"NVIDIA_DRIVER_CAPABILITIES=compute,utility), {WITHOUT}"
        ) from None
    return ask(driver)


def ask(driver: Any) -> int:
    """GPUs that libcuda offers. Raises ConfigError when it is too old or fails."""
    error = driver.cuInit(0)
    if error == NO_DEVICE:
        return 0
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    error = error or driver.cuDeviceGetCount(ctypes.byref(count)) or driver.cuDriverGetVersion(ctypes.byref(version))
    if error:
        raise ConfigError(f"there is an NVIDIA driver, but it fails (CUDA error {error}): see what nvidia-smi says, {WITHOUT}")
    if count.value and version.value < NEEDED_CUDA:
        offers = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise ConfigError(
            f"the NVIDIA driver is too old: it offers CUDA {offers}, quire needs CUDA 13.0 (driver 580 or newer). Update it, {WITHOUT}"
        )
    return count.value
