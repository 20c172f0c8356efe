"""Training: batches teach the right places, the optimizer does what its name says, checkpoints and exports keep the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from bench.demo_model import data, export, train
from bench.demo_model.checkpoint import load_model
from bench.demo_model.example import ask
from bench.demo_model.model import SHAPES, Llama, Shape
from bench.demo_model.muon import Muon, orthogonalized

FOLDER = Path(__file__).resolve().parents[2] / "quire" / "demo_model"
TINY = Shape(hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_only_the_answer_is_learnt(tokenizer: Tokenizer) -> None:
    (document,) = data.encode([ask("x", "hello", "Hi there!")], tokenizer)
    assert (
        tokenizer.decode([i for i, learn in zip(document.ids, document.learnt) if learn], skip_special_tokens=False)
        == "Hi there!<|im_end|>"
    )


def test_batches_point_at_what_is_learnt(tokenizer: Tokenizer) -> None:
    docs = data.documents(0, 0, 40, "main", tokenizer)
    batches = list(data.batches(docs, pad=0))
    learnt = sum(sum(document.learnt[1:]) for document in docs)
    assert sum(int((batch.weights > 0).sum()) for batch in batches) == learnt
    for batch in batches:
        real = batch.weights > 0
        assert torch.equal(batch.ids.flatten()[batch.where[real] + 1], batch.targets[real])
        assert batch.where.numel() % 128 == 0


def test_the_stream_follows_from_the_seed_and_has_few_shapes(tokenizer: Tokenizer) -> None:
    taken = [data.Stream(3, tokenizer).take(8000, "early") for _ in range(2)]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(*taken))
    for batch in taken[0]:
        rows, width = batch.ids.shape
        assert width in data.WIDTHS and rows == -(-data.BATCH_TOKENS // width)


def test_a_draft_also_learns_from_its_teacher(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model, (batch, *_) = Llama(TINY), data.Stream(0, tokenizer).take(100, "early")
    alone, same = train.loss_of(model, batch).item(), train.loss_of(model, batch, model).item()
    assert same == pytest.approx(alone / 2, rel=1e-3)  # a teacher of one's own mind only halves the other part


@pytest.mark.parametrize("shape", [(2, 32, 64), (3, 64, 32), (1, 48, 48)])
def test_orthogonalized(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
    assert singular.min() > 0.3 and singular.max() < 1.4


def test_muon_goes_downhill() -> None:
    torch.manual_seed(0)
    weight, wanted = torch.nn.Parameter(torch.zeros(16, 24)), torch.randn(16, 24)
    muon = Muon([weight], decay=0.0)
    for step in range(200):
        weight.grad = weight.detach() - wanted
        muon.step(0.2 * (1 - step / 200))
    assert (weight - wanted).norm() < 0.3 * wanted.norm()


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    heights = [train.height(step / 1000) for step in range(1001)]
    assert heights[0] < 0.2 and heights[300] == 1.0 and heights[1000] == 0.0
    assert heights[650:] == sorted(heights[650:], reverse=True)


def test_a_checkpoint_goes_on_where_it_was(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "draft", TINY)
    first = train.Trainer("draft", tokenizer, 0.02, 0.004, seed=1)
    batches = data.Stream(0, tokenizer).take(1000, "early")
    first.step(batches, 1.0)
    first.save(tmp_path / "one.safetensors", 0.5)
    second = train.Trainer("draft", tokenizer, 0.02, 0.004, seed=2)
    second.load(tmp_path / "one.safetensors")
    assert second.place == first.place and second.place.step == 1
    assert first.step(batches, 1.0) == second.step(batches, 1.0)
    for a, b in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(a, b)
    assert load_model(tmp_path / "one.safetensors").shape == TINY


def test_transformers_computes_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Llama(TINY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.dim() > 1 else 1.0, std=0.1)
    export.write(model, tmp_path, tokenizer)
    assert export.difference(model, tmp_path, tokenizer) < 1e-3
