"""auto, cpu and cuda, with and without a GPU, and with one that cannot be used."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from ipc.errors import ConfigError
from quire import device_choice


@pytest.mark.parametrize(
    "gpus, device, expected",
    [
        (0, "auto", ("cpu", device_choice.NO_GPU)),
        (0, "cpu", ("cpu", "")),
        (2, "auto", ("cuda", "")),
        (2, "cuda", ("cuda", "")),
        (2, "cpu", ("cpu", "")),
    ],
)
def test_choices(gpus: int, device: Literal["auto", "cpu", "cuda"], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_choice, "count_gpus", lambda: gpus)
    assert device_choice.choose(device) == expected
    assert "\n" not in expected[1]


def test_cuda_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_choice, "count_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=r"no usable NVIDIA GPU.*--device cpu"):
        device_choice.choose("cuda")


class Driver:
    """As much of libcuda as is asked."""

    def __init__(self, init: int = 0, count: int = 1, version: int = 13_000, later: int = 0) -> None:
        self.init, self.count, self.version, self.later = init, count, version, later

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, out: Any) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = self.count
        return self.later

    def cuDriverGetVersion(self, out: Any) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = self.version
        return 0


@pytest.mark.parametrize("driver, expected", [(Driver(), 1), (Driver(count=8, version=13_020), 8), (Driver(init=100), 0)])
def test_gpus_the_driver_offers(driver: Driver, expected: int) -> None:
    assert device_choice.ask(driver) == expected


@pytest.mark.parametrize(
    "driver, message",
    [
        (Driver(init=803), "fails .CUDA error 803.*--device cpu"),
        (Driver(later=999), "CUDA error 999"),
        (Driver(version=12_040), "too old: it offers CUDA 12.4.*driver 580.*--device cpu"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_an_error(driver: Driver, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for auto, which would otherwise serve ten times more slowly than its user thinks."""
    monkeypatch.setattr(device_choice, "count_gpus", lambda: device_choice.ask(driver))
    for device in ("auto", "cuda"):
        with pytest.raises(ConfigError, match=message):
            device_choice.choose(device)
    assert device_choice.choose("cpu") == ("cpu", "")


@pytest.mark.parametrize("files", [0, 1])
def test_a_driver_without_its_library(files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU where there is no device file of one; where there is, it is no case for the CPU unless that was asked for."""
    (tmp_path / "version").touch()
    for number in range(files):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(device_choice, "SIGNS", (str(tmp_path / "version"),))
    monkeypatch.setattr(device_choice, "DEVICE_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(device_choice, "LIBRARY", "libcuda-is-not-here.so.1")
    if not files:
        assert device_choice.choose("auto") == ("cpu", device_choice.NO_GPU)
        return
    with pytest.raises(ConfigError, match=r"there is an NVIDIA GPU, but .*libcuda-is-not-here.*--device cpu"):
        device_choice.choose("auto")
    assert device_choice.choose("cpu") == ("cpu", "")


def test_asking_the_driver_loads_no_torch() -> None:
    code = "import sys; from quire.device_choice import count_gpus; print(count_gpus() >= 0, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "False"]
