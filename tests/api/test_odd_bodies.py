"""Every place of a rich request in turn holds what should not be there: the answer is the API's own 4xx, or it works, and never a 5xx."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.server import ApiServer
from tests.api.test_bad_input import INSIDE

ODD: list[Any] = [None, 5, -1.5, True, "", "x", [], {}, [None], [[]], {"type": "x"}, {"type": []}, [{"type": 7}], "\x00<|im_end|>"]
FUNCTION = {"name": "add", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
RICH: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "demo",
        "max_tokens": 1,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "i", "name": "add", "input": {"a": 1}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "2"}]}]},
        ],
        "tools": [{"name": "add", "input_schema": FUNCTION["parameters"]}],
        "tool_choice": {"type": "auto", "name": "add"},
        "thinking": {"type": "adaptive", "budget_tokens": 1024},
        "output_config": {"effort": "low", "format": None},
        "context_management": {"edits": []},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u"},
    },
    "/v1/responses": {
        "model": "demo",
        "max_output_tokens": 1,
        "store": False,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": [{"type": "reasoning_text", "text": "t"}]},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "2"}]},
            {"role": "user", "content": "b"},
        ],
        "tools": [{"type": "function", **FUNCTION, "strict": False}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "metadata": {"a": "b"},
        "include": [],
    },
    "/api/chat": {
        "model": "demo",
        "stream": False,
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "thinking": "t", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_name": "add", "content": "2"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "options": {"num_predict": 1, "stop": ["x"], "temperature": 0.5, "seed": 3},
        "think": "low",
        "keep_alive": "5m",
    },
    "/api/generate": {"model": "demo", "stream": False, "prompt": "a", "system": "s", "options": {"num_predict": 1}, "raw": False},
}


def places(value: Any) -> Iterator[list[Any]]:
    """The path of every node but the root."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield [key]
        for path in places(inner):
            yield [key, *path]


def with_odd(body: dict[str, Any], path: list[Any], odd: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return changed


@pytest.mark.parametrize("path", RICH)
def test_odd_values_everywhere(scripted: ApiServer, path: str) -> None:
    headers = {"x-api-key": "sk-one", "Content-Type": "application/json"}
    wrong, seen = [], set()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=20)) as connection:

        def post(body: dict[str, Any]) -> int:
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            raw = answer.read().decode()
            if answer.status >= 500 or (answer.status >= 400 and INSIDE.search(raw)):
                wrong.append((body, raw))
            return answer.status

        assert post(RICH[path]) == 200
        for place in places(RICH[path]):
            for odd in ODD:
                seen.add(post(with_odd(RICH[path], place, odd)))
    assert wrong == []
    assert seen >= {200, 400}


def test_nesting(scripted: ApiServer) -> None:
    """What is taken can be given back."""
    headers = {"x-api-key": "sk-one"}
    for depth in (100, 300, 500, 900, 990, 1000, 5000):
        nested = b"[" * depth + b"]" * depth
        block = b'{"type": "text", "text": "x", "extra": %b}' % nested
        call = b'{"type": "tool_use", "id": "a", "name": "f", "input": {"a": %b}}' % nested
        tool = b'{"type": "function", "name": "f", "parameters": {"x": %b}}' % nested
        for path, raw in (
            ("/v1/responses", b'{"max_output_tokens": 1, "input": [{"role": "user", "content": "x", "extra": %b}]}' % nested),
            ("/v1/responses", b'{"max_output_tokens": 1, "input": "x", "tools": [%b]}' % tool),
            ("/v1/messages", b'{"max_tokens": 1, "messages": [{"role": "user", "content": [%b]}]}' % block),
            ("/v1/messages", b'{"max_tokens": 1, "messages": [{"role": "assistant", "content": [%b]}]}' % call),
        ):
            status, _, answer = scripted.request("POST", path, raw, headers)
            assert status in (200, 400), (depth, path, answer[:300])
