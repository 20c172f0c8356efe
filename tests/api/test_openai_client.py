"""OpenAI's own client library against our server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.api.server import ApiServer

USER = [{"role": "user", "content": "hi 😀"}]


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "quire"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="one two three", max_tokens=20, n=2, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["one two three"] * 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and "".join(logprobs.tokens[:-1]) == "one two three"
    assert answer.usage is not None and answer.usage.completion_tokens == 2 * (answer.usage.prompt_tokens + 1)


def test_completion_stream(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="demo", prompt="one two 😀", max_tokens=30, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two 😀"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=USER, max_completion_tokens=20, logprobs=True, top_logprobs=2, stop=["😀"]
    )
    choice = answer.choices[0]
    assert choice.message.content == "user\nhi "
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None and choice.logprobs.content is not None and len(choice.logprobs.content[0].top_logprobs) == 2


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=USER, max_tokens=20, stream=True, stream_options={"include_usage": True}, n=2
    )
    texts, reasons, usage = ["", ""], {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == ["user\nhi 😀"] * 2
    assert reasons == {0: "stop", 1: "stop"}
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=USER, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"


def test_leaving_a_stream_early(client: openai.OpenAI) -> None:
    with client.completions.create(model="demo", prompt="one", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}) as stream:
        assert next(iter(stream)).choices[0].text
