"""suffix: the prompt asks for the middle, in the tokens that the model's vocabulary has for it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from frontend.fill_in_the_middle import FORMATS, FillInTheMiddle, MiddleFormat
from frontend.tokenizer import Tokenizer
from ipc.config import Config
from tests.api.server import DEMO, ApiServer, api_server, demo

PATH = "/v1/completions"


def with_tokens(directory: Path, form: MiddleFormat) -> str:
    """A copy of the demo model's tokenizer in which reserved tokens have a family's names."""
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, directory / name)
    text = (DEMO / "tokenizer.json").read_text()
    names = [form.prefix, form.suffix, form.middle, *(name for name in form.ends if name != "<|endoftext|>")]
    for place, name in enumerate(filter(None, names)):
        text = text.replace(f"<|reserved_{place}|>", name)
    (directory / "tokenizer.json").write_text(text)
    return str(directory)


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Its worker says the prompt again."""
    path = with_tokens(tmp_path_factory.mktemp("coder"), FORMATS[0])
    with api_server(Config(), model=demo(Config(), tokenizer_path=path)) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(coder: ApiServer) -> Tokenizer:
    return Tokenizer.load(coder.engine.spec.model.tokenizer_path)


def ids_of(tokenizer: Tokenizer, *names: str) -> list[int]:
    found = [tokenizer.backend.token_to_id(name) for name in names]
    assert None not in found
    return found


def test_the_prompt(coder: ApiServer, tokenizer: Tokenizer) -> None:
    [prefix, suffix, middle] = ids_of(tokenizer, "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    before, after = "def f(x):\n    ", "\n<|im_end|>"
    body = {"prompt": before, "suffix": after, "max_tokens": 4, "return_token_ids": True}
    choice = coder.post(PATH, body)[1]["choices"][0]
    plain = [tokenizer.encode(text, add_special_tokens=False) for text in (before, after)]
    assert choice["prompt_token_ids"] == [prefix, *plain[0], suffix, *plain[1], middle]
    # A prefix may be given as ids; each of several prompts gets the suffix.
    assert coder.post(PATH, {**body, "prompt": plain[0]})[1]["choices"][0]["prompt_token_ids"] == choice["prompt_token_ids"]
    assert len(coder.post(PATH, {**body, "prompt": [before, "x"]})[1]["choices"]) == 2


def test_the_middle_ends_at_a_token_of_its_own(coder: ApiServer, tokenizer: Tokenizer) -> None:
    [separator] = ids_of(tokenizer, "<|file_sep|>")
    body = {"prompt": [5, separator, 6], "suffix": "y", "max_tokens": 9, "return_token_ids": True}
    choice = coder.post(PATH, body)[1]["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["token_ids"][-1]) == ("stop", separator, separator)


def test_ollamas_suffix(coder: ApiServer, tokenizer: Tokenizer) -> None:
    body = {"model": "demo", "prompt": "a b", "suffix": "c", "stream": False, "options": {"num_predict": 20}}
    answer = coder.post("/api/generate", body)[1]
    assert answer["response"] == "a bc"  # the worker says the prompt again, whose markers are no text
    assert answer["prompt_eval_count"] == 3 + sum(len(tokenizer.encode(text)) for text in ("a b", "c"))
    assert "insert" in coder.post("/api/show", {"model": "demo"})[1]["capabilities"]
    status, answer = coder.post("/api/generate", {**body, "system": "be kind"})
    assert status == 400 and "system" in answer["error"]


def test_what_does_not_go_together(coder: ApiServer, server: ApiServer) -> None:
    for change, param in (({"echo": True}, "echo"), ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens")):
        status, answer = coder.post(PATH, {"prompt": "x", "suffix": "y", **change})
        assert (status, answer["error"]["param"]) == (400, param)
    status, answer = server.post(PATH, {"prompt": "x", "suffix": "y"})
    assert (status, answer["error"]["param"]) == (400, "suffix")
    assert "this one's vocabulary has none" in answer["error"]["message"]
    assert server.post(PATH, {"prompt": "x", "suffix": ""})[0] == 200


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.prefix)
def test_every_family(form: MiddleFormat, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(with_tokens(tmp_path, form))
    middle = FillInTheMiddle(tokenizer)
    names = tokenizer.decode(asyncio.run(middle.ids("a", "b")), skip_special_tokens=False)
    expected = f"{form.suffix}b{form.prefix}a" if form.suffix_first else f"{form.prefix}a{form.suffix}b{form.middle}"
    assert middle.known and names == expected
    assert len(middle.stop_token_ids) == len(form.ends)
