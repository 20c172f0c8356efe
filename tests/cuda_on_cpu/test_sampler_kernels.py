"""The sampler's kernels against the CPU sampler and against its float64 definition, in several orders of threads."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from itertools import product

import msgspec
import numpy as np
import pytest
import torch

from gpu_workers.sampling.exact import ExactWeights
from gpu_workers.sampling.philox import uniform
from ipc import sampling_params
from ipc.arena import RowSetup
from kernels_cuda import sampler
from kernels_cuda.errors import UnsupportedShape
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.guarded import guarded
from tests.cuda_on_cpu.sampler_rows import Rows, column, pack_bits
from tests.gpu_workers.sampling.reference import choose, packed, random_setup, sampler_for

INF = float("inf")
SIZES = [7, 33, 500, 4099]
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux on x86, which the mmap module lacks before Python 3.13


def random_logits(rng: np.random.Generator, count: int, vocab: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return guarded(torch.from_numpy((3 * rng.standard_normal((count, vocab))).astype(np.float32)).to(dtype))


def on_cpu(
    setups: Sequence[RowSetup], logits: torch.Tensor, rows: Sequence[int], positions: Sequence[int], masks: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and NaN marks of gpu_workers.sampler."""
    cpu = sampler_for(list(setups), logits.shape[1])
    at, words = (np.array(list(masks), np.int64), np.stack(list(masks.values()))) if masks else (None, None)
    given = cpu.sample(logits.clone(), np.asarray(rows, np.int32), np.asarray(positions, np.int64), at, words)
    return given.tokens, given.nan


@pytest.mark.parametrize(
    "vocab,dtype", [*product(SIZES, (torch.float32, torch.bfloat16)), *((vocab, torch.float32) for vocab in (2048, 2049, 4096))]
)
def test_the_cpu_samplers_tokens(vocab: int, dtype: torch.dtype) -> None:
    """Any mixture of features: what the definition says where it is not within rounding of two tokens, and then what the CPU gives, too."""
    rng = np.random.default_rng(vocab)
    count = 40 if vocab < 1000 else 12
    setups = [random_setup(rng, row, vocab) for row in range(count)]
    logits = random_logits(rng, count, vocab, dtype)
    rows = rng.permutation(count).tolist()
    positions = [len(setups[row].history) // 4 for row in rows]
    with emulated(seed=vocab):
        tokens, nan, _ = Rows(setups, vocab).sample(logits, rows, positions)
    expected = [choose(logits[at].double().tolist(), setups[row], positions[at]) for at, row in enumerate(rows)]
    clear = [at for at, (_, unclear) in enumerate(expected) if not unclear]
    assert not nan.any() and len(clear) > count / 2
    assert tokens[clear].tolist() == [expected[at][0] for at in clear]
    given, _ = on_cpu(setups, logits, rows, positions, {})
    assert (tokens != given).sum() <= 1, (tokens, given)  # exp may differ in its last bit


@pytest.mark.parametrize("vocab", [7, 500])
def test_under_a_grammar(vocab: int) -> None:
    """Masks beside all else, also where nothing is left: then the most likely token under the mask, or any of it."""
    rng = np.random.default_rng(vocab)
    count = 40
    setups = [random_setup(rng, row, vocab) for row in range(count)]
    logits = random_logits(rng, count, vocab)
    masks = {}
    for entry in range(0, count, 2):
        ids = rng.permutation(vocab)[: int(rng.integers(1, vocab))]
        masks[entry] = pack_bits(ids, vocab)
        if entry % 8 == 0:
            logits[entry, ids] = -INF  # the model excludes all that the mask allows
    rows, positions = list(range(count)), [len(setup.history) // 4 for setup in setups]
    given, given_nan = on_cpu(setups, logits, rows, positions, masks)
    with emulated(seed=3):
        tokens, nan, _ = Rows(setups, vocab).sample(logits, rows, positions, masks)
    assert (nan == given_nan).all() and (tokens != given).sum() <= 1, (tokens, given)


LOW = [0.0] * 7
SEVEN = [0.5, 2.0, -1.0, 2.0, 0.0, -3.0, 1.0]
EDGES: dict[str, tuple[list[float], RowSetup, set[int], int]] = {
    # name: logits, wishes, tokens that may come (over many positions: all of them do), whether NaN is reported
    "k above the vocabulary": (SEVEN, RowSetup(0, 0, 1, 5.0, top_k=100), set(range(7)), 0),
    "k = 1 with a tie": (SEVEN, RowSetup(0, 0, 1, 1.0, top_k=1), {1, 3}, 0),
    "k = 3": (SEVEN, RowSetup(0, 0, 1, 1.0, top_k=3), {1, 3, 6}, 0),
    "k with a tie at its end": (LOW, RowSetup(0, 0, 1, 1.0, top_k=2), set(range(7)), 0),
    "k more than the model leaves": ([-INF, 1.0, -INF, 1.0, -INF, -INF, -INF], RowSetup(0, 0, 1, 1.0, top_k=4), {1, 3}, 0),
    "tiny p": (SEVEN, RowSetup(0, 0, 1, 1.0, top_p=1e-9), {1, 3}, 0),
    "p = 1 - eps": (SEVEN, RowSetup(0, 0, 1, 5.0, top_p=1 - 2**-52), set(range(7)), 0),
    "p cuts among ties": (LOW, RowSetup(0, 0, 1, 1.0, top_p=0.5), set(range(7)), 0),
    "p of what k leaves": ([3.0, 2.9, 1.0, 0.0, 0.0, 0.0, 0.0], RowSetup(0, 0, 1, 1.0, top_p=0.5, top_k=2), {0}, 0),
    "min-p of 1": (SEVEN, RowSetup(0, 0, 1, 1.0, min_p=1.0), {1, 3}, 0),
    "low temperature": (SEVEN, RowSetup(0, 0, 1, 1.1e-5), {1, 3}, 0),
    "greedy takes the lowest of equals": (SEVEN, RowSetup(0, 0, 1), {1}, 0),
    "zero and minus zero are equal": ([-0.0, 0.0, -1.0, -1.0, -1.0, -1.0, -1.0], RowSetup(0, 0, 1), {0}, 0),
    "one allowed": (SEVEN, RowSetup(0, 0, 1, 1.0, allowed=packed([5])), {5}, 0),
    "allowed ones that the model excludes": ([-INF, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0], RowSetup(0, 0, 1, 1.0, allowed=packed([0])), {2}, 0),
    "all forbidden": (SEVEN, RowSetup(0, 0, 1, 1.0, bad_words=[[i] for i in range(7)]), {1}, 0),
    "all forbidden of those allowed": (SEVEN, RowSetup(0, 0, 1, 1.0, allowed=packed([0, 5]), bad_words=[[0], [5]]), {0}, 0),
    "unknown ids": (SEVEN, RowSetup(0, 0, 1, 0.0, logit_bias={6: 5.0, 7: 99.0}, bad_words=[[9]], stop_ids=[8], min_position=99), {6}, 0),
    "bias on a stop token": (SEVEN, RowSetup(0, 0, 1, 0.0, logit_bias={1: 50.0}, stop_ids=[1], min_position=99), {3}, 0),
    "huge logits": ([3e38, -3e38, 0.0, 3e38, 0.0, 0.0, 0.0], RowSetup(0, 0, 1, 1.0), {0, 3}, 0),
    "NaN": ([0.0, float("nan"), 0.0, 0.0, 0.0, 0.0, 0.0], RowSetup(0, 0, 1, 1.0), {0}, 1),
    "NaN under a list": ([0.0, float("nan"), 0.0, 0.0, 0.0, 0.0, 0.0], RowSetup(0, 0, 1, 0.0, allowed=packed([4])), {0}, 1),
    "infinity": ([0.0, INF, 0.0, 0.0, 0.0, 0.0, 0.0], RowSetup(0, 0, 1, 1.0), {0}, 1),
    "all minus infinity": ([-INF] * 7, RowSetup(0, 0, 1, 1.0), {0}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    values, setup, expected, marked = EDGES[name]
    times = 64 if len(expected) > 2 else 12
    setups = [msgspec.structs.replace(setup, row=row) for row in range(times)]
    logits = guarded(torch.tensor([values] * times))
    with emulated(seed=1):
        tokens, nan, _ = Rows(setups, 7).sample(logits, range(times), range(times))
    given, given_nan = on_cpu(setups, logits, range(times), range(times), {})
    assert tokens.tolist() == given.tolist() and (nan == given_nan).all()
    assert set(tokens.tolist()) == expected and (nan == marked).all()


def test_a_large_vocabulary() -> None:
    """152,064 ids, as many parts as a single entry gets: the CPU's tokens with and without filters."""
    vocab = 152_064
    wishes: list[dict[str, float]] = [{}, {"top_p": 0.9}, {"top_k": 5000, "top_p": 0.99}, {"min_p": 0.001}]
    setups = [RowSetup(row, 0, row, 1.5, **each) for row, each in enumerate(wishes)]
    logits, at = random_logits(np.random.default_rng(2), len(setups), vocab), range(len(setups))
    with emulated(seed=1):
        tokens, _, _ = Rows(setups, vocab).sample(logits, at, at, parts=sampler.parts_for(1, vocab))
    assert tokens.tolist() == on_cpu(setups, logits, at, at, {})[0].tolist()


def test_entries_of_no_row_are_marked() -> None:
    setups = [RowSetup(0, 0, 1, 1.0), RowSetup(1, 0, 1, 1.0)]
    with emulated(seed=2):
        tokens, nan, _ = Rows(setups, 7).sample(guarded(torch.zeros(4, 7)), [5, 0, -1, 2], [0] * 4)
    assert nan.tolist() == [1, 0, 1, 1] and tokens[[0, 2, 3]].tolist() == [0, 0, 0]


def test_masks_slots_and_spans_that_do_not_exist_are_none() -> None:
    """Numbers out of range in the columns are not followed; the arrays end at a page that may not be touched."""
    rows = Rows([RowSetup(0, 0, 1, 1.0), RowSetup(1, 0, 1, 0.0)], 7)
    far = 1 << 30
    columns = [column([1.0, 1.0], torch.float32) for _ in range(3)]
    spans = column([[far, 5], [-3, far]], torch.int32)
    work = sampler.Workspace(guarded(torch.zeros(2, 7)), guarded(torch.zeros(2, 1, sampler.PARTIAL, dtype=torch.int64)))
    tokens, nan = column([-1, -1], torch.int32), column([-1, -1], torch.int32)
    with emulated(seed=5):
        sampler.sample(
            guarded(torch.tensor([SEVEN, SEVEN])), column([0, 1], torch.int32), column([4, 4], torch.int64), rows.wishes, work, tokens, nan,
            masks=sampler.Masks(column([[0]], torch.int32), column([far, 1], torch.int32), column([far, -far], torch.int32)),
            edits=sampler.Edits(column([1], torch.int32), column([9.0], torch.float32), spans),
            stops=sampler.Stops(column([1], torch.int32), spans, column([far, far], torch.int64)),
            tallies=sampler.Tallies(column([[1] * 7], torch.int32), column([far, 1], torch.int32), *columns),
        )  # fmt: skip
    given, _ = on_cpu(rows.setups, torch.tensor([SEVEN, SEVEN]), [0, 1], [4, 4], {})
    assert tokens.tolist() == given.tolist() and nan.tolist() == [0, 0]


def test_a_row_does_not_depend_on_the_batch_the_parts_or_the_order_of_threads() -> None:
    """Equal bits of the edited logits and equal tokens."""
    rng = np.random.default_rng(4)
    vocab, count = 5003, 6
    setups = [random_setup(rng, row, vocab) for row in range(count)]
    logits, positions = random_logits(rng, count, vocab), [len(setup.history) // 4 for setup in setups]
    with emulated():
        whole, _, edited = Rows(setups, vocab).sample(logits, range(count), positions, parts=1)
    for seed, parts in ((1, 2), (2, 3), (7, 5)):
        with emulated(seed=seed):
            at = int(rng.integers(count))
            alone, _, row = Rows(setups, vocab).sample(guarded(logits[at : at + 1]), [at], [positions[at]], parts=parts)
            order = rng.permutation(count)
            crowd, _, _ = Rows(setups, vocab).sample(guarded(logits[order]), order.tolist(), [positions[i] for i in order], parts=parts)
        assert alone[0] == whole[at] and crowd.tolist() == whole[order].tolist()
        assert torch.equal(row[0].view(torch.int32), edited[at].view(torch.int32))


def test_tallies_follow_the_tokens() -> None:
    """Several steps with penalties: the CPU's tokens at each, and a tally that is the history's."""
    rng = np.random.default_rng(9)
    vocab, count = 40, 5
    history = rng.integers(-2, vocab + 2, 30)  # some ids do not exist
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    setups = [RowSetup(row, 10 + row, row, 0.7 * (row % 2), history=packed(history), **penalties) for row in range(count)]
    setups.append(RowSetup(count, 0, 3, 1.0))
    cpu = sampler_for(setups, vocab)
    sampled: list[list[int]] = []
    with emulated(seed=6):
        rows = Rows(setups, vocab)
        for step in range(3):
            logits = random_logits(rng, count + 1, vocab)
            at = rng.permutation(count + 1).astype(np.int32)
            given = cpu.sample(logits.clone(), at, np.full(count + 1, 30 + step))
            tokens, _, _ = rows.sample(logits, at.tolist(), [30 + step] * (count + 1))
            assert tokens.tolist() == given.tokens.tolist()
            sampled.append(tokens[np.argsort(at)].tolist())
    assert rows.tallies is not None
    for row in range(count):
        output = history[10 + row :].tolist() + [tokens[row] for tokens in sampled]
        want = [2 * output.count(token) + (token in history[: 10 + row]) for token in range(vocab)]
        assert rows.tallies.tally[int(rows.tallies.slot_of[row])].tolist() == want


def test_frequencies() -> None:
    """Chi-squared over a small vocabulary with fixed seeds, after top-k and a temperature; 24.3 is exceeded once in 10,000 times."""
    vocab, draws = 7, 800
    setups = [RowSetup(row, 0, 1000 + row % 3, 0.8, top_k=6) for row in range(draws)]
    values = torch.tensor([0.0, 1.0, 0.5, -0.5, -4.0, 0.2, 0.8])
    with emulated():
        tokens, _, _ = Rows(setups, vocab).sample(guarded(values.repeat(draws, 1)), range(draws), range(draws), parts=1)
    chances = torch.softmax(values.double() / 0.8, 0)
    chances[4] = 0
    expected = (chances / chances.sum() * draws).numpy()
    seen = np.bincount(tokens, minlength=vocab)
    kept = expected > 0
    assert seen[4] == 0 and (((seen - expected) ** 2)[kept] / expected[kept]).sum() < 24.3


def test_the_random_number_is_that_of_seed_and_position() -> None:
    """With equal weights the token is floor(u * vocab): 64-bit seeds and positions beyond 32 bits are seen whole."""
    vocab = 4096
    seeds, positions = [0, 1, -1, 2**63 - 1, 2**32], [0, 1, 2**31, 2**32 + 5, 2**40]
    setups = [RowSetup(row, 0, seed, 1.0) for row, seed in enumerate(seeds)]
    u = uniform(np.array(seeds, np.int64).view(np.uint64), np.array(positions, np.int64))
    with emulated(seed=1):
        tokens, _, _ = Rows(setups, vocab).sample(guarded(torch.zeros(5, vocab)), range(5), positions)
    assert tokens.tolist() == np.floor(u * vocab).astype(int).tolist()


def test_logits_beyond_2_to_the_31_elements() -> None:
    """Rows 1.3e9 elements apart, in memory that is mostly never touched."""
    vocab, stride, count = 13, 1_300_000_001, 3
    size = ((count - 1) * stride + vocab) * 2
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    flat = torch.frombuffer(memory, dtype=torch.bfloat16)
    logits = flat.as_strided((count, vocab), (stride, 1))
    logits.copy_(torch.eye(count, vocab).flip(-1))
    with emulated():
        tokens, nan, _ = Rows([RowSetup(row, 0, 1) for row in range(count)], vocab).sample(logits, range(count), range(count))
    assert tokens.tolist() == [12, 11, 10] and not nan.any()


def test_constants_that_others_share() -> None:
    assert sampler.GREEDY_BELOW == sampling_params.GREEDY_BELOW
    for vocab in (2, 3, 7, 8, 9, 32_000, 128_256, 152_064, 1 << 17, (1 << 17) + 1):
        quantum = 2.0 ** -sampler.quantum_bits(vocab)
        exact = ExactWeights(vocab)
        assert vocab <= quantum * 2**53
        assert exact(torch.tensor([quantum * 0.51])).item() == quantum and exact(torch.tensor([quantum * 0.49])).item() == 0
    assert [sampler.parts_for(1, 152_064), sampler.parts_for(64, 152_064), sampler.parts_for(600, 7)] == [75, 8, 1]


def test_unsupported_shapes_are_named() -> None:
    rows = Rows([RowSetup(0, 0, 1)], 7)
    with pytest.raises(UnsupportedShape, match="logits are float16"):
        rows.sample(guarded(torch.zeros(1, 7, dtype=torch.float16)), [0], [0])
    with pytest.raises(UnsupportedShape, match="strides"):
        rows.sample(torch.zeros(7, 1).T.as_strided((1, 7), (7, 0)), [0], [0])
    with pytest.raises(UnsupportedShape, match="masks of 1 words for 40 ids"):
        Rows([RowSetup(0, 0, 1)], 40).sample(guarded(torch.zeros(1, 40)), [0], [0], {0: np.zeros(1, np.int32)})
    with pytest.raises(UnsupportedShape, match="rows has 2 entries, not 1"):
        rows.sample(guarded(torch.zeros(1, 7)), [0, 0], [0])


def test_nothing_to_do() -> None:
    rows = Rows([RowSetup(0, 0, 1)], 7)
    tokens, _, _ = rows.sample(torch.zeros(0, 7), [], [])
    assert len(tokens) == 0
