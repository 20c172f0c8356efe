"""The splitter on whole and broken answers: what comes out, that cuts do not change it, and that nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import reduce
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.output_split import Delta, Kind, Message, Splitter, Splitting
from frontend.output_split.cursor import MAX_HELD
from frontend.output_split.splitting import markers
from frontend.reasoning_parsers import REASONING_PARSERS
from frontend.tool_parsers import TOOL_PARSERS
from tests.frontend.output_split.examples import ANSWERS, SCHEMAS, TEXT, TWO

THINK = REASONING_PARSERS["deepseek_r1"]
GPT_OSS = REASONING_PARSERS["openai_gptoss"]


def splitting(name: str, **options: Any) -> Splitting:
    return Splitting(TOOL_PARSERS[name], GPT_OSS if name == "openai" else THINK, SCHEMAS, **options)


def fed(splitter: Splitter, pieces: Iterable[str]) -> list[Delta]:
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += splitter.feed(piece)
    return deltas + splitter.finish()


def plain(message: Message) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    """A message without the calls' ids, which are random."""
    return message.content, message.reasoning, [(call.name, call.arguments) for call in message.calls]


def calls_of(message: Message) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in message.calls]


def joined(deltas: list[Delta]) -> list[tuple[Any, ...]]:
    """Neighbours of one kind as one."""
    found: list[list[Any]] = []
    for each in deltas:
        if found and each.kind != Kind.CALL and found[-1][:2] == [each.kind, each.call]:
            found[-1][2] += each.text
        else:
            found.append([each.kind, each.call, each.text, each.name])
    return [tuple(each) for each in found]


def test_every_format_has_an_example() -> None:
    assert set(ANSWERS) == set(TOOL_PARSERS)


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_two_calls(name: str) -> None:
    message = splitting(name).split(ANSWERS[name])
    assert calls_of(message) == TWO
    assert (message.content, message.reasoning) == (None, None)
    assert len({call.id for call in message.calls}) == 2


@pytest.mark.parametrize("name", sorted(set(TOOL_PARSERS) - {"openai"}))
def test_reasoning_before_and_text_around_calls(name: str) -> None:
    form = TOOL_PARSERS[name]
    before = "" if form.bare and not ANSWERS[name].startswith(form.begin or ("\0",)) else "I look.\n"
    message = splitting(name).split(f"<think>\nhm\n</think>\n\n{before}{ANSWERS[name]}")
    assert calls_of(message) == TWO
    assert (message.content, message.reasoning) == (before.strip() or None, "hm")


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
def test_one_call_only(name: str) -> None:
    splitter = splitting(name, parallel=False).splitter()
    message = Message.of(fed(splitter, ANSWERS[name]))
    assert calls_of(message) == TWO[:1]
    assert splitter.done


def any_cut(text: str) -> st.SearchStrategy[list[str]]:
    places = st.lists(st.integers(0, len(text)), max_size=12) | st.just(list(range(len(text))))
    return places.map(lambda cuts: [text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])])


def texts_for(name: str) -> st.SearchStrategy[str]:
    """Well-formed answers, cut short, and soups of the format's own pieces."""
    answer = f"<think>\nhm {TEXT}\n</think>\n\nSo: {TEXT}\n{ANSWERS[name]}"
    bare = ANSWERS[name]
    pieces = sorted(markers(TOOL_PARSERS[name], GPT_OSS if name == "openai" else THINK))
    pieces += ["f", "g", "{", "}", "[", "]", '"', ":", ",", " ", "\n", "(", ")", "a=1", '{"name": "f"', '"arguments": {', TEXT, "\\", "'"]
    whole = st.sampled_from([answer, bare, bare + " And " + bare, f"<tool_call>{bare}"])
    short = whole.flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))
    soup = st.lists(st.sampled_from(pieces + [bare]) | st.text(max_size=3), max_size=14).map("".join)
    return whole | short | soup


@pytest.mark.parametrize("name", sorted({id(form): name for name, form in TOOL_PARSERS.items()}.values()))
def test_cuts_change_nothing(name: str) -> None:
    form = splitting(name)

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        text = data.draw(texts_for(name))
        pieces = data.draw(any_cut(text))
        cut = fed(form.splitter(), pieces)
        assert plain(Message.of(cut)) == plain(form.split(text))
        assert joined(cut) == joined(fed(form.splitter(), [text]))
        one_by_one = reduce(Message.followed_by, [Message.of([delta]) for delta in cut], Message())
        assert one_by_one == Message.of(cut)

    check()


ATOMS = "αβγδεζηθικλμνξοπρστυφχψω"


@pytest.mark.parametrize("name", sorted({id(form): name for name, form in TOOL_PARSERS.items() if name != "openai"}.values()))
def test_garbage_is_kept(name: str) -> None:
    """Letters that no format uses come out in their order, wherever they stood; nothing raises. (gpt-oss's headers are no text.)"""
    form = TOOL_PARSERS[name]
    pieces = [*sorted(markers(form, None)), *"{}[]():,\"'=\n", "f", '{"name": "f", "arguments": {', "[f(", "<function=f>", ANSWERS[name]]

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.lists(st.sampled_from(pieces), max_size=10), st.randoms(use_true_random=False))
    def check(parts: list[str], random: Any) -> None:
        letters = iter(ATOMS)
        text = "".join(part + next(letters) if random.random() < 0.7 else part for part in parts)
        deltas = fed(Splitting(form, None, SCHEMAS).splitter(), [text])
        out = "".join(each.id + each.name + each.text for each in deltas)
        out = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match.group(1), 16)), out)
        wanted = [char for char in text if char in ATOMS]
        # A call's id may hold its name.
        assert list(dict.fromkeys(char for char in out if char in ATOMS)) == wanted, text

    check()


@pytest.mark.parametrize("name", sorted(TOOL_PARSERS))
@settings(max_examples=10, deadline=None, database=None)
@given(data=st.binary(max_size=60))
def test_random_bytes_are_content(name: str, data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    message = splitting(name).split(text)
    if not message.calls and name != "openai":
        assert (message.content or "").strip() == text.strip()


def test_arguments_come_while_they_are_written() -> None:
    splitter = splitting("hermes").splitter()
    splitter.feed('<tool_call>\n{"name": "f", "arguments": {"s": "one')
    assert [each.text for each in splitter.feed(" two")] == [" two"]


def test_text_is_not_held_without_need() -> None:
    splitter = splitting("hermes").splitter()
    assert [each.text for each in splitter.feed("a < b")] == ["a < b"]
    assert splitter.feed("<tool") == []
    assert [each.text for each in splitter.feed("box>")] == ["<toolbox>"]


BROKEN = [
    ("hermes", "<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", []),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', None, [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', None, [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call> b', "b", [("f", '{"a": oops}}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', None, [("f", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', None, [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}', None, [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "a\nb"}}', None, [("f", '{"s": "a\\nb"}')]),
    ("hermes", '<tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>', "<tool_call>", [("g", "{}")]),
    ("llama3_json", '{"name": "Ada", "parameters": {}}', '{"name": "Ada", "parameters": {}}', []),
    ("llama3_json", '{"answer": 1}', '{"answer": 1}', []),
    ("llama3_json", ' Text {"name": "f", "parameters": {}}', ' Text {"name": "f", "parameters": {}}', []),
    ("pythonic", "[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),
    ("pythonic", "[f(a=1 + 1)]", "[f(a=1 + 1)]", []),
    ("pythonic", "[f(**{'a': 1})]", "[f(**{'a': 1})]", []),
    ("pythonic", "[f(a=1e999)]", "[f(a=1e999)]", []),
    ("pythonic", "[f(1, 's')]", None, [("f", '{"a": 1, "s": "s"}')]),
    ("pythonic", "[unknown(a=1)]", "[unknown(a=1)]", []),
    ("pythonic", "[f(s='a\nb', o={'k': [True, None, -1]})]", None, [("f", '{"s": "a\\nb", "o": {"k": [true, null, -1]}}')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=s>\nhal", None, [("f", '{"s": "hal')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=n>\nnull\n</parameter>\n</function>", None, [("f", '{"n": null}')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=n>\nnull!\n</parameter>\n</function>", None, [("f", '{"n": "null!"}')]),
    (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n<parameter=o>\n{'k': True}\n</parameter>\n</function>",
        None,
        [("f", '{"o": {"k": true}}')],
    ),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=e>\nx\n</parameter>\n</function>", None, [("f", '{"e": "x"}')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=s>\n1\n\n</parameter>\n</function>", None, [("f", '{"s": "1\\n"}')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\nNaN\n</parameter>\n</function>", None, [("f", '{"a": "NaN"}')]),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\n1e999\n</parameter>\n</function>", None, [("f", '{"a": "1e999"}')]),
    ("pythonic", "[f(s='\\ud800')]", None, [("f", '{"s": "\\ud800"}')]),
    ("pythonic", "[f(a=0x" + "f" * 5000 + ")]", "[f(a=0x" + "f" * 5000 + ")]", []),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}', '<tool_call>{"name": "\\ud800", "arguments": {}}', []),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}', '<tool_call>{"name": "", "arguments": {}}', []),
    ("glm45", "<tool_call>hello there</tool_call>", "<tool_call>hello there</tool_call>", []),
    ("kimi_k2", "<|tool_calls_section_begin|><|tool_calls_section_end|>", "<|tool_calls_section_begin|><|tool_calls_section_end|>", []),
    ("openai", "no channels", "no channels", []),
]


@pytest.mark.parametrize("name, text, content, calls", BROKEN, ids=[f"{each[0]}-{place}" for place, each in enumerate(BROKEN)])
def test_broken_and_odd_calls(name: str, text: str, content: str | None, calls: list[tuple[str, str]]) -> None:
    assert plain(splitting(name).split(text)) == (content, None, calls)


REASONING = [
    ("deepseek_r1", "<think>\na\n\n</think>\n\nb\n", False, ("b\n", "a")),
    ("deepseek_r1", "a\n</think>\n\nb", True, ("b", "a")),
    ("deepseek_r1", " <think>a", False, (None, "a")),
    ("deepseek_r1", "no thought <think>", False, ("no thought <think>", None)),
    ("deepseek_r1", "a < b </thin", True, (None, "a < b </thin")),
    ("mistral", "[THINK]a[/THINK]b", False, ("b", "a")),
    ("granite", "Here is my thought process: a Here is my response: b", False, ("b", "a")),
    ("hunyuan_a13b", "<think>\na\n</think>\n<answer>\nb\n</answer>", False, ("b", "a")),
    ("kimi_k2", "<think>a</think>b<think>c</think>d", False, ("bd", "ac")),
    ("openai_gptoss", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", False, ("b", "a")),
    ("cohere_command3", "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", False, ("b", "a")),
]


@pytest.mark.parametrize("name, text, opened, wanted", REASONING, ids=[f"{each[0]}-{place}" for place, each in enumerate(REASONING)])
def test_reasoning(name: str, text: str, opened: bool, wanted: tuple[str | None, str | None]) -> None:
    form = Splitting(None, REASONING_PARSERS[name], opened=opened)
    message = form.split(text)
    assert (message.content, message.reasoning) == wanted
    assert plain(Message.of(fed(form.splitter(), text))) == plain(message)


def test_a_splitter_without_work_says_so() -> None:
    splitter = Splitting(None, THINK).splitter()
    assert not splitter.plain
    splitter.feed("<think>a</think>\n")
    assert not splitter.plain
    assert [each.text for each in splitter.feed("b ")] == ["b"]
    assert splitter.plain
    assert [each.text for each in splitter.release()] == [" "]


def test_reasoning_tokens_are_counted() -> None:
    splitter = Splitting(None, THINK).splitter()
    for piece in ("<think>", "a", " b", "</think>", "c", "d"):
        splitter.feed_token(piece)
    assert splitter.reasoning_tokens == 4


def test_no_more_than_a_bound_is_held() -> None:
    splitter = splitting("pythonic").splitter()
    out = sum(len(each.text) for _ in range(40) for each in splitter.feed("[f(a=" + "'x'" * 1000))
    assert out > MAX_HELD // 2
    assert sum(len(each.text) for each in splitter.finish()) + out >= 40 * 3005 - 10


@pytest.mark.timeout(100)
@pytest.mark.parametrize("piece", ["<tool_call>", '<tool_call>{"name": "', "<tool_call>{", "<tool_call>[[[[", '"', "<", "\\"])
def test_hostile_repetition_is_linear_enough(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    message = splitting("hermes").split(text)
    assert len(message.content or "") + sum(len(call.arguments) for call in message.calls) >= len(text) - 12


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    "inner", ["[" * 5000, "-" * 5000 + "1", "(" * 5000, "not " * 5000, "1" * 10000, "f'{x}'", "b'x'", "1j", "...", "a.b"]
)
def test_hostile_python(inner: str) -> None:
    text = f"[f(a={inner})]"
    assert plain(splitting("pythonic").split(text)) == (text, None, [])
