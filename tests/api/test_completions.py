"""POST /v1/completions. The worker echoes the prompt's tokens and then stops, so every answer is known."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.sse import MAX_BACKLOG_BYTES
from frontend.tokenizer import Tokenizer
from ipc.arena import Stat
from tests.api.server import DEMO, ApiServer, events, http, read_answer, until

PATH = "/v1/completions"
TEXT = "The naïve fox saw 😀 twice."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO))


def streamed(server: ApiServer, body: dict[str, Any], path: str = PATH) -> list[Any]:
    status, headers, raw = server.request("POST", path, {**body, "stream": True})
    assert status == 200, raw
    assert headers["content-type"].startswith("text/event-stream")
    return events(raw)


def test_text_in_text_out(server: ApiServer, tokenizer: Tokenizer) -> None:
    status, answer = server.post(PATH, {"model": "demo", "prompt": TEXT, "max_tokens": 64})
    count = len(tokenizer.encode(TEXT))
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "stop_reason": None}]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (count, count + 1, 2 * count + 1)


def test_sixteen_tokens_unless_told_otherwise(server: ApiServer) -> None:
    _, answer = server.post(PATH, {"prompt": "one two three four five six seven eight nine ten " * 3})
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


def test_token_ids_as_prompt(server: ApiServer, tokenizer: Tokenizer) -> None:
    _, answer = server.post(PATH, {"prompt": tokenizer.encode("hello fox"), "max_tokens": 20, "return_token_ids": True})
    assert answer["choices"][0]["text"] == "hello fox"
    assert answer["choices"][0]["prompt_token_ids"] == tokenizer.encode("hello fox")
    assert answer["choices"][0]["token_ids"][:-1] == tokenizer.encode("hello fox")


def test_several_prompts_and_n(server: ApiServer, tokenizer: Tokenizer) -> None:
    _, answer = server.post(PATH, {"prompt": ["one", "two words"], "n": 2, "max_tokens": 20})
    assert [(each["index"], each["text"]) for each in answer["choices"]] == [(0, "one"), (1, "one"), (2, "two words"), (3, "two words")]
    lengths = [len(tokenizer.encode(text)) for text in ("one", "two words")]
    assert answer["usage"]["prompt_tokens"] == sum(lengths)
    assert answer["usage"]["completion_tokens"] == 2 * (sum(lengths) + 2)
    _, answer = server.post(PATH, {"prompt": [tokenizer.encode("one"), tokenizer.encode("two words")], "max_tokens": 20})
    assert [each["text"] for each in answer["choices"]] == ["one", "two words"]


def test_streaming_gives_the_same_text(server: ApiServer) -> None:
    found = streamed(server, {"prompt": TEXT, "max_tokens": 64})
    assert found[-1] == "[DONE]"
    assert "".join(each["choices"][0]["text"] for each in found[:-1]) == TEXT
    assert [each["choices"][0]["finish_reason"] for each in found[:-1]] == [None] * (len(found) - 2) + ["stop"]
    assert all("\ufffd" not in each["choices"][0]["text"] for each in found[:-1])
    assert all("usage" not in each for each in found[:-1])


def test_streaming_several_choices(server: ApiServer) -> None:
    found = streamed(server, {"prompt": ["one two", "three 😀 four"], "n": 2, "max_tokens": 30, "stream_options": {"include_usage": True}})
    texts: dict[int, str] = {}
    for each in found[:-2]:
        assert each["usage"] is None
        choice = each["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {0: "one two", 1: "one two", 2: "three 😀 four", 3: "three 😀 four"}
    assert found[-2]["choices"] == []
    assert found[-2]["usage"]["completion_tokens"] == found[-2]["usage"]["prompt_tokens"] * 2 + 4


def test_usage_in_every_chunk(server: ApiServer, tokenizer: Tokenizer) -> None:
    """A chunk may hold several tokens, if they came before the headers were out."""
    found = streamed(server, {"prompt": "one two three", "max_tokens": 30, "stream_options": {"continuous_usage_stats": True}})
    counts = [each["usage"]["completion_tokens"] for each in found[:-1]]
    assert counts == sorted(counts)
    assert counts[0] >= 1 and counts[-1] == len(tokenizer.encode("one two three")) + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_stop_strings(server: ApiServer, stream: bool, include: bool) -> None:
    body = {"prompt": TEXT, "max_tokens": 64, "stop": ["zzz", "x saw 😀"], "include_stop_str_in_output": include}
    if stream:
        found = streamed(server, body)
        text = "".join(each["choices"][0]["text"] for each in found[:-1])
        last = found[-2]["choices"][0]
    else:
        last = server.post(PATH, body)[1]["choices"][0]
        text = last["text"]
    assert text == ("The naïve fox saw 😀" if include else "The naïve fo")
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "x saw 😀")


def test_a_stop_string_that_almost_comes_is_not_lost(server: ApiServer) -> None:
    for stop in ("twice.!", "😀😀", ". The"):
        assert server.post(PATH, {"prompt": TEXT, "max_tokens": 64, "stop": stop})[1]["choices"][0]["text"] == TEXT


def test_stop_token_ids(server: ApiServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    _, answer = server.post(PATH, {"prompt": "one two three", "max_tokens": 30, "stop_token_ids": [ids[-1]]})
    choice = answer["choices"][0]
    assert choice["text"] == tokenizer.decode(ids[:-1])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[-1])
    assert answer["usage"]["completion_tokens"] == len(ids)


def test_special_tokens_in_the_output(server: ApiServer) -> None:
    prompt = "a<|im_start|>b"
    assert server.post(PATH, {"prompt": prompt, "max_tokens": 20})[1]["choices"][0]["text"] == "ab"
    assert server.post(PATH, {"prompt": prompt, "max_tokens": 20, "skip_special_tokens": False})[1]["choices"][0]["text"] == prompt
    found = streamed(server, {"prompt": prompt, "max_tokens": 20, "skip_special_tokens": False})
    assert "".join(each["choices"][0]["text"] for each in found[:-1]) == prompt


def test_logprobs(server: ApiServer, tokenizer: Tokenizer) -> None:
    _, answer = server.post(PATH, {"prompt": "one two", "max_tokens": 20, "logprobs": 2})
    logprobs = answer["choices"][0]["logprobs"]
    ids = tokenizer.encode("one two")
    assert logprobs["tokens"] == [tokenizer.token_text(token) for token in ids] + ["<|im_end|>"]
    # tests.paged_toy.logprob_of: minus position minus id / 1024, position counted from the prompt's start
    assert logprobs["token_logprobs"][:-1] == pytest.approx([-(len(ids) + place + token / 1024) for place, token in enumerate(ids)])
    for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]):
        assert top[token] == logprob, "clients compare the two by equality"
        assert max(top.values()) == logprob and len(top) <= 2
    assert logprobs["text_offset"] == [sum(map(len, logprobs["tokens"][:place])) for place in range(len(ids) + 1)]


def test_logprobs_streamed_are_the_same(server: ApiServer) -> None:
    body = {"prompt": "one 😀 two", "max_tokens": 20, "logprobs": 1}
    whole = server.post(PATH, body)[1]["choices"][0]["logprobs"]
    parts = [each["choices"][0]["logprobs"] for each in streamed(server, body)[:-1]]
    for key in whole:
        assert [entry for part in parts if part for entry in part[key]] == whole[key]


def joined(chunks: list[Any]) -> list[dict[str, Any]]:
    """The choices of a stream as they would stand in one answer."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"logprobs": None})
            for key, value in part.items():
                if key == "logprobs" and value and choice[key]:
                    choice[key] = {name: choice[key][name] + value[name] for name in value}
                elif key in ("text", "token_ids"):
                    choice[key] = choice.get(key, value[:0]) + value
                elif value is not None or key not in choice:
                    choice[key] = value
    return [choices[index] for index in sorted(choices)]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "one 😀 two", "logprobs": 0},
        {"prompt": [[2, 300, 301], [310] * 600, [7]], "n": 2, "logprobs": 3, "seed": 5, "temperature": 1},
        {"prompt": TEXT, "logprobs": 2, "stop": "x saw", "return_token_ids": True, "return_prompt_text": True},
        {"prompt": "a<|im_start|>b", "logprobs": 1, "return_tokens_as_token_ids": True, "skip_special_tokens": False},
        {"prompt": TEXT, "logprobs": 1, "stream_interval": 4, "max_tokens": 13},
        {"prompt": "one two", "logprobs": 1, "max_tokens": 1},
        {"prompt": ["one two", "three"], "logprobs": 1, "stop_token_ids": [300], "logit_bias": {"300": 100}},
    ],
    ids=["text", "prompts-n", "stop-string", "special-tokens", "interval", "one-token", "stop-token"],
)
def test_echo_with_logprobs_in_a_stream(server: ApiServer, body: dict[str, Any]) -> None:
    body = {"max_tokens": 20, "echo": True, **body}
    status, whole = server.post(PATH, body)
    assert status == 200, whole
    *chunks, usage, done = streamed(server, {**body, "stream_options": {"include_usage": True}})
    assert joined(chunks) == whole["choices"] and done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for index, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        first, logprobs = own[0], choice["logprobs"]
        assert choice["text"].startswith(first["text"]) and first["text"], "the first chunk is the prompt, and nothing else"
        assert first["logprobs"]["token_logprobs"].count(None) == 1 and first["logprobs"]["token_logprobs"][0] is None
        assert len(own) > 1 and all(None not in each["logprobs"]["token_logprobs"] for each in own[1:] if each["logprobs"])
        if "return_tokens_as_token_ids" not in body:
            assert logprobs["text_offset"] == [sum(map(len, logprobs["tokens"][:place])) for place in range(len(logprobs["tokens"]))]


def test_an_echo_longer_than_what_may_wait_for_a_client(server: ApiServer) -> None:
    """A client that has not read for a while is not cut off because its request's echo is long."""
    body = {"prompt": [[place] + [300] * 2000 for place in range(8)], "n": 4, "logprobs": 1, "max_tokens": 2, "echo": True}
    server.at_rest()
    before = server.stat(Stat.GENERATION_TOKENS)
    with server.connect(receive_buffer=4096) as client:
        client.sendall(http("POST", PATH, {**body, "stream": True}))
        until(lambda: server.stat(Stat.GENERATION_TOKENS) >= before + 64)
        status, _, raw = read_answer(client)
    *chunks, done = events(raw)
    assert status == 200 and len(raw) > 1.5 * MAX_BACKLOG_BYTES and done == "[DONE]"
    assert joined(chunks) == server.post(PATH, body)[1]["choices"]


def test_echo(server: ApiServer) -> None:
    assert server.post(PATH, {"prompt": "one two", "max_tokens": 20, "echo": True})[1]["choices"][0]["text"] == "one twoone two"
    found = streamed(server, {"prompt": "one two", "max_tokens": 20, "echo": True})
    assert "".join(each["choices"][0]["text"] for each in found[:-1]) == "one twoone two"


def test_echo_with_logprobs_covers_the_prompt(server: ApiServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two")
    _, answer = server.post(PATH, {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 0})
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:-1] == pytest.approx([-(place + token / 1024) for place, token in enumerate(ids)][1:])


def test_echo_of_the_prompt_alone_bills_no_token(server: ApiServer, tokenizer: Tokenizer) -> None:
    for extra in ({}, {"logprobs": 1}):
        status, answer = server.post(PATH, {"prompt": "one two", "max_tokens": 0, "echo": True, **extra})
        assert status == 200
        assert answer["choices"][0]["text"] == "one two"
        assert answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(tokenizer.encode("one two"))


def test_prompt_logprobs(server: ApiServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    _, answer = server.post(PATH, {"prompt": "one two three", "max_tokens": 2, "prompt_logprobs": 1})
    entries = answer["choices"][0]["prompt_logprobs"]
    assert entries[0] is None
    assert [list(entry) for entry in entries[1:]] == [[str(token)] for token in ids[1:]]
    assert entries[1][str(ids[1])]["decoded_token"] == tokenizer.token_text(ids[1])


def test_the_window_bounds_the_output(server: ApiServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one") * 2040
    status, answer = server.post(PATH, {"prompt": ids[:2040], "max_tokens": 500, "ignore_eos": True})
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"


def test_integers_may_come_as_floats(server: ApiServer) -> None:
    status, answer = server.post(PATH, b'{"prompt": "one two three four", "max_tokens": 2.0, "n": 1.0, "seed": 7.0}')
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 2


def test_what_other_servers_take_and_we_ignore(server: ApiServer) -> None:
    body = {"prompt": "one", "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "best_of": 1, "no_such_field": [1]}
    assert server.post(PATH, body)[0] == 200


@pytest.mark.parametrize(
    "extra", [{}, {"logprobs": 1}, {"logprobs": 0, "n": 2}, {"return_token_ids": True, "return_prompt_text": True, "stream_interval": 3}]
)
def test_an_echo_alone_in_a_stream_says_what_it_says_at_once(server: ApiServer, extra: dict[str, Any]) -> None:
    body = {"prompt": ["one two", "three 😀 four"], "max_tokens": 0, "echo": True, **extra}
    _, whole = server.post(PATH, body)
    *chunks, last, done = streamed(server, {**body, "stream_options": {"include_usage": True}})
    assert sorted((chunk["choices"][0] for chunk in chunks), key=lambda choice: choice["index"]) == whole["choices"]
    assert all(len(chunk["choices"]) == 1 and chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"], done) == ([], whole["usage"], "[DONE]")


def test_an_echo_alone_needs_echo_in_a_stream_too(server: ApiServer) -> None:
    status, answer = server.post(PATH, {"prompt": "one two", "max_tokens": 0, "stream": True})
    assert status == 400 and answer["error"]["param"] == "max_tokens"
