"""/v1/embeddings and Ollama's two paths, through their own clients and by hand; the worker's vectors are bags of tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import ollama
import openai
import pytest

from frontend.tokenizer import Tokenizer
from frontend.vector_bytes import DTYPES, ENDIANNESS, packed
from ipc.arena import Stat
from tests.api.server import DEMO, ApiServer
from tests.paged_toy import toy_vector

HIDDEN = int(json.loads((DEMO / "config.json").read_text())["hidden_size"])


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def unit(ids: list[int], dimensions: int = HIDDEN) -> Any:
    vector = toy_vector(np.array(ids), HIDDEN)[:dimensions]
    return vector / np.linalg.norm(vector)


def ids_of(server: ApiServer, text: str) -> list[int]:
    found: list[int] = server.post("/tokenize", {"prompt": text})[1]["tokens"]
    return found


def test_all_shapes_of_input(server: ApiServer, client: openai.OpenAI) -> None:
    texts = ["one two three", "four", "naïve 日本"]
    ids = [ids_of(server, text) for text in texts]
    inputs: list[Any] = [texts, ids, texts[0], ids[0]]
    for given in inputs:
        answer = client.embeddings.create(model="demo", input=given)
        several = given in (texts, ids)
        expected = ids if several else ids[:1]
        assert [each.index for each in answer.data] == list(range(len(expected)))
        for each, tokens in zip(answer.data, expected, strict=True):
            assert np.allclose(each.embedding, unit(tokens), atol=1e-6)
        count = sum(map(len, expected))
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (count, count, "demo")


def test_formats_and_dimensions(server: ApiServer, client: openai.OpenAI) -> None:
    ids = [300, 17, 300, 41]
    whole = client.embeddings.create(model="demo", input=[ids], encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model="demo", input=[ids], encoding_format="base64").data[0].embedding
    assert isinstance(packed, str) or np.allclose(packed, whole)
    raw = server.post("/v1/embeddings", {"input": [ids], "encoding_format": "base64", "user": "u", "unheard_of": 1})[1]["data"][0][
        "embedding"
    ]

    assert np.array_equal(np.frombuffer(base64.b64decode(raw), np.float32), np.array(whole, np.float32))
    short = client.embeddings.create(model="demo", input=[ids], dimensions=7).data[0].embedding
    assert len(short) == 7 and np.allclose(short, unit(ids, 7), atol=1e-6)
    plain = server.post("/v1/embeddings", {"input": ids, "normalize": False})[1]["data"][0]["embedding"]
    assert plain == toy_vector(np.array(ids), HIDDEN).tolist()


def test_a_conversation(server: ApiServer) -> None:
    tokenizer = Tokenizer.load(str(DEMO))
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi <|im_end|>"}]
    for more in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
        status, answer = server.post("/v1/embeddings", {"messages": talk, "normalize": False, **more})
        ids = tokenizer.encode_messages(talk, **{"add_generation_prompt": False, **more})[1]
        assert status == 200 and answer["usage"]["prompt_tokens"] == len(ids)
        [entry] = answer["data"]
        assert entry["embedding"] == toy_vector(np.array(ids), HIDDEN).tolist()


def test_number_formats_of_base64(server: ApiServer) -> None:
    ids = [300, 17, 300, 41]
    whole = np.array(server.post("/v1/embeddings", {"input": ids})[1]["data"][0]["embedding"], np.float32)
    for dtype in DTYPES:
        for endianness in (None, *ENDIANNESS):
            body = {"input": ids, "encoding_format": "base64", "embed_dtype": dtype, "endianness": endianness}
            raw = base64.b64decode(server.post("/v1/embeddings", body)[1]["data"][0]["embedding"])
            assert raw == packed(whole, dtype, endianness or "native")
    assert server.post("/v1/embeddings", {"input": ids, "embed_dtype": "float16"})[1]["data"][0]["embedding"] == whole.tolist()


@pytest.mark.parametrize("form", ["bytes", "bytes_only"])
def test_bytes(server: ApiServer, form: str) -> None:
    """The same numbers as in JSON, one vector after the other; the header says where each is."""
    inputs = [[300, 17, 300, 41], [5, 6], [7]]
    wanted = server.post("/v1/embeddings", {"input": inputs, "dimensions": 9})[1]
    for dtype, endianness in (("float32", None), ("bfloat16", "big"), ("fp8_e4m3", "little")):
        body = {
            "input": inputs,
            "dimensions": 9,
            "encoding_format": form,
            "embed_dtype": dtype,
            "endianness": endianness,
            "request_id": "é\n",
        }
        status, headers, raw = server.request("POST", "/v1/embeddings", body)
        assert status == 200 and headers["content-type"] == "application/octet-stream"
        parts = [packed(np.array(each["embedding"], np.float32), dtype, endianness or "native") for each in wanted["data"]]
        assert raw == b"".join(parts)
        if form == "bytes_only":
            assert "metadata" not in headers
            continue
        about = json.loads(headers["metadata"])
        assert about.keys() == {"id", "created", "model", "data", "usage"}
        assert (about["id"], about["model"], about["usage"]) == ("é\n", "demo", wanted["usage"])
        for index, (entry, part) in enumerate(zip(about["data"], parts, strict=True)):
            assert raw[entry.pop("start") : entry.pop("end")] == part
            assert entry == {"index": index, "embed_dtype": dtype, "endianness": endianness or "native", "shape": [9]}


def test_truncation_and_counters(server: ApiServer) -> None:
    server.at_rest()
    before = server.stat(Stat.EMBEDDINGS)
    body = {"input": [list(range(100, 150))], "truncate_prompt_tokens": 3, "normalize": False}
    for side, kept in (("left", [147, 148, 149]), ("right", [100, 101, 102])):
        status, answer = server.post("/v1/embeddings", body | {"truncation_side": side})
        assert status == 200 and answer["usage"]["prompt_tokens"] == 3
        assert answer["data"][0]["embedding"] == toy_vector(np.array(kept), HIDDEN).tolist()
    server.at_rest()
    assert server.stat(Stat.EMBEDDINGS) == before + 2
    assert "quire:embeddings_total" in server.request("GET", "/metrics")[2].decode()


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": ["a", 5]}, "input"),
    ({"input": [[5], "a"]}, "input"),
    ({"input": [True]}, "input"),
    ({"input": 7}, "input"),
    ({"input": [10**9]}, "input"),
    ({"input": [-1]}, "input"),
    ({"input": ["a"] * 2049}, "input"),
    ({"input": [5] * 9_000}, "input"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": HIDDEN + 1}, "dimensions"),
    ({"input": "a", "dimensions": 1.5}, "dimensions"),
    ({"input": "a", "encoding_format": "Bytes"}, "encoding_format"),
    ({"input": "a", "encoding_format": "bytes", "embed_dtype": "int8"}, "embed_dtype"),
    ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"input": "a", "truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens"),
    ({"input": "a", "truncation_side": "middle"}, "truncation_side"),
    ({"input": "a", "priority": 3}, "priority"),
    ({"input": "a", "cache_salt": ""}, "cache_salt"),
    ({"input": "a", "messages": [{"role": "user", "content": "x"}]}, "messages"),
    ({"input": "a", "embed_dtype": "int8"}, "embed_dtype"),
    ({"input": "a", "endianness": "middle"}, "endianness"),
    ({"input": "a", "padding": True}, "padding"),
    ({"messages": []}, "input"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ 1 }}"}, "chat_template"),
    ({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
    (
        {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
    ),
    ({"input": "a", "normalize": True, "use_activation": False}, "normalize"),
    ({"input": "a", "timeout": 0}, "timeout"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=[f"{param}-{at}" for at, (_, param) in enumerate(BAD)])
def test_bad_requests(server: ApiServer, body: dict[str, Any], param: str) -> None:
    status, answer = server.post("/v1/embeddings", body)
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_another_model(server: ApiServer) -> None:
    assert server.post("/v1/embeddings", {"model": "other", "input": "a"})[0] == 404


def test_ollama(server: ApiServer) -> None:
    with ollama.Client(server.url) as client:
        ids = [ids_of(server, text) for text in ("one two", "three")]
        answer = client.embed("demo", ["one two", "three"])
        for found, tokens in zip(answer.embeddings, ids, strict=True):
            assert np.allclose(found, unit(tokens), atol=1e-6)
        assert answer.prompt_eval_count == sum(map(len, ids))
        assert len(client.embed("demo", "one two", dimensions=5).embeddings[0]) == 5
        assert client.embeddings("demo", "three").embedding == toy_vector(np.array(ids[1]), HIDDEN).tolist()
        assert client.show("demo").capabilities is not None and "embedding" in client.show("demo").capabilities
        long = "word " * 5000
        assert len(client.embed("demo", long).embeddings) == 1
        with pytest.raises(ollama.ResponseError, match="takes at most"):
            client.embed("demo", long, truncate=False)
        assert server.post("/api/embed", {"model": "demo", "input": []})[1]["embeddings"] == []
        assert server.post("/api/embeddings", {"model": "demo", "prompt": ""})[1] == {"embedding": []}
