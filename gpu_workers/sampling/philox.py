"""Random numbers by counter: one uniform per (seed, position), the same in every batch, restart and replay.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), Philox4x32-10. The seed is the 64-bit
key, the position the low half of the 128-bit counter; the high half names the stream, so that other uses of the same seed and
position (rejection in speculative decoding, say) can draw independent numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

U64 = npt.NDArray[np.uint64]


def philox4x32(counter: tuple[U64, U64, U64, U64], key: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """Ten rounds over columns of 32-bit words kept in uint64[n]; returns four such columns."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 32 x 32 bits never exceed 64
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(seeds: U64, positions: npt.NDArray[np.int64], stream: int = 0) -> npt.NDArray[np.float64]:
    """float64[n] in [0, 1), multiples of 2**-52. seeds: uint64[n]; positions: int64[n], not negative."""
    at = positions.astype(np.uint64)
    zero = np.zeros_like(at)
    words = philox4x32((at & _LOW, at >> _HALF, zero + np.uint64(stream), zero), (seeds & _LOW, seeds >> _HALF))
    bits = ((words[0] >> np.uint64(6)) << np.uint64(26)) | (words[1] >> np.uint64(6))
    # 52 bits and not 53: u * total then stays below total after rounding, so an inverse CDF always finds a token.
    return bits.astype(np.float64) * 2.0**-52
