"""Models without a tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontend.tokenizer import Tokenizer
from ipc.errors import ConfigError
from tests.frontend import backends


def gpt2_files(path: Path) -> None:
    """vocab.json and merges.txt, as older checkpoints have them."""
    model = json.loads(backends.byte_level().to_str())["model"]
    (path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "unk_token": "<|endoftext|>"}))
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


@pytest.mark.slow  # importing transformers takes seconds
@pytest.mark.filterwarnings("ignore")
def test_older_files_are_converted(tmp_path: Path) -> None:
    gpt2_files(tmp_path)
    tokenizer = Tokenizer.load(str(tmp_path))
    text = "hello world, naïve 😀"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == backends.byte_level().encode(text, add_special_tokens=False).ids
    detokenizer = tokenizer.detokenizer()
    assert "".join([*map(detokenizer.feed, ids), detokenizer.finish()]) == text


def test_a_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("entry", ["flag", "file", "config", "named"])
def test_where_the_template_comes_from(tmp_path: Path, entry: str) -> None:
    backends.byte_level().save(str(tmp_path / "tokenizer.json"))
    config = {
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]
        if entry == "named"
        else "config"
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if entry in ("flag", "file"):
        (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "mine").write_text("flag")
    tokenizer = Tokenizer.load(str(tmp_path), str(tmp_path / "mine") if entry == "flag" else "")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == entry


def test_a_missing_template_file_is_named(tmp_path: Path) -> None:
    backends.byte_level().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="nowhere"):
        Tokenizer.load(str(tmp_path), str(tmp_path / "nowhere"))
