"""Patterns end a text where Python's `re` says that the first match ends, however the text is cut and whatever the pattern."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from frontend import regex_automaton
from frontend.regex_automaton import Automaton, RegexError
from frontend.stop_regex import RegexMatcher
from frontend.stop_strings import Stops, stops_of
from ipc.sampling_params import SamplingParams


def matcher(patterns: list[str], include: bool = False) -> RegexMatcher:
    return RegexMatcher(patterns, regex_automaton.compiled(patterns), include)


def run(stops: Stops, parts: list[str]) -> tuple[str, str | None]:
    out = ""
    for part in parts:
        out += stops.feed(part)
        if stops.matched is not None:
            return out, stops.matched
    return out + stops.finish(), stops.matched


def expected(text: str, patterns: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: of all parts of the text that a pattern matches, that which ends first, and of those the one that begins first."""
    for end in range(1, len(text) + 1):
        for start in range(end):
            for pattern in patterns:
                if re.fullmatch(pattern, text[start:end]):
                    return text[: end if include else start], pattern
    return text, None


ATOMS = ["a", "b", "A", ".", "[ab]", "[^a]", r"\d", r"\s", r"\W", r"\.", "[a-c0-9_]", r"[\d\-]", "(?:ab|b)", "(a|)", "é", "[]x]", "{"]
REPEATS = ["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{,2}", "*?", "+?", "{0}"]


def patterns() -> st.SearchStrategy[str]:
    part = st.tuples(st.sampled_from(ATOMS), st.sampled_from(REPEATS)).map("".join)
    line = st.lists(part, min_size=1, max_size=4).map("".join)
    group = st.tuples(line, st.sampled_from(REPEATS)).map(lambda each: f"({each[0]}){each[1]}")
    whole = st.lists(line | group, min_size=1, max_size=2).map("".join)
    return st.tuples(st.sampled_from(["", "", "(?i)", "(?s)", "(?si)"]), st.lists(whole, min_size=1, max_size=2).map("|".join)).map("".join)


def too_large(given: list[str]) -> bool:
    """Repeats of repeats grow beyond the limits."""
    try:
        regex_automaton.compiled(given)
    except RegexError as error:
        return "more than 64" in str(error) or "too large" in str(error)
    return False


@settings(max_examples=400, deadline=None)
@given(st.lists(patterns(), min_size=1, max_size=2), st.lists(st.text("ab.A1 \né{-", max_size=4), max_size=8), st.booleans())
def test_any_pattern_and_any_cut(given: list[str], parts: list[str], include: bool) -> None:
    assume(not any(re.fullmatch(pattern, "") for pattern in given) and not too_large(given))
    subject = matcher(given, include)
    twin = subject.copy()
    assert run(subject, parts) == run(twin, ["".join(parts)]) == expected("".join(parts), given, include)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab1", max_size=3), max_size=10))
def test_no_more_is_held_back_than_may_become_a_match(parts: list[str]) -> None:
    """Of a+b1, that is a run of a and perhaps a b."""
    subject, seen, out = matcher(["a+b1"]), "", ""
    for part in parts:
        seen, out = seen + part, out + subject.feed(part)
        if subject.matched is None:
            assert re.fullmatch("(a+b?)?", seen[len(out) :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc", max_size=3), max_size=8), st.booleans())
def test_stop_strings_beside_patterns(parts: list[str], include: bool) -> None:
    """Strings end the text first; a pattern ends what is before them."""
    params = SamplingParams(stop=["cab", "bb"], stop_regex=["a[bc]a"], include_stop_str_in_output=include)
    subject = stops_of(params)
    assert subject is not None
    text = "".join(parts)
    by_strings = stops_of(SamplingParams(stop=params.stop, include_stop_str_in_output=include))
    assert by_strings is not None
    before, string = run(by_strings, [text])
    shown, pattern = expected(before, params.stop_regex, include)
    assert run(subject, parts) == (shown, pattern or string)
    assert run(subject.copy(), [""])[1] == subject.matched


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*)*x", "[ab]*a[ab]{60}c", "(?:a?){31}a{31}c", r"(\w+\s?)+!!"])
def test_no_pattern_is_catastrophic(pattern: str) -> None:
    """A matcher that goes back would need longer than the universe has; this one reads each character once."""
    subject = matcher([pattern])
    text = "".join(subject.feed("aaaaaaaaaa") for _ in range(1000))
    assert subject.matched is None
    assert len(text + subject.finish()) == 10_000


@pytest.mark.parametrize(
    "pattern, why",
    [
        ("(a", "missing )"),
        ("a)", "unbalanced"),
        ("[a", "missing ]"),
        ("[z-a]", "range"),
        ("*a", "nothing to repeat"),
        ("a**", "repeat of a repeat"),
        ("a*+", "possessive"),
        ("a{3,2}", "largest number"),
        ("a{9999999}", "999999"),
        ("^a", "not supported"),
        ("a$", "not supported"),
        (r"\bend", "not supported"),
        (r"(a)\1", "not supported"),
        ("(?=a)a", "look-around"),
        ("a(?i)b", "flags inside"),
        ("a\\", "backslash"),
        (r"\u12", "code"),
        ("a*", "empty text"),
        ("|a", "empty text"),
        ("", "empty text"),
        ("a{65}", "more than 64"),
        ("((a{100}){100}){100}", "more than 64"),
        ("((|){9999}){9999}b", "too large"),
        ("(" * 40 + "a" + ")" * 40, "nested"),
        ("a" * 1025, "1024"),
    ],
)
def test_refused(pattern: str, why: str) -> None:
    with pytest.raises(RegexError, match=re.escape(why)):
        regex_automaton.compiled([pattern])


def test_the_limit_is_for_all_patterns_together() -> None:
    with pytest.raises(RegexError, match=r"'c'.*more than 64"):
        regex_automaton.compiled(["a{63}", "b", "c"])


def test_characters_that_are_not_in_the_pattern_cost_no_memory() -> None:
    automaton = Automaton()
    automaton.add("a[^b]")
    for code in range(5000):
        automaton.reading(chr(code))
    assert len(automaton._known) <= 1024
