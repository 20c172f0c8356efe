"""Numbers become the bytes that torch makes of them, which is what vLLM sends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frontend.vector_bytes import DTYPES, ENDIANNESS, packed

TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def numbers(kind: torch.dtype) -> np.ndarray:
    """All sizes; of the small formats every number, and everything halfway between two."""
    rng = np.random.default_rng(1)
    found = [rng.normal(size=5000) * scale for scale in (1.0, 1e-3, 1e-6, 100.0)] + [np.array([0.0, -0.0, 1.0, -1.0, 448.0, -448.0])]
    if kind.itemsize == 1:
        exact = torch.arange(256, dtype=torch.uint8).view(kind).float().numpy()
        exact = np.sort(exact[np.isfinite(exact)])
        found += [exact, (exact[1:] + exact[:-1]) / 2]
    return np.concatenate(found).astype(np.float32)


@pytest.mark.parametrize("name", DTYPES)
def test_as_torch_rounds(name: str) -> None:
    given = numbers(TYPES[name])
    expected = torch.from_numpy(given).to(TYPES[name]).view(torch.uint8).numpy()
    assert packed(given, name) == expected.tobytes()
    assert np.isnan(torch.frombuffer(bytearray(packed(np.array([np.nan], np.float32), name)), dtype=TYPES[name]).float().numpy()).all()
    size = TYPES[name].itemsize
    swapped = {order: np.frombuffer(packed(given, name, order), np.uint8).reshape(-1, size) for order in ENDIANNESS}
    assert (swapped["big"] == swapped["little"][:, ::-1]).all()
    assert swapped["native"].tobytes() == packed(given, name)
