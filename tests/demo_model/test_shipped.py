"""The shipped folders: small enough, complete, of the right shapes, and able to talk."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from bench.demo_model import tokenizer as making
from bench.demo_model.evaluate import answers, is_right, questions
from bench.demo_model.export import config_of
from bench.demo_model.model import SHAPES, Llama

BIG = Path(__file__).resolve().parents[2] / "quire" / "demo_model"
FOLDERS = {"big": BIG, "draft": BIG / "draft"}


@pytest.fixture(params=FOLDERS, scope="module")
def size(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BIG / "tokenizer.json"))


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in BIG.rglob("*") if path.is_file()) <= 12e6


def test_config_and_tensors_agree(size: str, tokenizer: Tokenizer) -> None:
    folder = FOLDERS[size]
    end, turn_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    assert json.loads((folder / "config.json").read_text()) == config_of(SHAPES[size], end, turn_end)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [turn_end, end]
    expected = {f"model.{name}": tuple(value.shape) for name, value in Llama(SHAPES[size]).state_dict().items()}
    with safe_open(folder / "model.safetensors", "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert {name: tuple(value.shape) for name, value in tensors.items()} == expected
    assert all(value.dtype == torch.bfloat16 and bool(value.isfinite().all()) for value in tensors.values())
    assert sum(math.prod(shape) for shape in expected.values()) <= {"big": 5.2e6, "draft": 0.7e6}[size]


def test_both_speak_the_same_tokens() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (FOLDERS["draft"] / name).read_bytes() == (BIG / name).read_bytes()


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == making.VOCAB_SIZE == 4096
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {token: token not in making.TAGS for token in making.ADDED}
    ids = tokenizer.encode("<think>a</think><|im_end|>").ids
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "<think>a</think>"


def test_any_text_comes_back(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    texts = ["".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0xD800)])) for _ in range(30)) for _ in range(50)]
    for text in [*texts, "", " ", "  a  b\n\n\tc ", "😀🎉", "\x00\x7f"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_and_line_ends_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2026\n\n 7").tokens == ["2", "0", "2", "6", "Ċ", "Ċ", "Ġ", "7"]


def test_a_word_splits_alike_with_and_without_its_space(tokenizer: Tokenizer) -> None:
    for word in ("garden", "belodari", "Xqzvk", "Helsinki"):
        bare, spaced = tokenizer.encode(word).tokens, tokenizer.encode(" " + word).tokens
        assert "".join(spaced) == "Ġ" + "".join(bare)
        assert spaced[-len(bare) + 1 :] == bare[1:] or len(bare) == 1


def test_loads_and_talks(size: str) -> None:
    """A short examination of the big model; the draft only has to load and to speak. The long one is bench.demo_model.evaluate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = FOLDERS[size]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    speaker = AutoTokenizer.from_pretrained(folder)
    asked = [example for kind in ("repeat", "small_talk", "json", "counting") for example in questions(kind, 6, seed=11)]
    given = answers(model, speaker, [example.prompt() for example in asked], 80)
    right = sum(is_right(example, answer) for example, answer in zip(asked, given))
    assert right >= (len(asked) * 0.85 if size == "big" else 0)
    assert all(given)
