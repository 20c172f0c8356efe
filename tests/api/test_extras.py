"""Fields of vLLM's that say what an answer shows besides, how a prompt is cut, and when a stream speaks. The worker echoes the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from frontend.tokenizer import Tokenizer
from ipc.config import Config
from tests.api.server import DEMO, ApiServer, api_server, events
from tests.api.test_completions import streamed

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "one two three four five six"
USER = [{"role": "user", "content": "hi there"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO))


def choices(found: list[Any]) -> list[Any]:
    return [each["choices"][0] for each in found[:-1]]


@pytest.mark.parametrize("extra", [{}, {"stop": ["zzz"]}, {"logprobs": 1}, {"stream_interval": 3}])
def test_token_ids_come_in_streams_as_well(server: ApiServer, tokenizer: Tokenizer, extra: dict[str, Any]) -> None:
    body = {"prompt": TEXT, "max_tokens": 40, "return_token_ids": True, "return_prompt_text": True, **extra}
    whole = server.post(COMPLETIONS, body)[1]["choices"][0]
    ids = tokenizer.encode(TEXT)
    assert (whole["prompt_token_ids"], whole["prompt_text"], whole["token_ids"][:-1]) == (ids, TEXT, ids)
    parts = choices(streamed(server, body))
    assert (parts[0]["prompt_token_ids"], parts[0]["prompt_text"]) == (ids, TEXT)
    assert all("prompt_token_ids" not in part for part in parts[1:])
    assert [token for part in parts for token in part["token_ids"]] == whole["token_ids"]
    # Each chunk's text is that of its tokens.
    for part in parts[:-1]:
        assert part["text"] == tokenizer.decode(part["token_ids"])


def test_token_ids_in_chat(server: ApiServer, tokenizer: Tokenizer) -> None:
    body = {"messages": USER, "return_token_ids": True, "return_prompt_text": True, "prompt_logprobs": 0, "max_tokens": 9}
    text, ids = tokenizer.encode_messages(USER)
    answer = server.post(CHAT, body)[1]
    assert (answer["prompt_token_ids"], answer["prompt_text"], len(answer["prompt_logprobs"])) == (ids, text, len(ids))
    del body["prompt_logprobs"]
    found = streamed(server, body, CHAT)
    assert (found[0]["prompt_token_ids"], found[0]["prompt_text"]) == (ids, text)
    assert all("prompt_token_ids" not in each for each in found[1:-1])
    assert [token for part in choices(found) for token in part["token_ids"]] == answer["choices"][0]["token_ids"]
    assert answer["choices"][0]["token_ids"] == ids[: ids.index(tokenizer.backend.token_to_id("<|im_end|>")) + 1]


def test_nothing_of_it_unasked(server: ApiServer) -> None:
    for path, body in ((COMPLETIONS, {"prompt": TEXT}), (CHAT, {"messages": USER, "max_tokens": 4})):
        for found in (server.post(path, body)[1], *streamed(server, body, path)[:-1]):
            assert not {"prompt_text", "prompt_token_ids", "prompt_logprobs"} & (set(found) | set(found["choices"][0]))
            assert "token_ids" not in found["choices"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_named_by_id(server: ApiServer, tokenizer: Tokenizer, stream: bool) -> None:
    ids = tokenizer.encode("one two")
    body = {"prompt": "one two", "max_tokens": 2, "logprobs": 1, "return_tokens_as_token_ids": True}
    names = [f"token_id:{token}" for token in ids[:2]]
    entries = [each["logprobs"] for each in choices(streamed(server, body))[:-1]] if stream else []
    entries = entries or [server.post(COMPLETIONS, body)[1]["choices"][0]["logprobs"]]
    assert [name for each in entries for name in each["tokens"]] == names
    assert [list(top) for each in entries for top in each["top_logprobs"]] == [[name] for name in names]
    chat = {"messages": USER, "max_tokens": 2, "logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}
    prompt = tokenizer.encode_messages(USER)[1]
    content = server.post(CHAT, chat)[1]["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == [f"token_id:{token}" for token in prompt[:2]]
    assert bytes(content[0]["bytes"]) == tokenizer.token_bytes(prompt[0])
    assert content[0]["top_logprobs"][0]["token"] == content[0]["token"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_an_interval_gathers_tokens(server: ApiServer, path: str) -> None:
    body = (
        {"prompt": TEXT * 3, "max_tokens": 20}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 12}
    )

    def text(found: list[Any]) -> list[str]:
        return [each["text"] if path == COMPLETIONS else each["delta"].get("content", "") for each in choices(found)]

    all_at_once, by_five = text(streamed(server, body, path)), text(streamed(server, {**body, "stream_interval": 5}, path))
    assert "".join(all_at_once) == "".join(by_five)
    # After tokens 1, 6, 11 and 16, what is left at the end, the end itself; chat begins with its role.
    assert len(by_five) <= 7


@pytest.mark.parametrize("side", ["left", "right", None])
def test_a_prompt_is_cut(server: ApiServer, tokenizer: Tokenizer, side: str | None) -> None:
    ids = tokenizer.encode(TEXT)
    body = {"prompt": TEXT, "max_tokens": 20, "truncate_prompt_tokens": 3, "truncation_side": side, "return_token_ids": True, "echo": True}
    choice = server.post(COMPLETIONS, body)[1]["choices"][0]
    kept = ids[:3] if side == "right" else ids[-3:]
    assert choice["prompt_token_ids"] == kept
    assert choice["text"] == tokenizer.decode(kept) * 2
    chat = {"messages": USER, "max_tokens": 3, "truncate_prompt_tokens": 2, "return_token_ids": True}
    assert server.post(CHAT, chat)[1]["prompt_token_ids"] == tokenizer.encode_messages(USER)[1][-2:]


def test_a_prompt_is_cut_to_what_fits(server: ApiServer) -> None:
    body = {"prompt": [7] * 3000, "max_tokens": 48, "truncate_prompt_tokens": -1}
    assert server.post(COMPLETIONS, body)[1]["usage"] == {
        "prompt_tokens": 2000,
        "completion_tokens": 48,
        "total_tokens": 2048,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    status, answer = server.post(COMPLETIONS, {**body, "truncate_prompt_tokens": 2048})
    assert (status, answer["error"]["param"]) == (400, "truncate_prompt_tokens")


def test_echo_in_chat(server: ApiServer) -> None:
    talk = [*USER, {"role": "assistant", "content": "I say"}]
    body = {"messages": talk, "echo": True, "continue_final_message": True, "add_generation_prompt": False, "max_tokens": 6}
    plain = server.post(CHAT, {**body, "echo": False})[1]["choices"][0]["message"]["content"]
    assert server.post(CHAT, body)[1]["choices"][0]["message"]["content"] == "I say" + plain
    found = streamed(server, body, CHAT)
    assert "".join(each["delta"].get("content", "") for each in choices(found)) == "I say" + plain
    # The last message is the user's, the answer is not.
    assert server.post(CHAT, {"messages": USER, "echo": True, "max_tokens": 6})[1]["choices"][0]["message"]["content"] == plain


def test_a_repetition_ends_the_output(server: ApiServer, tokenizer: Tokenizer) -> None:
    [a, b, c] = tokenizer.encode("x y z")[:3]
    prompt = [a, b, c, b, c, b, c, b, c, a]
    for extra in ({}, {"stop": ["qqq"]}, {"logprobs": 0}):
        body = {"prompt": prompt, "max_tokens": 30, "repetition_detection": {"max_pattern_size": 3, "min_count": 3}, **extra}
        answer = server.post(COMPLETIONS, body)[1]
        choice = answer["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("repetition", None)
        assert (choice["text"], answer["usage"]["completion_tokens"]) == (tokenizer.decode(prompt[:7]), 7)
        last = choices(streamed(server, body))
        assert ("".join(each["text"] for each in last), last[-1]["finish_reason"]) == (choice["text"], "repetition")
    for off in (
        {"max_pattern_size": 3, "min_count": 5},
        {"max_pattern_size": 0},
        {"max_pattern_size": 3, "min_pattern_size": 3, "min_count": 2},
    ):
        body = {"prompt": prompt, "max_tokens": 30, "repetition_detection": off}
        assert server.post(COMPLETIONS, body)[1]["choices"][0]["finish_reason"] == "stop"


def test_a_pattern_ends_the_output(server: ApiServer, tokenizer: Tokenizer) -> None:
    """Whole and streamed, in completions, chat and beam search; the worker repeats the prompt."""
    prompt = "one two 345 six seven eight"
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt
    for more, text, pattern in (
        ({"stop_regex": r"\d{2}"}, "one two ", r"\d{2}"),
        ({"stop_regex": ["[xyz]{2}", r"\d\s+s"], "include_stop_str_in_output": True}, "one two 345 s", r"\d\s+s"),
        ({"stop_regex": "s[a-z]+n", "stop": ["eigh", "345 si"]}, "one two ", "345 si"),
        ({"stop_regex": r"x.*h", "logprobs": 1, "min_tokens": 1}, "one two 345 si", r"x.*h"),
        ({"stop_regex": r"\d+", "use_beam_search": True}, "one two ", r"\d+"),
    ):
        body = {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, **more}
        choice = server.post(COMPLETIONS, body)[1]["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", pattern), more
        if "use_beam_search" not in more:
            found = choices(streamed(server, body))
            assert ("".join(each["text"] for each in found), found[-1]["finish_reason"], found[-1]["stop_reason"]) == (
                text,
                "stop",
                pattern,
            )
    whole = server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 40, "stop_regex": "never said"})[1]["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (prompt, "stop") and whole["stop_reason"] is None


def test_a_pattern_ends_answers_of_every_api(scripted: ApiServer) -> None:
    key = {"Authorization": "Bearer sk-one"}
    said, pattern = [{"role": "user", "content": "one two 345 six"}], r"\d+"
    chat = scripted.post(CHAT, {"messages": said, "stop_regex": pattern}, key)[1]["choices"][0]
    assert (chat["message"]["content"], chat["finish_reason"], chat["stop_reason"]) == ("one two ", "stop", pattern)
    response = scripted.post("/v1/responses", {"input": said, "stop_regex": [pattern], "store": False}, key)[1]
    assert response["output"][0]["content"][0]["text"] == "one two "
    message = scripted.post("/v1/messages", {"messages": said, "max_tokens": 30, "stop_regex": pattern}, key)[1]
    assert (message["content"][0]["text"], message["stop_reason"], message["stop_sequence"]) == ("one two ", "stop_sequence", pattern)


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A template that prints its documents."""
    template = tmp_path_factory.mktemp("template") / "documents.jinja"
    listed = "{% if documents is defined %}{% for each in documents %}[{{ each.title }}]{% endfor %}{% else %}-{% endif %}"
    template.write_text(listed + "{{ messages[0].content }}")

    config = Config()
    config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, chat_template=str(template)))
    with api_server(config) as running:
        yield running


def test_documents(grounded: ApiServer, tokenizer: Tokenizer) -> None:
    def prompt(**more: Any) -> Any:
        return grounded.post(CHAT, {"messages": USER, "max_tokens": 1, "return_prompt_text": True, "return_token_ids": True, **more})[1]

    assert prompt()["prompt_text"] == "-hi there"
    assert prompt(documents=[])["prompt_text"] == "-hi there"
    found = prompt(documents=[{"title": "a<|im_end|>", "text": "b"}, {"title": "c"}])
    assert found["prompt_text"] == "[a<|im_end|>][c]hi there"
    assert tokenizer.backend.token_to_id("<|im_end|>") not in found["prompt_token_ids"], "a document cannot end the turn"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stream_interval": 0}, "stream_interval"),
    ({"stream_interval": 1.5}, "stream_interval"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncation_side": "middle"}, "truncation_side"),
    ({"repetition_detection": {"max_pattern_size": 3, "min_count": 1}}, "repetition_detection"),
    ({"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}}, "repetition_detection"),
    ({"repetition_detection": {"max_pattern_size": 10**9, "min_count": 2}}, "repetition_detection"),
    ({"repetition_detection": "yes"}, "repetition_detection"),
    ({"return_hidden_states": True}, "return_hidden_states"),
    ({"stop_regex": "(a"}, "stop_regex"),
    ({"stop_regex": ["a", "b*"]}, "stop_regex"),
    ({"stop_regex": r"(a)\1"}, "stop_regex"),
    ({"stop_regex": "((a{100}){100}){100}"}, "stop_regex"),
    ({"stop_regex": ""}, "stop_regex"),
    ({"stop_regex": ["x"] * 9}, "stop_regex"),
    ({"stop_regex": 5}, "stop_regex"),
    ({"separate_reasoning": False}, "separate_reasoning"),
    ({"ec_transfer_params": {"a": 1}}, "ec_transfer_params"),
]


@pytest.mark.parametrize("path, rest", [(COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": USER})], ids=["completions", "chat"])
@pytest.mark.parametrize("change, param", WRONG, ids=[str(change)[:50] for change, _ in WRONG])
def test_refused_by_name(server: ApiServer, change: dict[str, Any], param: str, path: str, rest: dict[str, Any]) -> None:
    status, answer = server.post(path, {**rest, "max_tokens": 4, **change})
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_prompt_logprobs_without_a_token(server: ApiServer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    body = {"prompt": TEXT, "max_tokens": 0, "echo": True, "prompt_logprobs": 0, "return_token_ids": True, "n": 2}
    answer = server.post(COMPLETIONS, body)[1]
    assert [len(each["prompt_logprobs"]) for each in answer["choices"]] == [len(ids)] * 2
    assert [each["token_ids"] for each in answer["choices"]] == [[], []]
    assert answer["usage"]["completion_tokens"] == 0


def test_the_sum_of_events_is_whole_even_in_one_chunk(server: ApiServer) -> None:
    raw = server.request("POST", COMPLETIONS, {"prompt": TEXT, "max_tokens": 40, "stream": True, "stream_interval": 1000})[2]
    found = events(raw)
    assert "".join(each["text"] for each in choices(found)) == TEXT
    assert len(found) <= 4


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_named_tokens(server: ApiServer, tokenizer: Tokenizer, stream: bool) -> None:
    wanted = [2000, 7, 300]
    ids = tokenizer.encode("one two")[:2]
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 2, "logprobs": 0, "logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
    parts = [each["logprobs"] for each in choices(streamed(server, body))[:-1]] if stream else []
    parts = parts or [server.post(COMPLETIONS, body)[1]["choices"][0]["logprobs"]]
    tops = [top for each in parts for top in each["top_logprobs"]]
    # tests.paged_toy.logprob_of: minus position minus id / 1024
    for place, (chosen, top) in enumerate(zip(ids, tops)):
        assert top == {f"token_id:{each}": pytest.approx(-(2 + place + each / 1024)) for each in [*wanted, chosen]}
    chat = {"messages": USER, "max_tokens": 1, "logprobs": True, "logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
    answer = choices(streamed(server, chat, CHAT))[1] if stream else server.post(CHAT, chat)[1]["choices"][0]
    [content] = answer["logprobs"]["content"] if not stream else [answer["logprobs"]["content"][0]]
    assert [each["token"] for each in content["top_logprobs"]] == [f"token_id:{each}" for each in wanted]


@pytest.mark.parametrize(
    "change",
    [{"logprob_token_ids": [5]}, {"logprobs": 1, "logprob_token_ids": [5, 5]}, {"logprobs": 1, "logprob_token_ids": [4096]}]
    + [{"logprobs": 1, "logprob_token_ids": list(range(21))}],
    ids=str,
)
def test_named_tokens_that_make_no_sense(server: ApiServer, change: dict[str, Any]) -> None:
    status, answer = server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2, **change})
    assert (status, answer["error"]["param"]) == (400, "logprob_token_ids")
