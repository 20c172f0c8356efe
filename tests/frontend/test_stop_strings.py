"""However the text is cut, the same stop string ends it at the same place, and nothing of it leaks out before."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from frontend.stop_strings import StopMatcher


def expected(text: str, patterns: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: the match that ends first wins, of those that end together the longest."""
    found = [(text.find(pattern) + len(pattern), -len(pattern), pattern) for pattern in patterns if pattern in text]
    if not found:
        return text, None
    end, _, pattern = min(found)
    return text[: end if include else end - len(pattern)], pattern


def run(parts: list[str], patterns: list[str], include: bool) -> tuple[list[str], str | None]:
    matcher = StopMatcher(patterns, include)
    out = []
    for part in parts:
        out.append(matcher.feed(part))
        if matcher.matched is not None:
            return out, matcher.matched
    return [*out, matcher.finish()], None


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
@example(["a", "bc"], ["abc", "b"], False)
@example(["aab", "aab"], ["aabaaa", "abaab"], True)
def test_any_cut_gives_the_same(parts: list[str], patterns: list[str], include: bool) -> None:
    out, matched = run(parts, patterns, include)
    assert ("".join(out), matched) == expected("".join(parts), patterns, include)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1),
)
def test_no_more_is_held_back_than_may_become_a_match(parts: list[str], patterns: list[str]) -> None:
    matcher = StopMatcher(patterns, False)
    given_out = seen = ""
    for part in parts:
        seen += part
        given_out += matcher.feed(part)
        if matcher.matched is not None:
            return
        held = seen[len(given_out) :]
        assert held == "" or any(pattern.startswith(held) for pattern in patterns)


def test_a_long_pattern_costs_little_per_character() -> None:
    """Text that nearly matches everywhere: a search from each place anew would take minutes."""
    matcher = StopMatcher(["a" * 1023 + "b", "a" * 1022 + "c"], False)
    out = "".join(matcher.feed("a" * 100) for _ in range(500))
    assert matcher.matched is None
    assert len(out) == 50_000 - 1023
