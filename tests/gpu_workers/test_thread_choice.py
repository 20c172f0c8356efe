"""The number of threads follows what steps took, for each size by itself."""

from __future__ import annotations

import pytest

from gpu_workers.device.thread_choice import FIRST_PAUSE, GLANCE, LAST_PAUSE, LEAST, MOST, RUN, WORTH_THREADS, ThreadChoice

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
    assert set(run(choice, LEAST / 2, 5 * LAST_PAUSE, {1: 1.0, 4: 0.1})) == {1}
    assert set(run(choice, MOST * 2, 5 * LAST_PAUSE, {1: 0.1, 4: 1.0})) == {4}
    assert set(run(ThreadChoice(1), LARGE, 5 * LAST_PAUSE, {1: 1.0})) == {1}


def test_without_learning_the_first_guess_stands() -> None:
    choice = ThreadChoice(4, learns=False)
    assert set(run(choice, SMALL, 5 * LAST_PAUSE, {1: 1.0, 4: 0.1})) == {1}
    assert set(run(choice, LARGE, 5 * LAST_PAUSE, {1: 0.1, 4: 1.0})) == {4}


@pytest.mark.parametrize(("alone", "better", "worse"), [(LARGE, 1, 4), (SMALL, 4, 1)])
def test_what_takes_less_time_is_kept(alone: float, better: int, worse: int) -> None:
    choice = ThreadChoice(4)
    seconds = {better: alone, worse: 2 * alone}
    run(choice, alone, 8 * LAST_PAUSE, seconds)
    assert run(choice, alone, 3 * (LAST_PAUSE + GLANCE), seconds).count(worse) == 3 * GLANCE, "a glance shows that it is hopeless"
    # The machine becomes another: so does the choice, in one run.
    seconds = {better: 2 * alone, worse: alone}
    run(choice, alone, LAST_PAUSE + RUN, seconds)
    assert set(run(choice, alone, FIRST_PAUSE, seconds)) == {worse}


def test_all_threads_must_gain_more_than_a_little_and_sizes_are_apart() -> None:
    choice = ThreadChoice(4)
    assert run(choice, LARGE, FIRST_PAUSE + RUN + 2 * FIRST_PAUSE + RUN, {1: 1.3, 4: 1.0}).count(1) == 2 * RUN
    run(choice, LARGE, LAST_PAUSE + RUN, {1: 1.1, 4: 1.0})
    assert choice.choose(LARGE) == 1
    assert choice.choose(LARGE * 2) == 4


def test_a_try_is_judged_by_its_later_steps() -> None:
    """Beside processes that a step with all threads starves, the first steps with one thread are no faster: they catch up."""
    choice = ThreadChoice(2)
    waiting, chosen = 0.0, []
    for _ in range(2 * FIRST_PAUSE + RUN):
        chosen.append(choice.choose(LARGE))
        choice.took(LARGE * (1.2 if chosen[-1] == 2 else 0.9) + waiting)
        waiting = LARGE * 0.3 if chosen[-1] == 2 else waiting / 3
    assert chosen[:FIRST_PAUSE] == [2] * FIRST_PAUSE and set(chosen[FIRST_PAUSE:]) == {1}
