"""auto, cpu and cuda, with and without a GPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest

from ipc.errors import ConfigError
from quire import device_choice


@pytest.mark.parametrize(
    "gpus, serves, device, expected",
    [
        (0, True, "auto", ("cpu", device_choice.NO_GPU)),
        (0, True, "cpu", ("cpu", "")),
        (2, True, "auto", ("cuda", "")),
        (2, True, "cuda", ("cuda", "")),
        (2, True, "cpu", ("cpu", "")),
        (2, False, "auto", ("cpu", device_choice.NOT_YET)),
    ],
)
def test_choices(
    gpus: int, serves: bool, device: Literal["auto", "cpu", "cuda"], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_choice, "count_gpus", lambda: gpus)
    monkeypatch.setattr(device_choice, "CUDA_SERVES", serves)
    assert device_choice.choose(device) == expected
    assert "\n" not in expected[1]


@pytest.mark.parametrize(
    "gpus, serves, expected", [(0, True, "no usable NVIDIA GPU"), (0, False, "no usable"), (1, False, "not built yet")]
)
def test_cuda_that_cannot_be_had(gpus: int, serves: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_choice, "count_gpus", lambda: gpus)
    monkeypatch.setattr(device_choice, "CUDA_SERVES", serves)
    with pytest.raises(ConfigError, match=expected):
        device_choice.choose("cuda")


def test_asking_the_driver_loads_no_torch() -> None:
    code = "import sys; from quire.device_choice import count_gpus; print(count_gpus() >= 0, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "False"]
