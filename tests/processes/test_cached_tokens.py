"""Usage tells of cached prompt tokens however an answer ends; a stop string and a repetition are found by the frontend, which then asks
the scheduler no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from quire import LLM, RepetitionDetectionParams, SamplingParams
from tests.processes.server import Server

# The demo model counts; "6" ends it in the middle.
ASK = "Count from 3 to 9."
TALK = {"messages": [{"role": "user", "content": ASK}], "temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--served-model-name", "demo", "--kv-cache-memory", "16M", "--block-size", "4") as running:
        yield running.ready()


def last_usage(server: Server, path: str, body: dict[str, Any]) -> Any:
    """Of the stream's last event that has one."""
    found = None
    for event in server.events(path, body):
        found = event.get("usage") or event.get("response", {}).get("usage") or found
    return found


def counts(usage: Any) -> tuple[int, int]:
    """Prompt tokens and cached ones, in the words of whichever API."""
    if "cache_read_input_tokens" in usage:
        return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]
    if "input_tokens" in usage:
        return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "path, body, stop",
    [
        ("/v1/completions", {"prompt": ASK, "temperature": 0, "max_tokens": 40, "ignore_eos": True}, {"stop": "e"}),
        ("/v1/completions", {"prompt": [ASK, "Count from 2 to 9."], "n": 2, "max_tokens": 40, "ignore_eos": True}, {"stop": "e"}),
        ("/v1/completions", {"prompt": ASK, "max_tokens": 40, "logit_bias": {"70": 100}},
         {"repetition_detection": {"max_pattern_size": 1, "min_count": 3}}),
        ("/v1/chat/completions", TALK, {"stop": "6"}),
        ("/v1/chat/completions", TALK | {"n": 2}, {"stop": "6"}),
        ("/v1/responses", {"input": ASK, "temperature": 0, "max_output_tokens": 40}, {"stop": ["6"]}),
        ("/v1/messages", TALK | {"model": "demo"}, {"stop_sequences": ["6"]}),
    ],
    ids=["completions", "prompts", "repetition", "chat", "chat-n", "responses", "anthropic"],
)  # fmt: skip
def test_it_is_the_same_with_a_stop_string(server: Server, path: str, body: dict[str, Any], stop: dict[str, Any], streams: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if streams and "max_output_tokens" not in body and "model" not in body else {}

    def usage(more: dict[str, Any]) -> Any:
        asked = body | more | options
        return last_usage(server, path, asked) if streams else server.post(path, asked)["usage"]

    usage({})
    by_itself, stopped = usage({}), usage(stop)
    made = "completion_tokens" if "completion_tokens" in stopped else "output_tokens"
    assert stopped[made] < by_itself[made], "nothing stopped it"
    assert counts(stopped) == counts(by_itself)
    assert counts(stopped)[1] > 0


def test_the_metrics_tell_of_the_queue(server: Server) -> None:
    def observed() -> int:
        text = server.open("/metrics").read().decode()
        found = re.search(r"request_queue_time_seconds_count\S* (\d+)", text)
        assert found is not None
        return int(found[1])

    before = observed()
    answer = server.post("/v1/chat/completions", TALK | {"stop": "6"})
    assert answer["choices"][0]["stop_reason"] == "6" and observed() == before + 1


def test_from_python() -> None:
    stopping = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=["e"])
    repeating = SamplingParams(
        max_tokens=40, logit_bias={70: 100.0}, repetition_detection=RepetitionDetectionParams(max_pattern_size=1, min_count=3)
    )
    with LLM(block_size=4) as llm:
        llm.generate(ASK, use_tqdm=False)
        for params in (stopping, repeating):
            [output] = llm.generate(ASK, params, use_tqdm=False)
            length = len(output.prompt_token_ids)
            assert len(output.outputs[0].token_ids) < 40 and output.num_cached_tokens == (length - 1) // 4 * 4
            assert output.metrics.queued > 0
