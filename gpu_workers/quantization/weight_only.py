"""A weight rounded to few bits when it is loaded (quantization/rounding.py); activations stay as they are."""

from __future__ import annotations

import torch

from gpu_workers.device import Device
from gpu_workers.quantization.unquantized import Unquantized


class WeightOnly(Unquantized):
    """name: int8 or int4. The floating-point weight is dropped once it is rounded, unless an embedding still holds it."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device, activation: str = "") -> None:
        super().__init__(dtype, device, activation)
        self._name = name

    def process(self, device: Device) -> None:
        assert self._weight is not None
        if self._activation:
            self._gated = device.round_gated(self._weight, self._name, self._activation)
        if self._gated is None:
            self._packed = device.round_linear(self._weight, self._name)
        self._weight = None
