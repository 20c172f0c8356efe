"""Ollama's own client library against our server, and what it does not show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from frontend.tokenizer import Tokenizer
from tests.api.server import DEMO, ApiServer

KEY = {"Authorization": "Bearer sk-one"}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(scripted: ApiServer) -> Iterator[ollama.Client]:
    with ollama.Client(scripted.url, headers=KEY) as made:
        yield made


def test_chat(client: ollama.Client) -> None:
    answer = client.chat("demo", user("hello 😀"), options={"num_predict": 20, "temperature": 0, "num_ctx": 512})
    assert (answer.message.role, answer.message.content, answer.done, answer.done_reason) == ("assistant", "hello 😀", True, "stop")
    assert answer.prompt_eval_count and answer.eval_count and answer.eval_count > 2
    assert answer.total_duration is not None and answer.total_duration == (answer.prompt_eval_duration or 0) + (answer.eval_duration or 0)
    assert 0 < answer.total_duration < 60 * 10**9
    assert client.chat("demo:latest", user("one two three"), options={"num_predict": 1}).done_reason == "length"


def test_chat_stream(client: ollama.Client) -> None:
    parts = list(client.chat("demo", user('say "this"\n😀 twice'), stream=True))
    assert "".join(part.message.content or "" for part in parts) == 'say "this"\n😀 twice'
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count is not None and len(parts) > 1
    stopped = list(client.chat("demo", user("one two END three"), stream=True, options={"stop": ["END"]}))
    assert "".join(part.message.content or "" for part in stopped) == "one two "


def test_logprobs(client: ollama.Client, scripted: ApiServer) -> None:
    text = "one 😀 two"
    body = {"model": "demo", "messages": user(text), "logprobs": True, "top_logprobs": 2}
    whole = scripted.post("/api/chat", {**body, "stream": False}, KEY)[1]
    assert b"".join(bytes(each["bytes"]) for each in whole["logprobs"]).decode() == text
    assert all(len(each["top_logprobs"]) == 2 for each in whole["logprobs"])
    lines = [json.loads(line) for line in scripted.request("POST", "/api/chat", body, KEY)[2].decode().split("\n")[:-1]]
    assert "".join(line["message"]["content"] for line in lines) == text
    assert [each for line in lines for each in line.get("logprobs", [])] == whole["logprobs"]
    assert client.generate("demo", "hello you", logprobs=True).logprobs
    assert client.generate("demo", "hello you").logprobs is None


def test_streaming_is_the_default(scripted: ApiServer) -> None:
    """As lines of JSON, whatever the Content-Type of the request: curl's is that of a form."""
    form = {**KEY, "Content-Type": "application/x-www-form-urlencoded"}
    status, headers, raw = scripted.request("POST", "/api/chat", {"model": "demo", "messages": user("one two")}, form)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in raw.decode().split("\n")[:-1]]
    assert lines[-1]["done"] is True and all(line["model"] == "demo" and line["created_at"] for line in lines)


def test_generate(client: ollama.Client) -> None:
    assert client.generate("demo", "hello you", system="be kind").response == "hello you"
    parts = list(client.generate("demo", "hello you", stream=True))
    assert "".join(part.response or "" for part in parts) == "hello you"
    # Raw: no template, so the whole prompt is what the worker repeats.
    raw = client.generate("demo", "just text", raw=True, options={"num_predict": 4})
    assert (raw.response or "").startswith("just text")
    assert (raw.prompt_eval_count or 0) < (client.generate("demo", "just text").prompt_eval_count or 0)


def test_a_request_without_a_prompt_loads_the_model(client: ollama.Client) -> None:
    """And one with keep_alive 0 asks for its end, which is told and does not come: there is but one model."""
    assert client.generate("demo", "").done_reason == "load"
    assert client.chat("demo", []).done_reason == "load"
    for alive in ("5m", "1h30m", "-1s", -1, 0.5, "+1.5h2ms"):
        assert client.generate("demo", "", keep_alive=alive).done_reason == "load"
    for none in (0, "0", "0s", "-0m"):
        for answer in (client.generate("demo", "", keep_alive=none), client.chat("demo", [], keep_alive=none)):
            assert (answer.done, answer.done_reason) == (True, "unload")
    assert client.generate("demo", "still here", keep_alive=0).response == "still here"
    assert client.ps().models[0].model == "demo"


def test_context_goes_on_from_an_answer(client: ollama.Client, scripted: ApiServer) -> None:
    """A conversation by context has the very tokens of the same conversation by messages."""
    tokenizer = Tokenizer.load(str(DEMO))
    first = client.generate("demo", "hello <|im_end|> you")
    assert first.response == "hello <|im_end|> you" and first.context is not None
    lines = list(client.generate("demo", "and again", context=first.context, stream=True))
    assert "".join(line.response or "" for line in lines) == "and again"
    assert all(line.context is None for line in lines[:-1])
    talk = [*user("hello <|im_end|> you"), {"role": "assistant", "content": "hello <|im_end|> you"}, *user("and again")]
    whole = tokenizer.encode_messages([*talk, {"role": "assistant", "content": "and again"}], add_generation_prompt=False)[1]
    # The worker says a special token's name in other tokens than the tokenizer does, which takes the assistant's for its own.
    name = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    said = lines[-1].context
    assert said is not None and said[: len(first.context)] == first.context
    assert tokenizer.decode(said, skip_special_tokens=False) == tokenizer.decode(whole, skip_special_tokens=False).removesuffix(
        "<|im_end|>\n"
    )
    assert said.count(name[0]) == 3, "turns end, and what a user writes is no end"
    assert lines[-1].prompt_eval_count is not None and lines[-1].prompt_eval_count > len(first.context)
    third = client.generate("demo", "more", context=said, system="be kind")
    assert third.response == "more"
    assert tokenizer.decode(third.context or [], skip_special_tokens=False).count("<|im_end|>\n<|im_start|>system\nbe kind<|im_end|>") == 1


def test_context_ends_before_a_stop_string(client: ollama.Client) -> None:
    tokenizer = Tokenizer.load(str(DEMO))
    whole = client.generate("demo", "one two STOP three")
    cut = client.generate("demo", "one two STOP three", options={"stop": ["STOP"]})
    assert cut.response == "one two " and cut.context is not None and whole.context is not None
    assert tokenizer.decode(cut.context, skip_special_tokens=False).endswith("assistant\none two ")
    assert client.generate("demo", "x", raw=True, options={"num_predict": 2}).context is None
    thought = client.generate("demo", "<think>\nhm\n</think>\nyes", think=True)
    assert tokenizer.decode(thought.context or [], skip_special_tokens=False).endswith("<think>\nhm\n</think>\nyes")


def test_async(scripted: ApiServer) -> None:
    async def talk() -> list[str]:
        client = ollama.AsyncClient(scripted.url, headers=KEY)

        async def one(text: str) -> str:
            return "".join([part.message.content or "" async for part in await client.chat("demo", user(text), stream=True)])

        try:
            return await asyncio.gather(*(one(f"number {place}") for place in range(8)))
        finally:
            await client.close()

    assert asyncio.run(talk()) == [f"number {place}" for place in range(8)]


def test_tools(client: ollama.Client) -> None:
    answer = client.chat("demo", user("calling " + CALL), tools=[TOOL])
    assert answer.message.content == "calling"
    [call] = answer.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("add", {"a": 17})
    parts = list(client.chat("demo", user("calling " + CALL), tools=[TOOL], stream=True))
    [streamed] = [each for part in parts for each in part.message.tool_calls or []]
    assert streamed.function == call.function
    assert "".join(part.message.content or "" for part in parts) == "calling"
    turns = [*user("x"), {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}]
    turns += [{"role": "tool", "tool_name": "add", "content": "2"}, *user("thanks")]
    assert client.chat("demo", turns).message.content == "thanks"


def test_thinking(client: ollama.Client) -> None:
    said = user("<think>\nhm\n</think>\nyes")
    answer = client.chat("demo", said, think=True)
    assert (answer.message.thinking, answer.message.content) == ("hm", "yes")
    parts = list(client.chat("demo", said, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == "hm"
    assert "".join(part.message.content or "" for part in parts) == "yes"
    assert client.generate("demo", said[0]["content"], think=True).thinking == "hm"


def test_formats(client: ollama.Client) -> None:
    """The worker would say something else."""
    schema = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"], "additionalProperties": False}
    assert json.loads(client.chat("demo", user("nothing"), format=schema).message.content or "")["ok"] in ("yes", "no")
    parts = client.generate("demo", "nothing", format=schema, stream=True)
    assert json.loads("".join(part.response or "" for part in parts))["ok"] in ("yes", "no")
    assert json.loads(client.generate("demo", '{"a":1}', raw=False, format="json").response or "") == {"a": 1}


def test_about_the_model(client: ollama.Client) -> None:
    [listed] = client.list().models
    assert (listed.model, len(listed.digest or "")) == ("demo", 64)
    assert listed.size is not None and listed.size > 10**6 and listed.modified_at is not None
    assert listed.details is not None and listed.details.format == "safetensors"
    [running] = client.ps().models
    assert (running.model, running.context_length, running.digest) == ("demo", 2048, listed.digest)
    shown = client.show("demo")
    assert shown.template and "im_start" in shown.template
    assert shown.capabilities is not None and "tools" in shown.capabilities
    family = (shown.modelinfo or {})["general.architecture"]
    assert (shown.modelinfo or {})[f"{family}.context_length"] == 2048
    assert (shown.modelinfo or {})["general.parameter_count"] > 10**6


def test_the_clients_errors(client: ollama.Client) -> None:
    for call in (
        lambda: client.chat("other", user("x")),
        lambda: client.show("other"),
        lambda: list(client.generate("other", "x", stream=True)),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            call()
        assert caught.value.status_code == 404 and "other" in caught.value.error


WRONG: list[tuple[str, dict[str, Any], int]] = [
    ("/api/chat", {"messages": [{"role": "wizard", "content": "x"}]}, 400),
    ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400),
    ("/api/chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, 400),
    ("/api/chat", {"messages": user("x"), "format": "xml"}, 400),
    ("/api/chat", {"messages": user("x"), "think": "hard"}, 400),
    ("/api/chat", {"messages": user("x"), "options": {"mirostat": 2}}, 400),
    ("/api/chat", {"messages": user("x"), "options": {"num_predict": 0}}, 400),
    ("/api/chat", {"messages": user("x"), "options": {"top_p": 7}}, 400),
    ("/api/chat", {"messages": user("x"), "options": []}, 400),
    ("/api/chat", {"messages": user("x"), "top_logprobs": 2}, 400),
    ("/api/generate", {"prompt": "x", "suffix": "y"}, 400),
    ("/api/generate", {"prompt": "x", "context": [1, 10**6]}, 400),
    ("/api/generate", {"prompt": "x", "context": [-1]}, 400),
    ("/api/generate", {"prompt": "", "context": [10**6]}, 400),
    ("/api/generate", {"prompt": "x", "context": ["one"]}, 400),
    ("/api/generate", {"prompt": "x", "context": [5] * 2048}, 400),
    ("/api/generate", {"prompt": "x", "context": [5], "raw": True}, 400),
    ("/api/generate", {"prompt": "x", "context": [5], "suffix": "y"}, 400),
    ("/api/generate", {"prompt": "x", "keep_alive": "5 minutes"}, 400),
    ("/api/generate", {"prompt": "", "keep_alive": "300"}, 400),
    ("/api/chat", {"messages": user("x"), "keep_alive": "m"}, 400),
    ("/api/chat", {"messages": [], "keep_alive": []}, 400),
    ("/api/embed", {"input": "x", "keep_alive": ""}, 400),
    ("/api/embeddings", {"prompt": "x", "keep_alive": "-"}, 400),
    ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, 400),
    ("/api/generate", {"prompt": "x", "raw": True, "system": "y"}, 400),
    ("/api/generate", {"prompt": "x", "timeout": -1}, 400),
    ("/api/generate", {"prompt": "x", "model": "other"}, 404),
    ("/api/pull", {}, 404),
]


def test_the_command_line_finds_a_server(scripted: ApiServer) -> None:
    for method in ("HEAD", "GET"):
        status, headers, raw = scripted.request(method, "/", None, KEY)
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert b"running" in raw
    assert scripted.request("HEAD", "/")[0] == 401


@pytest.mark.parametrize(
    "change, name",
    [
        ({"format": {"not": {}}}, "format"),
        ({"options": {"repeat_penalty": -1}}, "options.repeat_penalty"),
        ({"options": {"top_p": 7}}, "options.top_p"),
        ({"options": {"stop": [""]}}, "options.stop"),
    ],
)
def test_errors_name_ollamas_fields(scripted: ApiServer, change: dict[str, Any], name: str) -> None:
    for path, what in (("/api/chat", {"messages": user("x")}), ("/api/generate", {"prompt": "x"})):
        status, answer = scripted.post(path, {"model": "demo", **what, **change}, KEY)
        assert status == 400 and answer["error"].startswith(name), answer


@pytest.mark.parametrize("path, change, status", WRONG, ids=[str(change)[:60] for _, change, _ in WRONG])
def test_refused_in_ollamas_shape(scripted: ApiServer, path: str, change: dict[str, Any], status: int) -> None:
    found, answer = scripted.post(path, {"model": "demo", **change}, KEY)
    assert found == status, answer
    assert list(answer) == ["error"] and isinstance(answer["error"], str)
