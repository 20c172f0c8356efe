"""The device's sampler over several steps against the CPU's, given the same logits: every feature, rows that change hands, late history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pytest
import torch

from gpu_workers.cuda.layout import Layout, pack, packed_size
from gpu_workers.sampling.device_sampler import DeviceSampler, Entries, uploader
from ipc.arena import RowSetup
from ipc.sampling_params import ThinkingLimit
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.sampler_rows import pack_bits
from tests.cuda_on_cpu.sync_machine import SyncMachine
from tests.gpu_workers.sampling.reference import packed, random_setup, rows_of, sampler_for

CPU = torch.device("cpu")
ROWS, MASKS, WIDTH = 12, 3, 5


@pytest.fixture(autouse=True)
def emulation() -> Iterator[None]:
    with emulated(seed=2):
        yield


def device_sampler(vocab: int) -> DeviceSampler:
    return DeviceSampler(ROWS, vocab, WIDTH, MASKS, CPU, 8, uploader(SyncMachine().pinned, CPU))


def sample(
    sampler: DeviceSampler, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, masks: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """(tokens, nan, tokens on the device); masks by entry."""
    mask_of = torch.full((len(rows),), -1, dtype=torch.int32)
    if masks:
        mask_of[list(masks)] = torch.arange(len(masks), dtype=torch.int32)
        sampler.put_masks(np.stack(list(masks.values())))
    entries = Entries(rows, torch.from_numpy(rows.astype(np.int32)), torch.from_numpy(positions), mask_of, len(masks))
    tokens, nan = sampler.sample(logits, entries)
    return tokens.numpy(), nan.numpy(), tokens


def length(setup: RowSetup) -> int:
    return len(setup.history) // 4


@pytest.mark.parametrize("vocab", [20, 300])
def test_the_cpus_tokens_step_by_step(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    setups = {row: random_setup(rng, row, vocab) for row in range(ROWS)}
    device, cpu = device_sampler(vocab), sampler_for(list(setups.values()), vocab, WIDTH)
    device.setup(list(setups.values()))
    positions = {row: length(setup) for row, setup in setups.items()}
    asked = 0
    for step in range(6):
        if step in (2, 4):  # some rows get new requests, with and without the features of the old ones
            new = [random_setup(rng, row, vocab) for row in rng.permutation(ROWS)[:5].tolist()]
            device.setup(new)
            cpu.setup(new)
            setups.update({each.row: each for each in new})
            positions.update({each.row: length(each) for each in new})
        rows = rng.permutation(ROWS)[: rng.integers(1, ROWS + 1)].astype(np.int64)
        logits = torch.from_numpy(rng.normal(0, 3, (len(rows), vocab)).astype(np.float32))
        masks = {
            int(entry): rng.integers(-(2**31), 2**31, -(-vocab // 32)).astype(np.int32) for entry in sorted(rng.permutation(len(rows))[:2])
        }
        at = np.array([positions[row] for row in rows.tolist()], np.int64)
        words = np.stack(list(masks.values()))
        expected = cpu.sample(logits.clone(), rows, at, np.array(list(masks), np.int64), words)
        tokens, nan, on_device = sample(device, logits, rows, at, masks)
        assert not nan.any()
        # One draw within rounding of another token would make all later ones differ; these seeds have none.
        assert tokens.tolist() == expected.tokens.tolist()
        asked += len(rows)
        reported, widths = device.reported(rows)
        if expected.logprobs is None:
            assert not len(reported)
        else:
            columns = device.report(logits, reported, on_device[torch.from_numpy(reported)], widths)
            assert reported.tolist() == expected.logprobs.at.tolist()
            assert columns.rank.tolist() == expected.logprobs.rank.tolist()
            assert columns.top_ids.tolist() == expected.logprobs.top_ids.tolist()
            assert columns.logprob.numpy() == pytest.approx(expected.logprobs.logprob, abs=2e-6)
            assert columns.top_logprobs.numpy() == pytest.approx(expected.logprobs.top_logprobs, abs=2e-6)
        device.learn(rows, tokens)
        for row in rows.tolist():
            positions[row] += 1
    assert asked > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_cpus(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("gpu_workers.sampling.device_sampler.ENTRIES_AT_ONCE", 5)
    rng, vocab = np.random.default_rng(8), 70
    setups = [msgspec.structs.replace(random_setup(rng, row, vocab), scores=row % 4 > 0, logprobs=row % 6) for row in range(ROWS)]
    device, cpu = device_sampler(vocab), sampler_for(setups, vocab, WIDTH)
    device.setup(setups)
    logits = torch.from_numpy(rng.normal(0, 3, (ROWS, vocab)).astype(np.float32)).to(dtype)
    rows, positions = np.arange(ROWS), np.array([length(setup) for setup in setups], np.int64)
    masks = {entry: rng.integers(-(2**31), 2**31, 3).astype(np.int32) for entry in (2, 4, 9)}
    expected = cpu.sample(logits.float().clone(), rows, positions, np.array(list(masks), np.int64), np.stack(list(masks.values())))
    assert expected.logprobs is not None
    tokens, nan, on_device = sample(device, logits, rows, positions, masks)
    scored = np.array([setup.scores for setup in setups])
    assert not nan.any() and tokens[~scored].tolist() == expected.tokens[~scored].tolist()
    reported, widths = device.reported(rows)
    columns = device.report(logits, reported, on_device[torch.from_numpy(reported)], widths, reported)
    assert columns.top_ids.tolist() == expected.logprobs.top_ids.tolist()
    assert (expected.logprobs.top_ids >= 0).sum() > 10
    assert columns.top_logprobs.numpy() == pytest.approx(expected.logprobs.top_logprobs, abs=1e-5)


def test_float16_logits_and_more_entries_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_workers.sampling.device_sampler.ENTRIES_AT_ONCE", 5)
    setups = [RowSetup(row, 1, seed=row, temperature=0.0 if row % 2 else 1.0, history=packed([1])) for row in range(ROWS)]
    device, cpu = device_sampler(70), sampler_for(setups, 70)
    device.setup(setups)
    logits = (torch.randn(ROWS, 70, generator=torch.Generator().manual_seed(1)) * 2).half()
    positions = np.ones(ROWS, np.int64)
    tokens, _, _ = sample(device, logits, rows_of(setups).astype(np.int64), positions, {})
    assert tokens.tolist() == cpu.sample(logits.float(), rows_of(setups), positions).tokens.tolist()


def test_only_rows_with_bad_words_of_several_tokens_need_their_history() -> None:
    device = device_sampler(40)
    wishes: Sequence[dict[str, object]] = ({}, {"bad_words": [[3]]}, {"bad_words": [[5, 6]]}, {"repetition_penalty": 1.2})
    device.setup([RowSetup(row, 1, seed=0, history=packed([5]), **each) for row, each in enumerate(wishes)])
    assert device.needs_history(np.arange(4)).tolist() == [False, False, True, False]
    logits = torch.zeros(1, 40)
    logits[0, 6], logits[0, 7] = 3, 2
    row, position = np.array([2]), np.array([1])
    assert sample(device, logits, row, position, {})[0].tolist() == [7]  # 6 may not follow 5
    device.learn(row, np.array([7], np.int32))
    assert sample(device, logits, row, position + 1, {})[0].tolist() == [6]
    device.setup([RowSetup(2, 1, seed=0, history=packed([5]))])
    assert not device.needs_history(np.arange(4)).any()


def test_reasoning_is_ended_and_named_tokens_are_reported() -> None:
    device, begin, end = device_sampler(40), 1, 2
    limit = ThinkingLimit(2, begin, end, opened=True)
    device.setup(
        [RowSetup(0, 1, seed=0, history=packed([5]), thinking=limit), RowSetup(1, 1, seed=0, logprobs=2, logprob_ids=packed([30, 3]))]
    )
    assert device.needs_history(np.arange(2)).tolist() == [True, False]
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(4))
    logits[0, [begin, end]] = -9.0
    free = int(logits[0].argmax())
    found = []
    for position in range(1, 5):
        tokens, _, on_device = sample(device, logits, np.arange(2), np.full(2, position), {})
        found.append(int(tokens[0]))
        reported, widths = device.reported(np.arange(2))
        columns = device.report(logits, reported, on_device[torch.from_numpy(reported)], widths, reported)
        assert columns.top_ids[0, :2].tolist() == [30, 3]
        assert columns.top_logprobs[0, :2].numpy() == pytest.approx(torch.log_softmax(logits[1], -1)[[30, 3]].numpy(), abs=1e-5)
        device.learn(np.arange(2), tokens)
    assert found == [free, free, end, free]


def test_nan_and_masks_of_a_step() -> None:
    device = device_sampler(64)
    device.setup([RowSetup(row, 1, seed=0) for row in range(3)])
    logits = torch.zeros(3, 64)
    logits[0], logits[1, 9], logits[2, 9] = float("nan"), 5, 5
    tokens, nan, _ = sample(device, logits, np.arange(3), np.ones(3, np.int64), {1: pack_bits([4, 7], 64)})
    assert nan.tolist() == [1, 0, 0]
    assert tokens.tolist()[1:] == [4, 9]


def test_columns_come_back_as_they_were_packed() -> None:
    columns = {"a": np.arange(5, dtype=np.int32), "b": np.zeros(0, np.float32), "c": np.arange(6, dtype=np.float64).reshape(3, 2)}
    memory = SyncMachine().pinned(packed_size(columns))
    views = pack(columns, memory).views(memory)
    assert {name: view.tolist() for name, view in views.items()} == {name: column.tolist() for name, column in columns.items()}
    assert Layout({"x": ((3,), torch.int64), "y": ((1,), torch.int8)}).size == 128
