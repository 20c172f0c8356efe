"""`python -m bench.engine_alone` and `python -m bench.startup`: what they report is what happened."""

from __future__ import annotations

import numpy as np
import pytest

from bench import engine_alone, startup, step_path
from bench.instant_worker import WIDTH, words
from bench.stream_load import Client, Order, arrivals
from frontend.tokenizer import Tokenizer
from tests.api.server import DEMO


def test_every_stream_gets_its_tokens_on_connections_that_serve_twice() -> None:
    result = engine_alone.measure(streams=12, frontends=2, tokens=8, rounds=2, pace=0.01)
    assert result["tokens"] == 12 * 8 * 2 and result["wrong_lengths"] == 0
    assert sum(result["connections"]) == 12 and len(result["connections"]) == 2
    assert 0 < result["sampled_to_client_ms"]["p50"] <= result["sampled_to_client_ms"]["p99"]
    assert result["tokens_per_s"] > 0


def test_a_client_that_rests_gets_the_same_only_later() -> None:
    rest = 0.2
    result = engine_alone.measure(streams=4, frontends=1, tokens=40, rounds=1, pace=0.01, rest=rest)
    assert result["tokens"] == 4 * 40 and result["wrong_lengths"] == 0
    # Tokens come each 10 ms and are read each 200: half of them wait for more than a quarter of that, whatever the machine does.
    assert result["sampled_to_client_ms"]["p50"] > 1e3 * rest / 4


def test_words_can_be_told_apart_when_they_come_joined() -> None:
    tokenizer = Tokenizer.load(str(DEMO))
    texts = [tokenizer.decode([token]) for token in words(tokenizer).tolist()]
    assert len(set(texts)) == len(texts) == 256 and {len(text) for text in texts} == {WIDTH}
    client = Client.__new__(Client)
    joined = (texts[3] + texts[4]).encode()
    client.parts = [(70, b'data: {"text":"%b"}' % texts[2].encode()), (90, b'data: {"text":"%b"}' % joined)]
    assert arrivals([client], {text.encode(): place for place, text in enumerate(texts)}) == ([2, 3, 4], [70, 90, 90], [3])
    assert set(Order.__struct_fields__) >= {"port", "words"}


def test_a_delay_is_counted_from_the_latest_step_of_that_word() -> None:
    class Worker:
        sampled = np.arange(0, 5000, 10)  # step s at 10 s
        steps = 400

    found = engine_alone._delays(Worker, np.array([[0, 1, 255], [2565, 2575, 2565]]), 256)  # type: ignore[arg-type]
    # Word 0 at 2565 is of step 256 (2560), word 1 at 2575 of step 257 (2570), word 255 at 2565 of step 255 (2550).
    assert (found * 1e6).tolist() == [5.0, 5.0, 15.0]


def test_each_stage_of_a_step_is_stamped_in_order() -> None:
    result = step_path.measure(rows=4, steps=40, pace=0.005, rest=0.0)
    stages = result["stages_us"]
    assert set(stages) == {*step_path.LINES, "sampled to client, p50", "sampled to client, p99"}
    assert all(value > 0 for name, value in stages.items() if not name.startswith("tokens:")), result
    assert stages["apply"] < stages[step_path.MIDDLE] and stages["apply"] < stages["sampled to client, p50"]


def test_the_steps_of_a_real_worker_are_stamped_too() -> None:
    stages = step_path.measure_model("", 2, 60, [])["stages_us"]
    assert set(stages) == set(step_path.LINES) and stages["apply"] > 0 and stages[step_path.MIDDLE] > stages["apply"]


@pytest.mark.slow
def test_a_start_is_timed_to_its_first_token() -> None:
    result = startup.measure("", [])
    assert 0 < result["ready_s"] < result["first_token_s"] and len(result["cpu_s"]) == 4
    assert all(seconds > 0 for seconds in result["cpu_s"].values()) and result["memory_mib"] > 50
