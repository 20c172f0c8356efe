"""OpenAI's client, synchronous and asynchronous."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.clients.cells import (
    ADD,
    ASK,
    LONG,
    MODEL,
    QUESTION,
    SETTINGS,
    TASK,
    TEXTS,
    TOOL,
    USER,
    Item,
    Target,
    cell,
    check_arguments,
    check_vectors,
)
from tests.processes.server import eventually

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TEXT = {"model": MODEL, "prompt": "Once upon a time", **SETTINGS}


def client(target: Target) -> openai.OpenAI:
    made: openai.OpenAI = target.client(openai.OpenAI, base_url=target.v1, api_key="none", max_retries=0)
    return made


def expected_chat(target: Target) -> Any:
    return target.plain(CHAT, {"model": MODEL, "messages": USER, **SETTINGS})["choices"][0]["message"]["content"]


def expected_response(target: Target) -> str:
    body = {"model": MODEL, "input": QUESTION, "max_output_tokens": 24, "temperature": 0, "store": False}
    return "".join(
        part["text"] for item in target.plain(RESPONSES, body)["output"] if item["type"] == "message" for part in item["content"]
    )


@cell("openai", CHAT, "answer")
def chat(target: Target) -> None:
    api = client(target)
    answer = api.chat.completions.create(model=MODEL, messages=USER, **SETTINGS)
    assert answer.choices[0].message.content == expected_chat(target)
    assert answer.usage is not None and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@cell("openai", CHAT, "stream")
def chat_stream(target: Target) -> None:
    api = client(target)
    chunks = list(api.chat.completions.create(model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}, **SETTINGS))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected_chat(target)
    assert len(chunks) > 2 and chunks[-1].usage is not None


@cell("openai", CHAT, "tools")
def chat_tools(target: Target) -> None:
    api = client(target)
    answer = api.chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", **LONG)
    [call, *_] = answer.choices[0].message.tool_calls or []
    assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "add"
    check_arguments(json.loads(call.function.arguments))
    turn = answer.choices[0].message.model_dump(exclude_none=True)
    said = [*ASK, turn, *({"role": "tool", "tool_call_id": each.id, "content": "12"} for each in answer.choices[0].message.tool_calls)]
    assert api.chat.completions.create(model=MODEL, messages=said, tools=[TOOL], max_tokens=10).choices[0].message.role == "assistant"


@cell("openai", CHAT, "streamed tools")
def chat_stream_tools(target: Target) -> None:
    named = {"type": "function", "function": {"name": "add"}}
    api = client(target)
    with (
        api.chat.completions.stream(
            model=MODEL, messages=ASK, tools=[TOOL | {"function": ADD | {"strict": True}}], tool_choice=named, **LONG
        ) as stream,
    ):
        answer = stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls or []
    check_arguments(json.loads(call.function.arguments))


@cell("openai", CHAT, "structured output")
def chat_parse(target: Target) -> None:
    api = client(target)
    parsed = api.chat.completions.parse(model=MODEL, messages=USER, response_format=Item, max_tokens=60).choices[0].message.parsed
    assert parsed is not None
    parsed.check()


@cell("openai", CHAT, "errors")
def chat_errors(target: Target) -> None:
    api = client(target)
    for kind, change in (
        (openai.BadRequestError, {"temperature": 9}),
        (openai.NotFoundError, {"model": "other"}),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "word " * 5000}]}),
    ):
        with pytest.raises(kind) as caught:
            api.chat.completions.create(**{"model": MODEL, "messages": USER, **change})
        assert caught.value.status_code in (400, 404) and caught.value.code != "" and caught.value.request_id


@cell("openai", COMPLETIONS, "answer")
def text(target: Target) -> None:
    api = client(target)
    assert api.completions.create(**TEXT).choices[0].text == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("openai", COMPLETIONS, "stream")
def text_stream(target: Target) -> None:
    api = client(target)
    pieces = [chunk.choices[0].text for chunk in api.completions.create(**TEXT, stream=True)]
    assert "".join(pieces) == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("openai", RESPONSES, "answer")
def response(target: Target) -> None:
    api = client(target)
    first = api.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0)
    assert first.output_text == expected_response(target) and api.responses.retrieve(first.id).output_text == first.output_text
    second = api.responses.create(model=MODEL, input="Again.", previous_response_id=first.id, max_output_tokens=8)
    assert second.usage is not None and first.usage is not None and second.usage.input_tokens > first.usage.input_tokens
    api.responses.delete(first.id)


@cell("openai", RESPONSES, "stream")
def response_stream(target: Target) -> None:
    api = client(target)
    with api.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(pieces) == expected_response(target) == stream.get_final_response().output_text


@cell("openai", RESPONSES, "tools")
def response_tools(target: Target) -> None:
    api = client(target)
    tools: Any = [{"type": "function", "strict": True, **ADD}]
    answer = api.responses.create(model=MODEL, input=TASK, tools=tools, tool_choice="required", max_output_tokens=100, temperature=0)
    [call, *_] = [item for item in answer.output if item.type == "function_call"]
    check_arguments(json.loads(call.arguments))


@cell("openai", RESPONSES, "structured output")
def response_parse(target: Target) -> None:
    api = client(target)
    parsed = api.responses.parse(model=MODEL, input=QUESTION, text_format=Item, max_output_tokens=60).output_parsed
    assert parsed is not None
    parsed.check()


@cell("openai", RESPONSES, "errors")
def response_errors(target: Target) -> None:
    api = client(target)
    with pytest.raises(openai.NotFoundError) as caught:
        api.responses.retrieve("resp_none")
    assert caught.value.status_code == 404


def expected_vectors(target: Target) -> list[list[float]]:
    answer = target.plain("/v1/embeddings", {"model": MODEL, "input": TEXTS})
    return [each["embedding"] for each in answer["data"]]


@cell("openai", "/v1/embeddings", "answer")
def embeddings(target: Target) -> None:
    """The client asks for base64 by itself."""
    found = client(target).embeddings.create(model=MODEL, input=TEXTS)
    check_vectors([each.embedding for each in found.data], expected_vectors(target))
    assert found.usage.prompt_tokens > 0


@cell("openai", "/v1/embeddings", "errors")
def embeddings_errors(target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(target).embeddings.create(model=MODEL, input=[])
    assert caught.value.param == "input"


@cell("openai", "/v1/models", "list")
def models(target: Target) -> None:
    api = client(target)
    assert [each.id for each in api.models.list()] == [MODEL] and api.models.retrieve(MODEL).owned_by == "quire"


@cell("openai", "/v1/files", "upload, list, read, delete")
def files(target: Target) -> None:
    api = client(target)
    made = api.files.create(file=("a.txt", b"some text"), purpose="user_data")
    assert api.files.content(made.id).read() == b"some text" and made.id in [each.id for each in api.files.list()]
    assert api.files.delete(made.id).deleted


@cell("openai", "/v1/batches", "answer")
def batches(target: Target) -> None:
    line = {"custom_id": "one", "method": "POST", "url": COMPLETIONS, "body": TEXT}
    api = client(target)
    file = api.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    made = api.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    eventually(lambda: api.batches.retrieve(made.id).status == "completed")
    output = api.batches.retrieve(made.id).output_file_id
    assert output is not None
    answer = json.loads(api.files.content(output).text)["response"]["body"]
    assert answer["choices"][0]["text"] == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("openai", "/v1/batches", "embeddings")
def batch_of_embeddings(target: Target) -> None:
    api = client(target)
    line = {"custom_id": "one", "method": "POST", "url": "/v1/embeddings", "body": {"model": MODEL, "input": TEXTS}}
    file = api.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    made = api.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    eventually(lambda: api.batches.retrieve(made.id).status == "completed")
    output = api.batches.retrieve(made.id).output_file_id
    assert output is not None
    answer = json.loads(api.files.content(output).text)["response"]["body"]
    check_vectors([each["embedding"] for each in answer["data"]], expected_vectors(target))


# asynchronous


def async_client(target: Target) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=target.v1, api_key="none", max_retries=0)


@cell("openai (async)", CHAT, "answer")
async def async_chat(target: Target) -> None:
    async with async_client(target) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=USER, **SETTINGS)
    assert answer.choices[0].message.content == expected_chat(target)


@cell("openai (async)", CHAT, "stream")
async def async_chat_stream(target: Target) -> None:
    async with async_client(target) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=USER, stream=True, **SETTINGS)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == expected_chat(target)


@cell("openai (async)", CHAT, "tools")
async def async_tools(target: Target) -> None:
    async with async_client(target) as api:
        answer = await api.chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", **LONG)
    check_arguments(json.loads((answer.choices[0].message.tool_calls or [])[0].function.arguments))


@cell("openai (async)", COMPLETIONS, "answer")
async def async_text(target: Target) -> None:
    async with async_client(target) as api:
        answer = await api.completions.create(**TEXT)
    assert answer.choices[0].text == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("openai (async)", COMPLETIONS, "stream")
async def async_text_stream(target: Target) -> None:
    async with async_client(target) as api:
        pieces = [chunk.choices[0].text async for chunk in await api.completions.create(**TEXT, stream=True)]
    assert "".join(pieces) == target.plain(COMPLETIONS, TEXT)["choices"][0]["text"]


@cell("openai (async)", RESPONSES, "stream")
async def async_response_stream(target: Target) -> None:
    async with async_client(target) as api:
        stream = await api.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0, store=False, stream=True)
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == expected_response(target)


@cell("openai (async)", CHAT, "structured output")
async def async_parse(target: Target) -> None:
    async with async_client(target) as api:
        answer = await api.chat.completions.parse(model=MODEL, messages=USER, response_format=Item, max_tokens=60)
    assert answer.choices[0].message.parsed is not None
    answer.choices[0].message.parsed.check()


@cell("openai (async)", CHAT, "errors")
async def async_errors(target: Target) -> None:
    async with async_client(target) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            await api.chat.completions.create(model=MODEL, messages=USER, top_p=7)
        assert caught.value.param == "top_p"


@cell("openai (async)", RESPONSES, "answer")
async def async_response(target: Target) -> None:
    async with async_client(target) as api:
        answer = await api.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, temperature=0, store=False)
    assert answer.output_text == expected_response(target)


@cell("openai (async)", "/v1/models", "list")
async def async_models(target: Target) -> None:
    async with async_client(target) as api:
        assert [each.id async for each in api.models.list()] == [MODEL]


@cell("openai (async)", "/v1/embeddings", "answer")
async def async_embeddings(target: Target) -> None:
    async with async_client(target) as api:
        found = await api.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    check_vectors([each.embedding for each in found.data], expected_vectors(target))
