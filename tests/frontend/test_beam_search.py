"""The search by itself, over a table of probabilities small enough to search exhaustively."""

from __future__ import annotations

import itertools
import math

import pytest

from frontend.beam_search import Beam, BeamSearch, BeamText, Wishes
from frontend.stop_strings import StopMatcher
from ipc.messages import FinishReason

VOCAB = 5
END = 4
NO_STOP: frozenset[int] = frozenset()


def logprob_of(ids: tuple[int, ...], token: int) -> float:
    """Of `token` after `ids`: any fixed distribution that depends on both."""
    weights = [math.sin(1 + 7 * each + 3 * sum((at + 2) * other for at, other in enumerate(ids))) + 1.1 for each in range(VOCAB)]
    return math.log(weights[token] / sum(weights))


def rows(search: BeamSearch) -> list[tuple[float, int, list[int], list[float]]]:
    found = []
    for beam in search.running:
        values = sorted(((logprob_of(tuple(beam.ids), token), token) for token in range(VOCAB)), reverse=True)
        found.append((values[0][0], 1, [token for _, token in values], [value for value, _ in values]))
    return found


class Letters:
    """A detokenizer: token 0 is an a, 1 a b, and so on."""

    pending = False

    def feed(self, token: int) -> str:
        return chr(ord("a") + token)

    def finish(self) -> str:
        return ""

    def copy(self) -> Letters:
        return self


def searched(wishes: Wishes, stop: frozenset[int], max_tokens: int, min_tokens: int = 0, text: BeamText | None = None) -> list[Beam]:
    search = BeamSearch(wishes, stop, max_tokens, min_tokens, text)
    while search.running:
        assert len(search.running) <= wishes.width
        search.step(rows(search))
    return search.results


def total(ids: tuple[int, ...]) -> float:
    return sum(logprob_of(ids[:at], token) for at, token in enumerate(ids))


def test_a_beam_as_wide_as_the_tree_finds_the_best() -> None:
    best = sorted(itertools.product(range(VOCAB), repeat=3), key=lambda ids: -total(ids))
    results = searched(Wishes(width=VOCAB**2), NO_STOP, 3)
    assert [tuple(beam.ids) for beam in results[:10]] == best[:10]
    assert [beam.score for beam in results[:10]] == pytest.approx([total(ids) / 3 for ids in best[:10]])
    assert all(beam.reason is FinishReason.LENGTH for beam in results)


def test_results_end_at_a_stop_token_and_nowhere_else() -> None:
    results = searched(Wishes(width=4, early_stopping="never"), frozenset({END}), 6)
    assert len(results) == 4
    assert any(beam.reason is FinishReason.STOP for beam in results)
    for beam in results:
        assert END not in beam.ids[:-1]
        assert (beam.ids[-1] == END) == (beam.reason is FinishReason.STOP)
        assert beam.logprob == pytest.approx(total(tuple(beam.ids)))
        assert beam.score == pytest.approx(beam.logprob / len(beam.ids))
    assert [beam.score for beam in results] == sorted((beam.score for beam in results), reverse=True)


def test_stopping_early_takes_the_first_that_end() -> None:
    wide = searched(Wishes(width=3, early_stopping=True, length_penalty=3.0), frozenset({END}), 20)
    patient = searched(Wishes(width=3, early_stopping="never", length_penalty=3.0), frozenset({END}), 20)
    assert max(len(beam.ids) for beam in wide) < max(len(beam.ids) for beam in patient)
    assert patient[0].score >= wide[0].score


def test_no_end_before_min_tokens() -> None:
    results = searched(Wishes(width=3), frozenset({END}), 6, min_tokens=4)
    assert all(END not in beam.ids[:3] for beam in results)


def test_what_the_model_said_goes_with_each_token() -> None:
    for beam in searched(Wishes(width=3), NO_STOP, 4):
        for at, (token, row) in enumerate(zip(beam.ids, beam.rows)):
            logprob, rank, top_ids, top_logprobs = row
            assert logprob == pytest.approx(logprob_of(tuple(beam.ids[:at]), token))
            assert top_ids[rank - 1] == token and top_logprobs[rank - 1] == logprob


@pytest.mark.parametrize("min_tokens", [0, 2])
def test_stop_strings_end_results_as_stop_tokens_do(min_tokens: int) -> None:
    """Over the whole tree: every sequence up to its first stop string, by score."""
    length, stops = 4, ["ab", "dcb"]

    def ends(ids: tuple[int, ...]) -> bool:
        # A string counts where all of it comes after the first min_tokens tokens.
        text = "".join(map(Letters().feed, ids[min_tokens:]))
        return any(text.endswith(stop) for stop in stops)

    whole = set()
    for ids in itertools.product(range(VOCAB), repeat=length):
        end = next((at for at in range(1, length + 1) if ends(ids[:at])), length)
        whole.add(ids[:end])
    best = sorted(whole, key=lambda ids: -total(ids) / len(ids))
    wishes = Wishes(width=VOCAB ** (length - 1), early_stopping="never")
    results = searched(wishes, NO_STOP, length, min_tokens, BeamText(Letters(), StopMatcher(stops, False)))
    assert [tuple(beam.ids) for beam in results[:40]] == best[:40]
    for beam in results:
        assert beam.stop_token == -1
        assert (beam.reason is FinishReason.STOP) == ends(tuple(beam.ids))
    assert len({beam.reason for beam in results}) == 2


def test_a_complete_beam_is_a_result_as_it_stands() -> None:
    """Two beams, of which one may not go on; with nothing at all that may follow, there is no result."""
    search = BeamSearch(Wishes(width=2, early_stopping="never"), NO_STOP, 3)
    search.step([(0.0, 1, [1, 2, -1], [-0.5, -1.0, 0.0])])
    assert [beam.ids for beam in search.running] == [[1], [2]]
    search.step([None, (0.0, 1, [3], [-1.0])])
    assert [beam.ids for beam in search.results] == [[1]] and search.results[0].reason is FinishReason.STOP
    search.step([(0.0, 1, [4], [-0.25])])
    assert [(beam.ids, beam.score) for beam in search.results] == [([1], -0.5), ([2, 3, 4], pytest.approx(-0.75))]
    nothing = BeamSearch(Wishes(width=2), NO_STOP, 3)
    nothing.step([(0.0, 1, [-1, -1], [0.0, 0.0])])
    assert not nothing.running and not nothing.results
    empty = BeamSearch(Wishes(width=2), NO_STOP, 3)
    empty.step([None])
    assert [beam.ids for beam in empty.results] == [[]]
