"""The number of threads follows what steps took, for each size by itself."""

from __future__ import annotations

import pytest

from gpu_workers.device.thread_choice import LEAST, MOST, REMEMBER, TRY, WORTH_THREADS, ThreadChoice

SMALL, LARGE = WORTH_THREADS / 2, WORTH_THREADS * 4


def run(choice: ThreadChoice, alone: float, steps: int, seconds: dict[int, float]) -> list[int]:
    """Steps that take so long by their number of threads; what was chosen."""
    chosen = []
    for _ in range(steps):
        chosen.append(choice.choose(alone))
        choice.took(seconds[chosen[-1]])
    return chosen


def test_first_guesses_and_what_is_never_tried() -> None:
    choice = ThreadChoice(4)
    assert choice.choose(SMALL) == 1 and choice.choose(LARGE) == 4
    assert set(run(choice, LEAST / 2, 5 * TRY, {1: 1.0, 4: 0.1})) == {1}
    assert set(run(choice, MOST * 2, 5 * TRY, {1: 0.1, 4: 1.0})) == {4}
    assert set(run(ThreadChoice(1), LARGE, 5 * TRY, {1: 1.0})) == {1}


def test_without_learning_the_first_guess_stands() -> None:
    choice = ThreadChoice(4, learns=False)
    assert set(run(choice, SMALL, 5 * TRY, {1: 1.0, 4: 0.1})) == {1}
    assert set(run(choice, LARGE, 5 * TRY, {1: 0.1, 4: 1.0})) == {4}


@pytest.mark.parametrize(("alone", "better", "worse"), [(LARGE, 1, 4), (SMALL, 4, 1)])
def test_what_takes_less_time_is_kept(alone: float, better: int, worse: int) -> None:
    choice = ThreadChoice(4)
    seconds = {better: alone, worse: 2 * alone}
    run(choice, alone, 3 * TRY, seconds)
    after = run(choice, alone, 3 * TRY, seconds)
    assert after.count(worse) == 3 and after.count(better) == 3 * TRY - 3
    # The machine becomes another: so does the choice, once what is remembered is of the new one.
    seconds = {better: 2 * alone, worse: alone}
    run(choice, alone, (REMEMBER + 1) * TRY, seconds)
    assert run(choice, alone, TRY - 1, seconds).count(worse) >= TRY - 2


def test_a_small_gain_changes_nothing_and_sizes_are_apart() -> None:
    choice = ThreadChoice(4)
    assert run(choice, LARGE, 20 * TRY, {1: 0.97, 4: 1.0}).count(1) == 20
    run(choice, LARGE, 5 * TRY, {1: 0.5, 4: 1.0})
    run(choice, LARGE, 5 * TRY, {1: 0.5, 4: 1.0})
    assert choice.choose(LARGE * 2.5) == 4
