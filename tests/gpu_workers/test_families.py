"""Every family against the Transformers library: logits and greedy tokens through chunks, mixed batches and scattered blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_workers.attention.cpu_paged import group_rows
from tests import oracle
from tests.gpu_workers.player import Player

NUM_OUTPUT = 10
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_biases_tied": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama_one_kv_head_own_head_dim": ("Llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "llama3_rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama_linear_rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "llama_yarn_rope": ("Llama", {"rope_parameters": YARN}),
    "llama_gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4}),
    "mistral": ("Mistral", {}),
    "mistral_window": ("Mistral", {"sliding_window": 21}),
    "qwen2": ("Qwen2", {}),
    "qwen2_window_above": ("Qwen2", {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "qwen3_biases": ("Qwen3", {"attention_bias": True}),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of all variants, made when first asked for."""

    class Made(dict[str, str]):
        def __missing__(self, name: str) -> str:
            family, changes = VARIANTS[name]
            self[name] = oracle.make_model(tmp_path_factory.mktemp(name), family, **changes)
            return self[name]

    return Made()


def prompts(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, oracle.VOCAB_SIZE, size).tolist() for size in (1, 33, 70, 17, 16)]


def watch_logits(player: Player) -> list[torch.Tensor]:
    """Every batch of logits the runner samples from, from now on."""
    seen: list[torch.Tensor] = []
    original = player.model.logits

    def logits(hidden: torch.Tensor) -> torch.Tensor | None:
        computed = original(hidden)
        assert computed is not None
        seen.append(computed.clone())
        return computed

    player.model.logits = logits  # type: ignore[method-assign]
    return seen


def expected_logits(path: str, tokens: list[int]) -> torch.Tensor:
    """float32 [len(tokens), vocab] of the oracle."""
    with torch.inference_mode():
        return oracle.load(path)(torch.tensor([tokens])).logits[0].float()


# The torch path only with the variants that differ in attention.
CASES = [(name, True) for name in VARIANTS] + [(name, False) for name in ("llama", "mistral_window", "qwen2_window_above")]


@pytest.mark.parametrize("name, compiled", CASES)
def test_mixed_batch_in_odd_chunks(checkpoints: dict[str, str], name: str, compiled: bool) -> None:
    """Five prompts prefill in chunks of 13 beside each other and decode: tokens equal the oracle's, logits are close at every position."""
    path = checkpoints[name]
    player = Player(path)
    player.use_compiled(compiled)
    seen = watch_logits(player)
    rows = [player.add(index, prompt) for index, prompt in enumerate(prompts())]
    sampled_at: list[tuple[int, int]] = []
    while any(len(row.output) < NUM_OUTPUT for row in rows):
        work = [(row, min(13, len(row.tokens) - row.computed)) for row in rows if len(row.output) < NUM_OUTPUT]
        before = [row.computed for row, _ in work]
        sampled = player.step(work)
        sampled_at += [(row.row, start + count - 1) for (row, count), start, token in zip(work, before, sampled) if token >= 0]
    logits = torch.cat(seen)
    assert len(logits) == len(sampled_at) == 5 * NUM_OUTPUT
    for row, prompt in zip(rows, prompts()):
        assert row.output == oracle.greedy(path, prompt, NUM_OUTPUT), f"prompt of {len(prompt)} tokens"
        expected = expected_logits(path, row.tokens)
        mine = torch.stack([got for got, (index, _) in zip(logits, sampled_at) if index == row.row])
        there = expected[[position for index, position in sampled_at if index == row.row]]
        torch.testing.assert_close(mine, there, atol=2e-3 * float(there.abs().max()), rtol=1e-3)


def test_whole_prompts_at_once_and_waves_of_arrivals(checkpoints: dict[str, str]) -> None:
    """Unchunked prefill in one step with decoding rows; a row is reused by another request with other blocks."""
    path = checkpoints["qwen2_window_above"]
    player = Player(path, seed=3)
    player.use_compiled(True)
    first = [player.add(index, prompt) for index, prompt in enumerate(prompts(1))]
    player.run(first[:2], 4)
    player.step([(first[0], 1), *((row, len(row.tokens)) for row in first[2:]), (first[1], 1)])
    player.run(first, NUM_OUTPUT)
    player.free(first[2])
    again = player.add(2, prompts(2)[2])
    player.run([again], NUM_OUTPUT)
    for row in [*first, again]:
        assert row.output == oracle.greedy(path, row.tokens[: row.num_prompt], NUM_OUTPUT)


def test_prefix_reuse(checkpoints: dict[str, str]) -> None:
    """A request that takes over two blocks of another computes only the rest, with the same answer."""
    path = checkpoints["qwen3"]
    player = Player(path)
    player.use_compiled(True)
    prompt = prompts()[2]
    first = player.add(0, prompt)
    player.run([first], 3)
    other = prompt[:32] + prompts()[1][:9]
    second = player.add(5, other, shared=first, num_shared=32)
    player.run([first, second], NUM_OUTPUT, chunk=5)
    assert first.output == oracle.greedy(path, prompt, NUM_OUTPUT)
    assert second.output == oracle.greedy(path, other, NUM_OUTPUT)


@pytest.mark.parametrize("block_size", [1, 5])
def test_block_sizes(checkpoints: dict[str, str], block_size: int) -> None:
    path = checkpoints["mistral_window"]
    player = Player(path, block_size=block_size, num_blocks=512)
    player.use_compiled(True)
    rows = [player.add(index, prompt) for index, prompt in enumerate(prompts())]
    player.run(rows, NUM_OUTPUT, chunk=29)
    for row in rows:
        assert row.output == oracle.greedy(path, row.tokens[: row.num_prompt], NUM_OUTPUT)


@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16(tmp_path: Path, compiled: bool) -> None:
    """bf16 against the float32 oracle of the same weights: no further away than the oracle's own bf16, within a factor."""
    path = oracle.make_model(tmp_path / "bf16", "Qwen3", dtype="bfloat16", initializer_range=0.1)
    wide = oracle.make_model(tmp_path / "f32", "Qwen3", initializer_range=0.1)
    player = Player(path)
    assert player.model.dtype == torch.bfloat16
    player.use_compiled(compiled)
    seen = watch_logits(player)
    prompt = prompts()[1]
    row = player.add(0, prompt)
    player.step([(row, 20)])
    player.step([(row, len(prompt) - 20)])
    for token in prompts()[3]:
        row.tokens[-1] = token  # the same continuation for all three models, whatever each would have chosen
        player.step([(row, 1)], device_token=False)
    mine = torch.cat(seen).float()
    at = slice(len(prompt) - 1, len(prompt) - 1 + len(mine))
    exact, theirs = expected_logits(wide, row.tokens[: row.computed])[at], expected_logits(path, row.tokens[: row.computed])[at]
    assert (mine - exact).pow(2).mean() < 2 * (theirs - exact).pow(2).mean()


def test_groups_bound_padding_and_cover_all_rows() -> None:
    from gpu_workers.batch import StepInputs

    rng = np.random.default_rng(0)
    num_new, start = rng.integers(1, 300, 200), rng.integers(0, 3, 200) * rng.integers(0, 2000, 200)
    column = np.zeros(200, np.int64)
    step = StepInputs(
        rows=column, num_new=num_new, start=start, seq_lens=start + num_new, flags=column.astype(np.int32), query_starts=column,
        row_of_token=column, token_ids=column, positions=column, slots=column, sample_at=column, block_tables=column.astype(np.int32)[None],
        masked_at=column[:0], masks=np.zeros((0, 1), np.int32), given=column[:0].astype(np.int32),
    )  # fmt: skip
    some = np.flatnonzero(num_new > 1)
    groups = group_rows(step, some)
    assert sorted(np.concatenate(groups)) == sorted(some)
    for rows in groups:
        assert num_new[rows].max() <= 2 * num_new[rows].min()
        assert step.seq_lens[rows].max() <= 2 * step.seq_lens[rows].min()
        assert len({bool(value) for value in start[rows]}) == 1
        assert len(rows) == 1 or len(rows) * num_new[rows].max() * step.seq_lens[rows].max() <= 2**22


def test_old_rope_keys_mean_the_same(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """rope_theta with rope_scaling and torch_dtype, as older checkpoints have them."""
    config = json.loads((Path(checkpoints["llama3_rope"]) / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    new, old = Player(checkpoints["llama3_rope"]), Player(str(tmp_path), load_format="dummy")
    assert old.model.spec == new.model.spec
    assert old.model.dtype == torch.float32
