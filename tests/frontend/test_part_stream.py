"""Parts of an answer as three APIs tell them: whatever the reader's pace, frames are whole and add up to the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.handlers.messages import MessageScript
from frontend.handlers.ollama import OllamaScript
from frontend.output_split import Delta, Kind
from frontend.part_stream import PartStream, Script, text_of
from frontend.response_script import ResponseScript, new_document
from frontend.schemas.responses import ResponsesRequest
from frontend.sse import SseResponse
from frontend.stream import Work
from frontend.tokenizer import Tokenizer
from ipc.messages import Finished, FinishReason
from ipc.sampling_params import SamplingParams
from tests.api.server import chunks
from tests.frontend import backends
from tests.frontend.test_sse import Sink

TOKENIZER = Tokenizer(backends.byte_level(), {}, None)
TEXT = 'a "quoted" \\ 😀 line\nand more of it'


def script(name: str) -> Script:
    if name == "messages":
        return MessageScript("msg_1", "m", 1, False)
    if name == "ollama":
        return OllamaScript("m", chat=True)
    return ResponseScript(new_document(ResponsesRequest(input="x"), "resp_1", "m", 1.0, 1.0, True))


def told(name: str, text: str, pauses: list[int], stop: list[str]) -> bytes:
    """The body that a reader gets who stands still before each of these tokens, and goes on at the next pause or at the end."""
    work = Work(request_id="r", index=0, prompt=None, prompt_ids=[1], params=SamplingParams(stop=stop), seed=0, arrival_ns=0)
    loop = asyncio.new_event_loop()
    try:
        response, sink = SseResponse(loop), Sink()
        sink.response = response
        stream = PartStream(work, TOKENIZER, response, script(name))
        response.open(sink)
        ended = False
        for place, token in enumerate(TOKENIZER.encode(text)):
            if place in pauses:
                response.pause() if response.direct else response.resume()
            stream.ids.append(token)
            if stream.push(token):
                ended = True
                break
        stream.end("stop", None if ended else Finished(0, FinishReason.STOP, len(stream.ids)))
        response.resume()
        return b"".join(chunks(bytes(sink.data) + b"0\r\n\r\n"))
    finally:
        loop.close()


def documents(name: str, body: bytes) -> list[dict[str, Any]]:
    if name == "ollama":
        return [json.loads(line) for line in body.decode().split("\n")[:-1]]
    return [json.loads(part.split("\n")[1].removeprefix("data: ")) for part in body.decode().split("\n\n")[:-1]]


def text_in(name: str, found: list[dict[str, Any]]) -> str:
    if name == "ollama":
        return "".join(each["message"]["content"] for each in found)
    if name == "messages":
        return "".join(each["delta"]["text"] for each in found if each["type"] == "content_block_delta")
    return "".join(each["delta"] for each in found if each["type"] == "response.output_text.delta")


@pytest.mark.parametrize("name", ["messages", "ollama", "responses"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=60), pauses=st.lists(st.integers(0, 60), max_size=6), stop=st.sampled_from([[], ["zz"], ["e"]]))
def test_any_pace_tells_the_same(name: str, text: str, pauses: list[int], stop: list[str]) -> None:
    text = text.encode("utf-8", "ignore").decode() or "x"
    found = documents(name, told(name, text, pauses, stop))
    expected = text.split(stop[0])[0] if stop else text
    assert text_in(name, found) == expected
    if name == "responses":
        assert [each["sequence_number"] for each in found] == list(range(len(found)))
        assert found[-1]["response"]["output"][0]["content"][0]["text"] == expected


def test_a_reader_who_stands_still_gets_fewer_frames() -> None:
    fast, slow = (documents("responses", told("responses", TEXT, pauses, [])) for pauses in ([], [3]))
    assert len(slow) < len(fast)
    assert text_in("responses", slow) == text_in("responses", fast) == TEXT


@pytest.mark.parametrize("name", ["messages", "ollama", "responses"])
def test_thoughts_that_wait_for_the_reader_stay_thoughts(name: str) -> None:
    """As those do that come before the headers are out."""
    work = Work(request_id="r", index=0, prompt=None, prompt_ids=[1], params=SamplingParams(), seed=0, arrival_ns=0)
    loop = asyncio.new_event_loop()
    try:
        response, sink = SseResponse(loop), Sink()
        sink.response = response
        stream = PartStream(work, TOKENIZER, response, script(name))
        stream._tell([Delta(Kind.REASONING, "hm "), Delta(Kind.REASONING, "hm"), Delta(Kind.CONTENT, "so "), Delta(Kind.CONTENT, "yes")])
        stream.end("stop", Finished(0, FinishReason.STOP, 0))
        response.open(sink)
        found = documents(name, b"".join(chunks(bytes(sink.data) + b"0\r\n\r\n")))
    finally:
        loop.close()
    if name == "ollama":
        pieces = [(each["message"].get("thinking", ""), each["message"]["content"]) for each in found]
    elif name == "messages":
        deltas = [each["delta"] for each in found if each["type"] == "content_block_delta"]
        pieces = [(each.get("thinking", ""), each.get("text", "")) for each in deltas]
    else:
        told = {"response.reasoning_text.delta": 0, "response.output_text.delta": 1}
        pieces = [(each["delta"], "")[:: -1 if told[each["type"]] else 1] for each in found if each["type"] in told]
    assert ["".join(column) for column in zip(*pieces)] == ["hm hm", "so yes"]


def test_nothing_said() -> None:
    """A stop token at once: no block for Anthropic, an empty message for OpenAI."""
    kinds = {name: [each.get("type") for each in documents(name, told(name, "", [], []))] for name in ("messages", "responses")}
    assert kinds["messages"] == ["message_start", "message_delta", "message_stop"]
    assert "response.output_text.done" in kinds["responses"] and kinds["responses"][-1] == "response.completed"


@given(st.text(max_size=40))
def test_text_of_is_the_inverse(text: str) -> None:
    from frontend.detokenizer import json_inside

    text = text.encode("utf-8", "ignore").decode()
    assert text_of(json_inside(text)) == text
