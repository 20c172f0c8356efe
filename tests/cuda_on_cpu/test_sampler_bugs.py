"""Bugs planted in the sampler's sources: each is found by a wrong result, in some or all orders of threads, or by an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ipc.arena import RowSetup
from tests.cuda_on_cpu import test_logprobs_kernel, test_sampler_kernels
from tests.cuda_on_cpu.emulator import SOURCES, EmulationError, emulated
from tests.cuda_on_cpu.sampler_rows import Rows
from tests.gpu_workers.sampling.reference import packed

VOCAB = 3001


def drawn() -> bool:
    """Flat distributions, in which a threshold a little off moves many tokens; and an edit, a stop token and a penalty that decide."""
    rng = np.random.default_rng(1)
    logits = test_sampler_kernels.random_logits(rng, 30, VOCAB)
    logits[:7] -= 20  # all negative
    wishes = [{"top_k": 40}, {"top_k": 5}, {"top_p": 0.4}, {"min_p": 0.3}, {"top_k": 200, "top_p": 0.6}, {}, {"top_k": 12, "top_p": 0.9}]
    setups = [RowSetup(row, 0, row, 4.0, **wishes[row % 7]) for row in range(28)]
    setups.append(RowSetup(28, 0, 9, logit_bias={200: 90.0, 9: 50.0}, stop_ids=[200], min_position=99))
    best = int(logits[29].argmax())
    setups.append(RowSetup(29, 3, 9, presence_penalty=2.0, frequency_penalty=2.0, history=packed([best, best, best, 7])))
    tokens, _, _ = Rows(setups, VOCAB).sample(logits, range(30), [30] * 30)
    return tokens.tolist() == test_sampler_kernels.on_cpu(setups, logits, range(30), [30] * 30, {})[0].tolist()


def dead() -> bool:
    """Rows without a finite logit, and one whose every token is forbidden."""
    setups = [RowSetup(0, 0, 1, 1.0), RowSetup(1, 0, 1, 1.0, allowed=packed([4]), bad_words=[[4]])]
    logits = torch.zeros(2, VOCAB)
    logits[0, VOCAB - 1], logits[1, 2] = torch.nan, 1
    tokens, nan, _ = Rows(setups, VOCAB).sample(logits, [0, 1], [0, 0])
    return nan.tolist() == [1, 0] and tokens.tolist() == [0, 4]


def listed() -> bool:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(3)).bfloat16()
    got = test_logprobs_kernel.report(logits, [1, 0], [5, 8], [20, 3])
    for i, (row, token, width) in enumerate(((1, 5, 20), (0, 8, 3))):
        logprob, rank, ids, _ = test_logprobs_kernel.expected(logits[row], token, width, 20)
        if abs(got[0][i] - logprob) > 2e-6 or got[1][i] != rank or got[2][i].tolist() != ids:
            return False
    return True


@dataclass(frozen=True)
class Bug:
    """`old` is replaced by `new` in `file`; `run` must then go wrong, in each order of threads or only in some."""

    name: str
    file: str
    old: str
    new: str
    run: Callable[[], bool]
    every_time: bool = True


BUGS = [
    Bug("a barrier between bins and their reader is missing", "select.cuh", "    __syncthreads();   // all values are in\n", "", drawn),
    Bug("bins are used before all are empty", "select.cuh", "    __syncthreads();   // all bins are empty\n", "", drawn, False),
    Bug("what was found is read too early", "select.cuh", "    __syncthreads();   // what was found is there\n", "", drawn),
    Bug("the second digit is taken a bit too high", "select.cuh", "pass == 1 ? 10", "pass == 1 ? 11", drawn),
    Bug("settled digits are not compared", "select.cuh", "(key & known) == found.key", "true", drawn),
    Bug("a scan across warps leaves the warps before out", "select.cuh", "return v + (warp > 0 ? before : 0ull);", "return v;", drawn),
    Bug("Philox has nine rounds", "select.cuh", "round < 10", "round < 9", drawn),
    Bug("negative logits are ordered as positive ones", "select.cuh",
        "bits & 0x80000000u ? bits : 0x7fffffffu - bits;", "0x7fffffffu - bits;", drawn),
    Bug("the last segment's ids past the vocabulary are read", "sampler.cu", "      if (id >= vocab) return 0ull;\n", "", drawn),
    Bug("the threshold of top-k is not among those kept", "sampler.cu", "return r <= last ?", "return r < last ?", drawn),
    Bug("the draw stops one too late", "sampler.cu", "FULL_WARP, sum > target", "FULL_WARP, sum > target + (1ull << 38)", drawn),
    Bug("stop tokens are forbidden too late", "sampler.cu",
        "      __syncthreads();   // each thread goes on with its own\n", "", drawn, False),
    Bug("the last tile is a full one", "sampler.cu", "end = min(TILE, vocab - begin) + begin", "end = TILE + begin", drawn),
    Bug("the penalty is the prompt's, too", "sampler.cu", "times = tallied >> 1", "times = tallied", drawn),
    Bug("a NaN is only looked for in the first part", "sampler.cu",
        "for (int p = 0; p < parts; p++) best", "for (int p = 0; p < 1; p++) best", dead),
    Bug("what a list allows is not remembered", "sampler.cu", "if (mask ? by_mask : by_list) best_kept", "if (by_mask) best_kept", dead),
    Bug("ties past the width are listed", "logprobs.cu", "if (missing < kth.at)", "if (false)", listed),
    Bug("the list is not sorted", "logprobs.cu", "place += listed[c] < mine;", "place = threadIdx.x;", listed, False),
    Bug("the rank counts the token itself", "logprobs.cu", "above += x > value;", "above += x >= value;", listed),
]  # fmt: skip
ORDERS = (0, 1)


def outcomes(run: Callable[[], bool], sources: Path) -> list[str]:
    """For each order of threads what went wrong, an empty string for nothing."""
    found = []
    for seed in ORDERS:
        try:
            with emulated(seed, sources):
                found.append("" if run() else "a wrong result")
        except EmulationError as caught:
            found.append(str(caught))
    return found


@pytest.mark.parametrize("run", [drawn, dead, listed])
def test_nothing_is_found_in_the_sources_as_they_are(run: Callable[[], bool]) -> None:
    assert outcomes(run, SOURCES) == [""] * len(ORDERS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    for name in ("common.cuh", "ptx.cuh", "select.cuh", "sampler.cu", "logprobs.cu"):
        shutil.copy(SOURCES / name, tmp_path)
    text = (tmp_path / bug.file).read_text()
    assert text.count(bug.old) == 1
    (tmp_path / bug.file).write_text(text.replace(bug.old, bug.new))
    found = outcomes(bug.run, tmp_path)
    assert all(found) if bug.every_time else any(found), found
