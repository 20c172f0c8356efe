"""Several completions of which the best are shown: best_of, and beam search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from frontend.tokenizer import Tokenizer
from ipc.config import Config
from tests.api.server import DEMO, ApiServer, api_server
from tests.paged_toy import hashed

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
POOL: dict[str, Any] = {
    "prompt": ["one two", "three"],
    "max_tokens": 6,
    "seed": 5,
    "ignore_eos": True,
    "logprobs": 1,
    "return_token_ids": True,
}


@pytest.fixture(scope="module")
def drawing() -> Iterator[ApiServer]:
    """Its worker's tokens depend on the seed."""
    with api_server(Config(), next_token=hashed(4000)) as running:
        yield running


def test_the_best_of_several(drawing: ApiServer) -> None:
    everything = drawing.post(COMPLETIONS, {**POOL, "n": 5})[1]
    status, best = drawing.post(COMPLETIONS, {**POOL, "n": 2, "best_of": 5})
    assert status == 200
    for prompt in range(2):
        pool = everything["choices"][5 * prompt : 5 * prompt + 5]
        pool.sort(key=lambda each: -sum(each["logprobs"]["token_logprobs"]))
        shown = best["choices"][2 * prompt : 2 * prompt + 2]
        assert [each["token_ids"] for each in shown] == [each["token_ids"] for each in pool[:2]]
        assert [each["logprobs"] for each in shown] == [each["logprobs"] for each in pool[:2]]
    assert [each["index"] for each in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"]["completion_tokens"] == everything["usage"]["completion_tokens"] == 2 * 5 * 6, "all that were made count"


def test_logprobs_are_shown_to_those_who_ask(drawing: ApiServer) -> None:
    with_them = drawing.post(COMPLETIONS, {**POOL, "best_of": 4})[1]
    without = drawing.post(COMPLETIONS, {**POOL, "best_of": 4, "logprobs": None})[1]
    assert [each["token_ids"] for each in without["choices"]] == [each["token_ids"] for each in with_them["choices"]]
    assert all(each["logprobs"] is None for each in without["choices"])


@pytest.mark.parametrize(
    "change, param",
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 1.5}, "best_of"),
        ({"best_of": 129}, "n"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "use_beam_search": True}, "best_of"),
    ],
)
def test_best_of_that_makes_no_sense(drawing: ApiServer, change: dict[str, Any], param: str) -> None:
    status, answer = drawing.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2, **change})
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_best_of_that_changes_nothing_may_be_streamed(drawing: ApiServer) -> None:
    assert drawing.request("POST", COMPLETIONS, {"prompt": "x", "max_tokens": 2, "n": 2, "best_of": 2, "stream": True})[0] == 200


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO))


def test_beams(server: ApiServer, tokenizer: Tokenizer) -> None:
    """The worker's first choice is the prompt again; the further ones are the ids after it, each less likely by 1."""
    ids = tokenizer.encode("one two three")[:3]
    body = {"prompt": ids, "use_beam_search": True, "n": 3, "max_tokens": 3, "logprobs": 1, "return_token_ids": True, "ignore_eos": True}
    status, answer = server.post(COMPLETIONS, body)
    assert status == 200
    found = [each["token_ids"] for each in answer["choices"]]
    assert found[0] == ids
    # One step less likely in one place: the place does not matter much, the tokens' own numbers do (see tests.paged_toy.logprob_of).
    assert all(sum(token != best for token, best in zip(each, ids)) == 1 for each in found[1:]) and found[1] != found[2]
    for each in answer["choices"]:
        assert each["text"] == tokenizer.decode(each["token_ids"])
        assert each["finish_reason"] == "length"
        assert len(each["logprobs"]["token_logprobs"]) == 3
    sums = [sum(each["logprobs"]["token_logprobs"]) for each in answer["choices"]]
    assert sums == sorted(sums, reverse=True)
    assert answer["usage"]["completion_tokens"] == 9 and answer["usage"]["prompt_tokens"] == 3


def test_beams_end_at_stop_strings(server: ApiServer, tokenizer: Tokenizer) -> None:
    """The best beam is the prompt again, and goes only as far as the second word."""
    ids = tokenizer.encode("one two three four")
    body = {"prompt": ids, "use_beam_search": True, "n": 2, "max_tokens": len(ids), "ignore_eos": True, "early_stopping": "never"}
    whole = server.post(COMPLETIONS, body)[1]["choices"][0]
    assert whole["text"] == tokenizer.decode(ids)
    stop = tokenizer.decode(ids)[3:7]
    for keeps in (False, True):
        answer = server.post(COMPLETIONS, {**body, "stop": [stop, "never said"], "include_stop_str_in_output": keeps})[1]
        [stopped] = [each for each in answer["choices"] if whole["text"].startswith(each["text"])]
        assert stopped["text"] == tokenizer.decode(ids)[: 7 if keeps else 3]
        assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)


def test_beams_of_several_prompts_and_in_chat(server: ApiServer, tokenizer: Tokenizer) -> None:
    body = {
        "prompt": ["one two", "three"],
        "use_beam_search": True,
        "n": 2,
        "max_tokens": 2,
        "early_stopping": "never",
        "length_penalty": 0,
    }
    answer = server.post(COMPLETIONS, body)[1]
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2, 3]
    alone = server.post(COMPLETIONS, {**body, "prompt": "three"})[1]
    assert [each["text"] for each in alone["choices"]] == [each["text"] for each in answer["choices"][2:]]
    chat = {"messages": USER, "use_beam_search": True, "n": 2, "max_tokens": 2, "skip_special_tokens": False}
    choices = server.post(CHAT, chat)[1]["choices"]
    assert choices[0]["message"]["content"] == tokenizer.decode(tokenizer.encode_messages(USER)[1][:2], skip_special_tokens=False)
    assert len({each["message"]["content"] for each in choices}) == 2


@pytest.mark.parametrize("field", ["structured_outputs", "response_format"])
def test_beams_follow_a_grammar(server: ApiServer, field: str) -> None:
    """The worker chooses the first allowed token from the prompt's on and the next few, of which the forbidden ones are no candidates."""
    grammar: dict[str, Any] = {"choice": ["yes", "no"]}
    if field == "response_format":
        grammar = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    body = {"messages": USER, "use_beam_search": True, "n": 2, "max_tokens": 12, "early_stopping": "never", field: grammar}
    status, answer = server.post(CHAT, body)
    assert status == 200, answer
    assert answer["choices"] and all(each["finish_reason"] == "stop" for each in answer["choices"])
    assert {each["message"]["content"].strip('"') for each in answer["choices"]} <= {"yes", "no"}


@pytest.mark.parametrize(
    "change, param",
    [
        ({"stream": True}, "stream"),
        ({"n": 10}, "n"),
        ({"stop": ["x", ""]}, "stop"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"repetition_detection": {"max_pattern_size": 2}}, "repetition_detection"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"use_beam_search": False, "length_penalty": 2}, "length_penalty"),
        ({"use_beam_search": False, "early_stopping": True}, "early_stopping"),
    ],
)
@pytest.mark.parametrize("path, rest", [(COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": USER})], ids=["completions", "chat"])
def test_beams_that_make_no_sense(server: ApiServer, change: dict[str, Any], param: str, path: str, rest: dict[str, Any]) -> None:
    status, answer = server.post(path, {**rest, "max_tokens": 2, "n": 2, "use_beam_search": True, **change})
    assert (status, answer["error"]["param"]) == (400, param), answer
