"""The grammar desk with real grammars: its cache, its limits, its processes, its threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ipc.config import StructuredOutputsConfig
from ipc.errors import InvalidRequestError
from ipc.grammar import Grammar, GrammarKind, StructuredOutputsParams
from scheduler_proc import grammar, grammar_text
from scheduler_proc.constraint import Answer, Constraint, Order, Outcome
from scheduler_proc.grammar import GrammarDesk
from scheduler_proc.grammar_cache import BASE_BYTES, MAX_ERRORS, GrammarCache, estimated_bytes, key_of
from scheduler_proc.grammar_child import ChildTask
from scheduler_proc.grammar_compiler import CompilerDownError, GrammarCompiler, GrammarError
from scheduler_proc.grammar_facts import TokenizerFacts
from tests.fakes import ROOT

EOS = [4066, 4064]
FACTS = TokenizerFacts(str(ROOT / "quire" / "demo_model" / "tokenizer.json"), 4100, EOS)  # a vocabulary larger than the tokenizer's


def regex(pattern: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, pattern)


class Desk:
    """A desk whose answers a test waits for."""

    def __init__(self, **settings: Any) -> None:
        self.heard: list[Answer] = []
        self._news = threading.Condition()
        self.desk = GrammarDesk(FACTS, StructuredOutputsConfig(**settings), self._deliver)
        self.desk.start()

    def _deliver(self, answers: list[Answer]) -> None:
        with self._news:
            self.heard += answers
            self._news.notify_all()

    def order(self, constraint: Constraint, tokens: list[int], first: bool) -> None:
        self.desk.take([Order(constraint, tokens, first)])

    def wait(self, count: int, seconds: float = 60.0) -> list[Answer]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.heard) >= count, seconds), self.heard
            heard, self.heard = self.heard, []
        return heard

    def ask(self, constraint: Constraint, tokens: list[int], first: bool) -> Answer:
        self.order(constraint, tokens, first)
        (answer,) = self.wait(1)
        assert answer.constraint is constraint
        return answer


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.desk.close()


def constraint(grammar: Grammar) -> Constraint:
    request: Any = SimpleNamespace()
    return Constraint(grammar, request)


def allowed(one: Constraint) -> list[int]:
    assert one.mask is not None and one.mask.shape == (-(-FACTS.vocab_size // 32),)
    bits: list[int] = np.flatnonzero(np.unpackbits(one.mask.view(np.uint8), bitorder="little")).tolist()
    return bits


def test_a_life_of_masks(desk: Desk) -> None:
    """Following any allowed token leads to the end, and the text is what the grammar says."""
    tokenizer = grammar_text.load_tokenizer(FACTS)
    rng = np.random.default_rng(0)
    for _ in range(5):
        one = constraint(regex("(ab|cd){3}"))
        answer = desk.ask(one, [], True)
        output: list[int] = []
        while answer.outcome is Outcome.READY:
            ids = allowed(one)
            assert ids and max(ids) < FACTS.vocab_size
            output.append(int(rng.choice(ids)))
            answer = desk.ask(one, output[-1:], False)
        assert answer.outcome is Outcome.COMPLETE
        text = tokenizer.decode_str([token for token in output if token not in EOS])
        assert len(text) == 6 and text.replace("ab", "").replace("cd", "") == ""


def test_the_end_token_is_allowed_only_at_the_end(desk: Desk) -> None:
    one = constraint(regex("a*"))
    assert desk.ask(one, [], True).outcome is Outcome.READY
    assert set(EOS) <= set(allowed(one))
    assert desk.ask(one, [EOS[1]], False).outcome is Outcome.COMPLETE
    other = constraint(regex("a{5}"))
    desk.ask(other, [], True)
    assert not set(EOS) & set(allowed(other))
    assert desk.ask(other, [EOS[0]], False).outcome is Outcome.FAILED


def test_replay_gives_the_same_mask(desk: Desk) -> None:
    one, grammar = constraint(regex("[a-z]{8}[0-9]{4}")), regex("[a-z]{8}[0-9]{4}")
    desk.ask(one, [], True)
    output: list[int] = []
    for _ in range(3):
        output.append(allowed(one)[0])
        assert desk.ask(one, output[-1:], False).outcome is Outcome.READY
    again = constraint(grammar)
    assert desk.ask(again, output, True).outcome is Outcome.READY
    assert allowed(again) == allowed(one)


def test_requests_of_one_grammar_have_states_of_their_own(desk: Desk) -> None:
    first, second = constraint(regex("[ab]{2}x")), constraint(regex("[ab]{2}x"))
    desk.order(first, [], True)
    desk.order(second, [], True)
    assert {answer.outcome for answer in desk.wait(2)} == {Outcome.READY}
    before = allowed(second)
    desk.ask(first, [before[0]], False)
    assert allowed(second) == before and allowed(first) != before


def test_what_cannot_be_used_is_said_and_remembered(desk: Desk) -> None:
    for _ in range(2):
        answer = desk.ask(constraint(Grammar(GrammarKind.JSON_SCHEMA, '{"not":{}}', param="response_format")), [], True)
        assert answer.outcome is Outcome.INVALID
        assert answer.message == 'response_format cannot be used: Unimplemented keys: ["not"]'
    assert desk.desk._cache.error(key_of(Grammar(GrammarKind.JSON_SCHEMA, '{"not":{}}')), time.monotonic())


def test_a_hang_is_killed_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child hangs on one grammar: its process is killed in time, another works meanwhile, and a new one comes."""
    monkeypatch.setattr("scheduler_proc.grammar_compiler.COMMAND", ["-P", "-c", SLEEPY])
    desk = Desk(grammar_processes=2, grammar_compile_timeout=3.0)
    try:
        assert desk.ask(constraint(regex("warm")), [], True).outcome is Outcome.READY
        desk.order(constraint(regex("hang")), [], True)
        for at in range(5):
            answer = desk.ask(constraint(regex(f"good{at}")), [], True)
            assert answer.outcome is Outcome.READY
        (answer,) = desk.wait(1)
        assert answer.outcome is Outcome.INVALID and "more than 3 s" in answer.message
        again = desk.ask(constraint(regex("hang")), [], True)
        assert again.outcome is Outcome.INVALID, "tried again at once"
        assert desk.ask(constraint(regex("crash")), [], True).outcome is Outcome.INVALID
        assert desk.ask(constraint(regex("and on")), [], True).outcome is Outcome.READY
    finally:
        desk.desk.close()


SLEEPY = """
import os, sys, time
from scheduler_proc import grammar_child
real = grammar_child.translate
def translate(grammar, tokenizer):
    if grammar.text == "hang":
        time.sleep(1000)
    if grammar.text == "crash":
        os.abort()
    if grammar.text == "eat":
        data = bytearray(1 << 33)
    if grammar.text == "spin":
        while True:
            pass
    return real(grammar, tokenizer)
grammar_child.translate = translate
sys.exit(grammar_child.main())
"""


def test_the_compilers_limits() -> None:
    compiler = GrammarCompiler(ChildTask(FACTS, 3.0, 64), ["-P", "-c", SLEEPY])
    try:
        assert "abc" in compiler.check(regex("abc"))
        pid = compiler.pid
        assert "abd" in compiler.check(regex("abd")) and compiler.pid == pid, "a good grammar costs no process"
        for text, reason in (("hang", "3 s"), ("spin", "3 s"), ("crash", "crashes"), ("eat", "64 MiB")):
            with pytest.raises(GrammarError, match=reason) as caught:
                compiler.check(regex(text))
            assert caught.value.passing == (reason == "3 s")
            assert compiler.pid is None or compiler.pid != pid
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert compiler.check(regex("abc"))
    finally:
        compiler.close()


def test_a_tokenizer_that_cannot_be_read() -> None:
    compiler = GrammarCompiler(ChildTask(TokenizerFacts("/nowhere", 10, [1]), 1.0, 64))
    with pytest.raises(CompilerDownError):
        compiler.check(regex("a"))
    assert compiler.pid is None


def test_the_cache_is_bounded_in_bytes() -> None:
    cache: GrammarCache[str] = GrammarCache(3 * BASE_BYTES + 1000)
    keys = [key_of(regex(str(at))) for at in range(5)]
    for at, key in enumerate(keys[:3]):
        cache.put(key, str(at), BASE_BYTES)
    assert cache.get(keys[0]) == "0"
    cache.put(keys[3], "3", BASE_BYTES)
    assert cache.get(keys[1]) is None, "the least recently used one goes"
    assert [cache.get(key) for key in (keys[0], keys[2], keys[3])] == ["0", "2", "3"]
    cache.put(keys[4], "4", 10 * BASE_BYTES)
    assert cache.get(keys[4]) is None and len(cache) == 3, "one that is too large pushes nobody out"
    cache.put(keys[3], "3", 10)
    assert cache.num_bytes == 2 * BASE_BYTES + 10
    assert estimated_bytes("x" * 1000) > estimated_bytes("")


def test_errors_are_remembered_for_a_while() -> None:
    cache: GrammarCache[str] = GrammarCache(1000)
    late, wrong = key_of(regex("late")), key_of(regex("wrong"))
    cache.put_error(late, "too slow", 100.0, passing=True)
    cache.put_error(wrong, "not so", 100.0, passing=False)
    assert (cache.error(late, 101.0), cache.error(late, 1000.0)) == ("too slow", None)
    assert cache.error(wrong, 1e9) == "not so"
    for at in range(MAX_ERRORS):
        cache.put_error(key_of(regex(str(at))), "x", 0.0, passing=False)
    assert cache.error(wrong, 1.0) is None


def test_keys_are_of_content() -> None:
    same = Grammar(GrammarKind.REGEX, "a", param="guided_regex")
    assert key_of(regex("a")) == key_of(same)
    assert len({key_of(each) for each in (regex("a"), Grammar(GrammarKind.LARK, "a"), Grammar(GrammarKind.REGEX, "a", "*"))}) == 3


@pytest.mark.parametrize(
    "params, match",
    [
        ({}, "none of them"),
        ({"json_object": False}, "none of them"),
        ({"regex": "a", "json": {}}, "json and regex"),
        ({"regex": ""}, "non-empty"),
        ({"regex": 3}, "non-empty"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": ["a"] * 10_001}, "10001"),
        ({"json": "{"}, "not valid JSON"),
        ({"json": "[1]"}, "JSON object"),
        ({"json": "[" * 100_000}, "nested too deeply"),
        ({"regex": "a", "whitespace_pattern": " "}, "whitespace"),
        ({"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True}, "contradict"),
        ({"json": {}, "whitespace_pattern": " " * 300}, "whitespace_pattern"),
        ({"structural_tag": {"triggers": [], "structures": []}}, "triggers"),
        ({"structural_tag": {"triggers": ["<"], "structures": [{"begin": "x", "schema": {}, "end": ""}]}}, "none of the triggers"),
        ({"structural_tag": {"triggers": ["<"], "structures": [{"begin": "<"}]}}, "begin, schema and end"),
        ({"structural_tag": {"format": {"type": "other"}}}, "triggered_tags"),
    ],
)
def test_params_are_checked(params: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match) as caught:
        StructuredOutputsParams(**params, blame="response_format").validate()
    assert caught.value.param == "response_format"


class Stuck:
    """A matcher that takes its time."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self.free = threading.Event()

    def consume_tokens(self, tokens: list[int]) -> bool:
        assert self.free.wait(60)
        return bool(self._matcher.consume_tokens(tokens))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)


def test_slow_masks_hold_up_no_others(desk: Desk) -> None:
    """A request that has shown to be slow, and first masks, are computed beside the others, which answer meanwhile."""
    slow, quick, late = (constraint(regex("[a-z]{9}")) for _ in range(3))
    for each in (slow, quick):
        assert desk.ask(each, [], True).outcome is Outcome.READY and not each.slow
    token = allowed(slow)[0]
    stuck = slow.state.matcher = Stuck(slow.state.matcher)
    slow.state.cost_ns, slow.slow = 1e9, True
    desk.order(slow, [token], False)
    desk.order(late, [], True)
    assert desk.ask(quick, [token], False).outcome is Outcome.READY
    stuck.free.set()
    assert [answer.constraint for answer in desk.wait(2)] == [slow, late]
    assert slow.slow and not late.slow


def test_a_request_is_slow_for_a_while_after_a_slow_mask(desk: Desk) -> None:
    one = constraint(regex("[a-z]{99}"))
    desk.ask(one, [], True)
    matcher = one.state.matcher

    def burn(tokens: list[int]) -> bool:
        until = time.thread_time_ns() + 2 * grammar.SLOW_MASK_NS
        while time.thread_time_ns() < until:
            pass
        return bool(matcher.consume_tokens(tokens))

    one.state.matcher = SimpleNamespace(
        consume_tokens=burn,
        is_stopped=matcher.is_stopped,
        is_error=matcher.is_error,
        unsafe_compute_mask_ptr=matcher.unsafe_compute_mask_ptr,
    )
    token = grammar_text.load_tokenizer(FACTS).tokenize_str("a")[0]
    assert desk.ask(one, [token], False).outcome is Outcome.READY and one.slow
    one.state.matcher = matcher
    count = 0
    while one.slow:
        assert desk.ask(one, [token], False).outcome is Outcome.READY
        count += 1
    assert 20 <= count <= 40, "31/32 per mask, from twice the bound and a bit"


def test_an_order_is_carried_out_once_whenever_its_request_turns_out_slow(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask thread may be done, and call the request slow, before `take` has given away the rest of the same orders."""
    one, other = (constraint(regex("[a-z]_[0-9]_[a-z]{9}")) for _ in range(2))
    for each in (one, other):
        assert desk.ask(each, [], True).outcome is Outcome.READY and not each.slow
    monkeypatch.setattr(grammar, "SLOW_MASK_NS", -1)
    urgent = desk.desk._urgent

    class Overtaken:
        """The loop's thread gets no time between this and what it does next."""

        def put(self, step: Any) -> None:
            urgent.put(step)
            with desk._news:
                assert desk._news.wait_for(lambda: len(desk.heard) >= len(step.orders), 60.0)

    monkeypatch.setattr(desk.desk, "_urgent", Overtaken())
    desk.desk.take([Order(one, [allowed(one)[0]], False), Order(other, [allowed(other)[0]], False)])
    assert one.slow and other.slow
    monkeypatch.undo()
    # A second answer to either would come before that to an order given to the same thread later.
    late = constraint(regex("[a-z]{9}"))
    desk.order(late, [], True)
    assert [answer.constraint for answer in desk.wait(3)] == [one, other, late]
    assert desk.ask(one, [allowed(one)[0]], False).outcome is Outcome.READY
