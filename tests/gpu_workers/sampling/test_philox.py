"""The generator against the published answers, and what makes its uniforms fit for an inverse CDF."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_workers.sampling.philox import philox4x32, uniform


# Random123's known answers for philox4x32, 10 rounds.
@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    words = [np.array([0, word], np.uint64) for word in counter]
    keys = [np.array([0, word], np.uint64) for word in key]
    assert [int(column[1]) for column in philox4x32(tuple(words), tuple(keys))] == answer


def test_uniforms_are_uniform_and_below_one() -> None:
    u = uniform(np.full(200_000, 2**64 - 1, np.uint64), np.arange(200_000))
    assert u.min() >= 0 and u.max() < 1
    assert (u * 2.0**52 == np.floor(u * 2.0**52)).all()
    counts = np.histogram(u, 64, (0, 1))[0]
    assert ((counts - 3125) ** 2 / 3125).sum() < 115  # chi-square, 63 degrees of freedom, p = 6e-5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01


def test_seed_position_and_stream_all_count() -> None:
    seeds = np.array([1, 2, 2**32 + 1, 1, 1], np.uint64)
    positions = np.array([5, 5, 5, 6, 2**32 + 5])
    drawn = [*uniform(seeds, positions), *uniform(seeds, positions, stream=1)]
    assert len(set(drawn)) == 10
    assert uniform(seeds[1:2], positions[1:2])[0] == drawn[1]
