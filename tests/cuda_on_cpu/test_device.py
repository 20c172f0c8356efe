"""The CUDA device's whole path, from plan columns to result columns, with its kernels emulated: against the CPU device and the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_workers.attention import HeadNorms, cuda_paged
from gpu_workers.cuda.memory import GRAPH_BYTES
from gpu_workers.cuda.runner import CUDARunner
from gpu_workers.device.cuda import CUDADevice
from gpu_workers.sampler import Sampler
from ipc.arena import NUM_SLOTS, PlanColumns, PlanHeader, RowFlag
from ipc.errors import ConfigError
from kernels_cuda import paged_decode
from tests import oracle
from tests.cuda_on_cpu.emulator import emulated
from tests.cuda_on_cpu.sampler_rows import pack_bits
from tests.cuda_on_cpu.sync_machine import SyncMachine
from tests.gpu_workers.player import Player, Row
from tests.gpu_workers.sampling.reference import packed

VOCAB = 512
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 128, "head_dim": 64, "num_hidden_layers": 2, "dtype": "float16"}
MODELS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {"dtype": "bfloat16"}),
    "mistral": ("Mistral", {"sliding_window": 40, "head_dim": 32}),
}
# How much less likely than the best token a chosen one may be under the oracle in float32: these models make much of what is rounded.
NEAR = {"float16": 0.1, "bfloat16": 1.5}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    class Made(dict[str, str]):
        def __missing__(self, name: str) -> str:
            family, changes = MODELS[name]
            self[name] = oracle.make_model(tmp_path_factory.mktemp(name), family, **{**SHAPE, **changes})
            return self[name]

    return Made()


@pytest.fixture(autouse=True)
def emulation() -> Iterator[None]:
    with emulated(seed=5):
        yield


def player_on(machine: SyncMachine, path: str, **flags: Any) -> Player:
    return Player(path, opened=lambda config: CUDADevice(0, config, machine), **flags)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def check_greedy(path: str, row: Row) -> None:
    """Every output token is the oracle's best one after what came before, or so near that rounding decides."""
    logits = oracle.logits(path, row.tokens)
    before = logits[row.num_prompt - 1 : -1]
    chosen = before.gather(1, torch.tensor(row.output)[:, None])[:, 0]
    assert (before.amax(-1) - chosen).max() <= NEAR[str(oracle.load(path).dtype).removeprefix("torch.")]


@pytest.mark.parametrize("name", MODELS)
def test_chunks_decodes_and_mixed_steps(name: str, checkpoints: dict[str, str]) -> None:
    machine = SyncMachine()
    player = player_on(machine, checkpoints[name])
    rows = [player.add(3, prompt(70)), player.add(0, prompt(1, 1)), player.add(6, prompt(33, 2))]
    player.step([(rows[0], 37), (rows[1], 1)])
    player.step([(rows[1], 1), (rows[0], 33), (rows[2], 20)])
    player.step([(rows[1], 1), (rows[0], 1), (rows[2], 13)])
    player.run(rows, 6)
    for row in rows:
        check_greedy(checkpoints[name], row)
    runner = player.runner
    assert isinstance(runner, CUDARunner)
    assert sum(graph.replayed for graph in machine.graphs) >= 2


def watch(player: Player) -> list[torch.Tensor]:
    """The logits of every call the runner samples from or reports on, from now on."""
    seen: list[torch.Tensor] = []
    original = player.model.logits

    def logits(hidden: torch.Tensor) -> torch.Tensor | None:
        computed = original(hidden)
        assert computed is not None
        seen.append(computed.clone())
        return computed

    player.model.logits = logits  # type: ignore[method-assign]
    return seen


def test_graphs_change_nothing(checkpoints: dict[str, str]) -> None:
    """The same bits with every kernel launched by itself, with graphs recorded when a size comes again, and in spare time before."""
    outputs = []
    for eager, spare in ((True, False), (False, False), (False, True)):
        machine = SyncMachine()
        player = player_on(machine, checkpoints["llama"], enforce_eager=eager, max_num_seqs=4)
        while spare and player.runner.spare_time():
            pass
        seen = watch(player)
        rows = [player.add(row, prompt(9 + row, row)) for row in (2, 0, 1)]
        player.run(rows, 5)
        assert (len(machine.graphs) > 0) == (not eager)
        assert sum(graph.replayed for graph in machine.graphs) == (0 if eager else 4 if spare else 3)
        outputs.append(([row.output for row in rows], torch.cat(seen)))
    assert outputs[0][0] == outputs[1][0] == outputs[2][0]
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert torch.equal(outputs[0][1], outputs[2][1])


@pytest.mark.parametrize(("name", "cached"), [("llama", "fp8"), ("qwen3", "fp8_e4m3")])
def test_an_fp8_cache(name: str, cached: str, checkpoints: dict[str, str]) -> None:
    """Logits of chunks, mixed steps and replayed decodes are the oracle's whose cache is rounded, and further from those of the one
    whose cache is not."""
    player = player_on(SyncMachine(), checkpoints[name], kv_cache_dtype=cached)
    runner = player.runner
    assert isinstance(runner, CUDARunner)
    assert {cache.dtype for cache in (*runner.cache.k, *runner.cache.v)} == {torch.float8_e4m3fn}
    seen, rows = watch(player), [player.add(1, prompt(45)), player.add(4, prompt(20, 1))]
    player.step([(rows[0], 30), (rows[1], 20)])
    player.step([(rows[0], 15), (rows[1], 1)])
    for _ in range(4):
        player.step([(row, 1) for row in rows])
    near, far = [], []
    for at, row in enumerate(rows):
        got = torch.stack([logits[at] for logits in seen[1:]]).float()
        for distances, fp8 in ((near, True), (far, False)):
            wanted = oracle.logits(checkpoints[name], row.tokens, fp8)[-len(got) - 1 : -1]
            distances.append((got - wanted).norm(dim=-1) / wanted.norm(dim=-1))
    assert torch.cat(near).median() < 0.04
    assert torch.cat(near).mean() < 0.7 * torch.cat(far).mean()


class SameInputs:
    """Gives attention q, k and v that depend on a token's request, position and layer alone, and keeps what attention makes of them:
    the products before it are the CPU's here, cuBLAS's on a GPU, and neither promises the same bits in another batch."""

    def __init__(self, player: Player, rows: list[Row]) -> None:
        runner = player.runner
        assert isinstance(runner, CUDARunner)
        self.outputs: dict[tuple[int, int, int], torch.Tensor] = {}
        self._rows, self._block_size, self._attention = rows, player.block_size, runner.attention
        self._run, self._given = runner.attention.run, {}
        runner.attention.run = self.run  # type: ignore[method-assign]

    def run(self, qkv: torch.Tensor, norms: HeadNorms | None, layer: int) -> torch.Tensor:
        places = self._attention._places
        assert places is not None
        owners = {int(block): row for row in self._rows for block in row.blocks}
        tokens = [
            (at, owners[slot // self._block_size].num_prompt, position)
            for at, (slot, position) in enumerate(zip(places.slots.tolist(), places.positions.tolist()))
            if slot >= 0
        ]
        for at, request, position in tokens:
            generator = torch.Generator().manual_seed(request << 20 | position << 4 | layer)
            qkv[at] = torch.randn(qkv.shape[1:], generator=generator).to(qkv.dtype)
        out = self._run(qkv, norms, layer)
        for at, request, position in tokens:
            self.outputs[request, position, layer] = out[at].clone()
        return out


def attention_bits(path: str, lengths: list[int], chunks: list[list[int]], **flags: Any) -> dict[tuple[int, int, int], torch.Tensor]:
    """What attention gives each token of requests with so many prompt tokens, read in by these chunks, and of three decode steps."""
    player = player_on(SyncMachine(), path, max_num_seqs=4, **flags)
    rows = [player.add(at, prompt(length, length)) for at, length in enumerate(lengths)]
    inputs = SameInputs(player, rows)
    for counts in chunks:
        player.step([(row, count) for row, count in zip(rows, counts) if count])
    for _ in range(3):
        player.step([(row, 1) for row in rows])
    return inputs.outputs


def test_batch_invariant_attention(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request alone, its prompt in one piece, has the bits that it has in a crowd, cut so that one token is left; and a prompt of one
    token. Without the flag they differ, at the token that was left and where the long request is split for the machine."""
    monkeypatch.setattr(paged_decode, "FIXED_SPLIT", 64)
    path = checkpoints["llama"]
    for invariant in (True, False):
        crowd = attention_bits(path, [150, 90, 1, 201], [[80, 90, 0, 0], [69, 1, 1, 201], [1, 1, 1, 1]], batch_invariant=invariant)
        different = set()
        for length in (150, 1):
            alone = attention_bits(path, [length], [[length]], batch_invariant=invariant)
            assert len(alone) == 2 * (length + 3)
            different |= {place[:2] for place, bits in alone.items() if not torch.equal(bits, crowd[place])}
        assert not different or not invariant
        assert invariant or {(150, 149), (150, 151)} <= different


def test_prompts_by_wgmma(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """--attention-prefill wgmma attends for prompts in its own kernel, in mixed steps too; what it cannot serve is refused by its name."""
    launched: list[int] = []
    right = cuda_paged.PREFILL["wgmma"]

    def counted(q: torch.Tensor, *rest: Any) -> None:
        launched.append(len(q))
        right(q, *rest)

    monkeypatch.setattr(cuda_paged, "PREFILL", {"wgmma": counted})
    path = checkpoints["llama"]
    player = player_on(SyncMachine(), path, attention_prefill="wgmma")
    first = player.add(2, prompt(150))
    player.step([(first, 90)])
    player.step([(first, 60)])
    second = player.add(0, prompt(20, 4))
    player.step([(first, 1), (second, 20)])
    player.run([first, second], 2)
    assert launched == [90, 90, 60, 60, 21, 21]
    for row in (first, second):
        check_greedy(path, row)
    with pytest.raises(ConfigError, match=r"--attention-prefill wgmma: it has no variant for heads of 32.*leave it at auto"):
        player_on(SyncMachine(), checkpoints["mistral"], attention_prefill="wgmma")
    with pytest.raises(ConfigError, match=r"--attention-prefill wgmma: it has no variant for an fp8 cache"):
        player_on(SyncMachine(), path, attention_prefill="wgmma", kv_cache_dtype="fp8")
    other = SyncMachine()
    other.chip = replace(other.chip, architectures=("100",))
    with pytest.raises(
        ConfigError, match=r"--attention-prefill wgmma: it needs a GPU of compute capability 9\.0 \(Hopper\); this one runs sm_100"
    ):
        player_on(other, path, attention_prefill="wgmma")


def test_shared_blocks_a_preempted_row_and_a_reused_one(checkpoints: dict[str, str]) -> None:
    path = checkpoints["qwen3"]
    player = player_on(SyncMachine(), path)
    first = player.add(1, prompt(40))
    player.run([first], 2)
    shared = player.add(4, prompt(40)[:35] + prompt(9, 7), first, 32)
    player.run([first, shared], 4)
    # Preempted and computed again from all its tokens, in another row and other blocks.
    again = player.add(0, first.tokens)
    again.num_prompt = first.num_prompt
    taken = player.add(1, prompt(21, 3))
    player.run([again, taken, shared], 6)
    for row in (again, taken, shared):
        check_greedy(path, row)


FEATURES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 40},
    {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2, "logprobs": 3},
    {"temperature": 1.2, "min_p": 0.02, "logit_bias": {5: 4.0, 9: -3.0}, "allowed": packed(range(0, VOCAB, 3))},
    {"bad_words": [[int(token)] for token in range(40, 200)], "min_position": 100, "stop_ids": list(range(200, 300)), "logprobs": 0},
    {"temperature": 1.0, "bad_words": [[first, second] for first in range(60) for second in range(60, 64)], "top_k": 2},
)


def test_what_requests_ask_for_comes_out_as_on_the_cpu(checkpoints: dict[str, str]) -> None:
    """Given the device's logits, the CPU's sampler chooses the same tokens and reports the same log-probabilities, step by step."""
    player = player_on(SyncMachine(), checkpoints["llama"], max_logprobs=4)
    rows = [player.add(row, prompt(5 + row, row), **wishes) for row, wishes in enumerate(FEATURES)]
    cpu = Sampler(8, VOCAB, 4, torch.device("cpu"))
    cpu.setup(list(player._setups))
    seen = watch(player)
    for _ in range(6):
        positions = np.array([len(row.tokens) for row in rows])
        player.step([(row, len(row.tokens) - row.computed) for row in rows])
        expected = cpu.sample(seen.pop(), np.arange(len(rows), dtype=np.int32), positions)
        assert [row.output[-1] for row in rows] == expected.tokens.tolist()
        assert expected.logprobs is not None
        for at, logprob, rank, ids in zip(*(getattr(expected.logprobs, name).tolist() for name in ("at", "logprob", "rank", "top_ids"))):
            assert rows[at].logprobs[-1][0] == pytest.approx(logprob, abs=2e-6)
            assert rows[at].logprobs[-1][1:3] == (rank, ids)


def test_scores_come_out_as_on_the_cpu(checkpoints: dict[str, str]) -> None:
    """Of a row among others, one of which reports its raw log-probabilities, as in a beam search beside other requests."""
    player = player_on(SyncMachine(), checkpoints["llama"], max_logprobs=4)
    changes: dict[str, Any] = {"repetition_penalty": 1.5, "logit_bias": {5: 9.0}, "allowed": packed(range(0, VOCAB, 5)), "logprobs": 4}
    rows = [player.add(row, prompt(9, row), **wishes) for row, wishes in enumerate(({}, {**changes, "scores": True}, changes))]
    cpu = Sampler(8, VOCAB, 4, torch.device("cpu"))
    cpu.setup(list(player._setups))
    seen = watch(player)
    player.step([(row, 9) for row in rows])
    expected = cpu.sample(seen.pop(), np.arange(3, dtype=np.int32), np.full(3, 9))
    assert expected.logprobs is not None
    scored, raw = expected.logprobs.top_ids.tolist()
    assert rows[1].logprobs[-1][2] == scored and rows[2].logprobs[-1][2] == raw
    assert scored[0] == 5 and not any(token % 5 for token in scored) and any(token % 5 for token in raw)


def test_bad_words_of_several_tokens_see_the_token_of_the_step_before(checkpoints: dict[str, str]) -> None:
    player = player_on(SyncMachine(), checkpoints["llama"])
    free = player.add(0, prompt(9))
    player.run([free], 4)
    first, second, third, _ = free.output
    bound, other = player.add(3, prompt(9), bad_words=[[first, second]]), player.add(1, prompt(9), bad_words=[[first, second, third]])
    player.run([bound, other], 3)
    assert bound.output[0] == first
    assert bound.output[1] != second
    assert other.output[:2] == [first, second]
    assert other.output[2] != third


def test_prompt_logprobs_in_chunks(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_workers.cuda.runner.LOGITS_AT_ONCE", 4 * VOCAB)
    path = checkpoints["llama"]
    player = player_on(SyncMachine(), path)
    player.wants_prompt_logprobs = frozenset({3})
    row, other = player.add(3, prompt(21), prompt_logprobs=2), player.add(1, prompt(30, 2))
    player.run([other, row], 2, chunk=11)
    expected = oracle.logits(path, row.tokens).log_softmax(-1)
    assert sorted(row.prompt_logprobs) == list(range(1, 21))
    for position, (logprob, _, ids, _) in row.prompt_logprobs.items():
        assert logprob == pytest.approx(float(expected[position - 1][row.tokens[position]]), abs=0.1)
        assert expected[position - 1].max() - expected[position - 1][ids[0]] <= 0.1


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_vectors_are_the_transformers_librarys(name: str, checkpoints: dict[str, str]) -> None:
    """Of last tokens and means, whole prompts and chunks, several in one step, beside rows that decode; and of a mean that begins again."""
    player = player_on(SyncMachine(), checkpoints[name])
    talking = player.add(3, prompt(12))
    player.run([talking], 1)
    wanted = {0: ("last", 45), 1: ("mean", 45), 2: ("mean", 1), 4: ("last", 1), 5: ("mean", 33)}
    rows = {row: player.add(row, prompt(length, row), pooling=pooling) for row, (pooling, length) in wanted.items()}
    player.step([(rows[0], 30), (talking, 1), (rows[1], 20)])
    assert player.step([(rows[1], 25), (rows[2], 1), (talking, 1), (rows[4], 1), (rows[0], 15), (rows[5], 32)])[2] >= 0
    again = player.add(5, rows[5].tokens, pooling="mean")  # it was preempted a token before its end
    player.step([(again, 10), (talking, 1)])
    player.step([(again, 23)])
    for row, (pooling, _) in wanted.items():
        got = again if row == 5 else rows[row]
        expected = oracle.vector(checkpoints[name], got.tokens, pooling)
        assert got.vector is not None
        assert not got.nan
        assert np.linalg.norm(got.vector - expected) < 0.03 * np.linalg.norm(expected)
    check_greedy(checkpoints[name], talking)
    assert len(talking.output) == 4


def test_a_vector_that_is_not_finite_is_flagged(checkpoints: dict[str, str]) -> None:
    player = player_on(SyncMachine(), checkpoints["llama"])
    sick, well = player.add(0, prompt(20), pooling="last"), player.add(1, prompt(21, 1), pooling="mean")
    player.step([(sick, 19), (well, 10)])
    assert isinstance(player.runner, CUDARunner)
    player.runner.cache.v[0][sick.blocks[0]] = float("nan")
    player.step([(sick, 1), (well, 11)])
    assert (sick.nan, well.nan) == (True, False)
    assert well.vector is not None and np.isfinite(well.vector).all()


def test_masks_that_come_between_the_halves_of_a_step(checkpoints: dict[str, str]) -> None:
    player = player_on(SyncMachine(), checkpoints["llama"])
    row, free = player.add(2, prompt(6)), player.add(0, prompt(7, 1))
    player.run([row, free], 1)
    begin, finish = player.runner.begin, player.runner.finish

    def late(begun: Any, *rest: Any) -> None:
        plan = player.arena.plans[player._step % NUM_SLOTS]
        plan.masks[0] = pack_bits([17, 400], VOCAB)
        finish(begun, *rest)

    def masked(plan: PlanColumns) -> Any:
        plan.flags[0] |= RowFlag.GRAMMAR
        plan.header[PlanHeader.NUM_MASKS] = 1
        plan.masks[:] = 0
        return begin(plan)

    player.runner.begin, player.runner.finish = masked, late  # type: ignore[method-assign]
    player.step([(row, 1), (free, 1)])
    assert row.output[-1] in (17, 400)
    check_greedy(checkpoints["llama"], free)


def test_nan_is_flagged_and_stays_in_its_row(checkpoints: dict[str, str]) -> None:
    player = player_on(SyncMachine(), checkpoints["llama"], num_blocks=8)
    sick, well = player.add(0, prompt(20)), player.add(1, prompt(21, 1))
    player.step([(sick, 19), (well, 10)])
    assert isinstance(player.runner, CUDARunner)
    player.runner.cache.v[0][sick.blocks[0]] = float("nan")
    player.step([(sick, 1), (well, 11)])
    assert sick.nan
    player._free = list(sick.blocks)  # the very same blocks, which nobody cleans
    after = player.add(0, prompt(18, 4))
    player.run([well, after], 3)
    assert not after.nan
    assert not well.nan
    check_greedy(checkpoints["llama"], after)
    check_greedy(checkpoints["llama"], well)


def test_the_largest_step_runs_and_leaves_nothing(checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = SyncMachine()
    player = player_on(machine, checkpoints["llama"], max_num_batched_tokens=40, max_num_seqs=3)
    wanted = player.device.kv_cache_bytes(None, player.serving)
    assert (machine.measured, wanted) == (1, int((1 << 30) * 0.9) - machine.step_bytes - GRAPH_BYTES)
    assert player.device.kv_cache_bytes(1234, player.serving) == 1234
    assert player.device.kv_cache_bytes(None, player.serving) == wanted
    assert machine.measured == 1
    assert machine.pinned_ranges == [(player.arena.memory.ctypes.data, player.arena.memory.nbytes)]
