"""Steps of the ModelRunner: what is sampled, reported and remembered, and plans that make no sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_workers import runner as runner_module
from gpu_workers.batch import Batch
from ipc.arena import Dimensions, PlanColumns, PlanHeader, RowFlag
from ipc.errors import ProtocolError
from tests import oracle
from tests.gpu_workers.player import Player

PROMPT = list(range(300, 341))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return oracle.make_model(tmp_path_factory.mktemp("runner"), "Llama", initializer_range=0.2)


def log_probabilities(path: str, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return oracle.load(path)(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def test_prompt_logprobs_in_chunks(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt token but the first is reported once, whatever the chunks; a neighbour without the wish gets none."""
    monkeypatch.setattr(runner_module, "LOGITS_AT_ONCE", 4 * oracle.VOCAB_SIZE)
    player = Player(model)
    player.wants_prompt_logprobs = frozenset({3})
    row, other = player.add(3, PROMPT, prompt_logprobs=2), player.add(1, PROMPT[7:])
    player.run([other, row], 2, chunk=11)
    expected = log_probabilities(model, PROMPT)
    assert sorted(row.prompt_logprobs) == list(range(1, len(PROMPT)))
    assert not other.prompt_logprobs
    for position, (logprob, rank, top_ids, top_logprobs) in row.prompt_logprobs.items():
        there = expected[position - 1]
        assert logprob == pytest.approx(float(there[PROMPT[position]]), abs=2e-3)
        assert rank == pytest.approx(int((there > there[PROMPT[position]]).sum()) + 1, abs=1)
        best = there.topk(2)
        assert top_ids[:2] == best.indices.tolist()
        assert top_logprobs[:2] == pytest.approx(best.values.tolist(), abs=2e-3)
        assert set(top_ids[2:]) == {-1}


def test_logprobs_of_sampled_tokens(model: str) -> None:
    player = Player(model)
    plain, row = player.add(0, PROMPT[:9]), player.add(4, PROMPT, logprobs=3)
    player.run([plain, row], 4)
    expected = log_probabilities(model, row.tokens)
    for number, (logprob, rank, top_ids, _) in enumerate(row.logprobs):
        there = expected[row.num_prompt - 1 + number]
        assert logprob == pytest.approx(float(there.max()), abs=2e-3)
        assert rank == 1
        assert top_ids[:3] == there.topk(3).indices.tolist()


def test_the_last_layer_computes_only_what_is_asked_for(model: str) -> None:
    """Of each row its last token, or everything where a row wants its prompt's log-probabilities or a mean. What is sampled is the same."""
    player = Player(model)
    layer, sizes = player.model._layers[-1], []
    mlp = layer.mlp

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return mlp(x)

    layer.mlp = counted  # type: ignore[assignment]
    outputs = []
    for row, others in enumerate(({}, {"pooling": "last"}, {"pooling": "mean"}, {"prompt_logprobs": 0})):
        player.wants_prompt_logprobs = frozenset({row + 4} if "prompt_logprobs" in others else ())
        first, second = player.add(row, PROMPT), player.add(row + 4, PROMPT[3:], **others)
        player.step([(first, len(PROMPT) - 2), (second, 5)])
        player.step([(first, 2), (second, len(PROMPT) - 8)])
        player.step([(first, 1)])
        outputs.append(first.output)
        assert second.pooling or second.output == oracle.greedy(model, PROMPT[3:], 1)
    everything = [len(PROMPT) + 3, len(PROMPT) - 6, 1]
    assert sizes == [2, 2, 1, 2, 2, 1, *everything, *everything]
    assert outputs == [oracle.greedy(model, PROMPT, 2)] * 4


def test_device_token_equals_the_token_said(model: str) -> None:
    outputs = []
    for device_token in (True, False):
        player = Player(model)
        rows = [player.add(index, PROMPT[index:]) for index in range(3)]
        player.step([(row, len(row.tokens)) for row in rows])
        for _ in range(6):
            player.step([(row, 1) for row in rows], device_token=device_token)
        outputs.append([row.output for row in rows])
    assert outputs[0] == outputs[1]


def test_nan_is_flagged_and_does_not_outlive_its_row(model: str) -> None:
    """A row whose KV holds NaN is flagged; others are not, nor is the next owner of its blocks, on either attention path."""
    for compiled in (True, False):
        player = Player(model, num_blocks=8)
        player.use_compiled(compiled)
        sick, well = player.add(0, PROMPT[:20]), player.add(1, PROMPT)
        player.step([(sick, 19), (well, 10)])
        player.runner.cache.v[0][sick.blocks[0]] = float("nan")
        player.step([(sick, 1), (well, 31)])
        assert sick.nan
        assert not well.nan
        player._free = list(sick.blocks)  # the very same blocks
        after = player.add(0, PROMPT[5:25])
        player.step([(after, 7)])
        player.run([well, after], 6)
        assert not after.nan
        assert after.output == oracle.greedy(model, PROMPT[5:25], 6)
        assert well.output == oracle.greedy(model, PROMPT, 6)


def test_a_step_that_samples_nothing(model: str) -> None:
    player = Player(model)
    row = player.add(0, PROMPT)
    assert player.step([(row, 5)]) == [-1]


def plan_of(rows: list[tuple[int, int, int, int]], ids: list[int]) -> PlanColumns:
    plan = PlanColumns(DIMENSIONS)
    for place, (row, num_new, start, flags) in enumerate(rows):
        plan.row[place], plan.num_new[place], plan.start[place], plan.flags[place] = row, num_new, start, flags
    plan.token_ids[: len(ids)] = ids
    plan.header[PlanHeader.NUM_ROWS], plan.header[PlanHeader.NUM_TOKEN_IDS] = len(rows), len(ids)
    plan.header[PlanHeader.NUM_TOKENS] = sum(row[1] for row in rows)
    return plan


DIMENSIONS = Dimensions(rows=16, tokens=256, blocks_per_row=12, block_updates=64, setup_bytes=1024, logprobs=1)


def test_inputs_equal_a_loop_over_rows() -> None:
    """The vectorised columns against the definition, row by row, on random plans."""
    rng = np.random.default_rng(1)
    batch = Batch(DIMENSIONS, 8, 1000)
    batch.block_tables[:] = rng.integers(0, 500, batch.block_tables.shape)
    batch.last_token[:] = rng.integers(0, 1000, 16)
    for _ in range(50):
        rows, ids = [], []
        for row in rng.permutation(16)[: rng.integers(1, 17)]:
            device = rng.random() < 0.5
            num_new, start = 1 if device else int(rng.integers(1, 16)), int(rng.integers(0, 80))
            flags = (RowFlag.DEVICE_TOKEN if device else 0) | (RowFlag.SAMPLE if rng.random() < 0.7 else 0)
            rows.append((int(row), num_new, start, int(flags)))
            ids += [] if device else rng.integers(0, 1000, num_new).tolist()
        step = batch.inputs(plan_of(rows, ids))
        given, token = iter(ids), 0
        for place, (row, num_new, start, flags) in enumerate(rows):
            assert step.query_starts[place] == token
            for position in range(start, start + num_new):
                assert step.row_of_token[token] == place
                assert step.positions[token] == position
                assert step.slots[token] == batch.block_tables[row, position // 8] * 8 + position % 8
                assert step.token_ids[token] == (batch.last_token[row] if flags & RowFlag.DEVICE_TOKEN else next(given))
                token += 1
        assert step.sample_at.tolist() == [place for place, row in enumerate(rows) if row[3] & RowFlag.SAMPLE]
        assert token == step.query_starts[-1] == len(step.token_ids)


def test_plans_that_contradict_themselves() -> None:
    batch = Batch(DIMENSIONS, 8, 1000)
    with pytest.raises(ProtocolError, match="gives 2 token ids for 3 tokens"):
        batch.inputs(plan_of([(0, 3, 0, 0)], [1, 2]))
    for token in (-1, 1000):
        with pytest.raises(ProtocolError, match=r"outside 0 \.\. 999"):
            batch.inputs(plan_of([(0, 2, 0, 0)], [1, token]))
    wrong = plan_of([(0, 2, 0, 0)], [1, 2])
    wrong.header[PlanHeader.NUM_TOKENS] = 3
    with pytest.raises(ProtocolError, match="2 new tokens, its header says 3"):
        batch.inputs(wrong)
