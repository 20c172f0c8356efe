"""Everything in bench/malformed.py against a real server: refused or closed, nothing shown, and the engine never hears of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench import malformed
from bench.malformed import Case, Outcome
from tests.processes.server import Server, eventually

LIMIT = 2.0  # seconds of the three timeouts
# Loose, because the machine may be busy: `python -m bench.malformed` prints the times.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    timeouts = [f"--{name}-timeout={LIMIT}" for name in ("header", "body", "keepalive")]
    with Server(*timeouts, "--max-body-bytes", "100000", "--kv-cache-memory", "32M", runtime=tmp_path_factory.mktemp("r")) as running:
        yield running.ready().with_kernels()


def run(server: Server, case: Case) -> Outcome:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return malformed.run(host, int(port), case)


def engine(server: Server) -> dict[str, str]:
    """What the engine has done so far, and what it holds."""
    names = "generation_tokens_total|prompt_tokens_total|engine_steps_total|prefix_cache_queries_total|num_preemptions_total"
    gauges = "num_requests_running|num_requests_waiting|kv_cache_usage_perc"
    with server.open("/metrics") as response:
        return dict(re.findall(rf"(?m)^(quire:(?:{names}|{gauges}))(?:{{[^}}]*}})? (\S+)$", response.read().decode()))


def generate(server: Server) -> list[int]:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "return_token_ids": True}
    return list(server.post("/v1/completions", body)["choices"][0]["token_ids"])


def test_malformed_requests_leave_no_trace(server: Server) -> None:
    cases = malformed.cases()
    assert len(cases) >= 500 and min(Counter(case.kind for case in cases).values()) >= 1
    baseline = generate(server)
    eventually(lambda: engine(server)["quire:num_requests_running"] == "0")
    before = engine(server)
    assert float(before["quire:generation_tokens_total"]) >= 24
    outcomes = [run(server, case) for case in cases if not case.slow]
    with ThreadPoolExecutor(32) as pool:
        outcomes += pool.map(lambda case: run(server, case), [case for case in cases if case.slow])
    wrong = [(malformed.wrong(each), each.case.kind, each.case.data[:200]) for each in outcomes if malformed.wrong(each)]
    assert wrong == []
    late = [(each.seconds, each.case.kind, each.case.data[:200]) for each in outcomes if each.seconds > PATIENCE]
    assert late == []
    # Those that wait get what docs/serving.md says: silence and an end, or 408 when the head was complete.
    for each in outcomes:
        if each.case.kind in ("stops in the body", "stops in a chunk"):
            assert each.status == 408 and each.seconds > LIMIT / 2
        elif each.case.kind == "stops in the head":
            assert each.status == 0 and each.seconds > LIMIT / 2
    eventually(lambda: engine(server) == before)
    assert generate(server) == baseline


def test_the_judge_can_say_no() -> None:
    case = Case("x", b"")
    for status, text in ((200, ""), (500, ""), (-1, ""), (400, "at /usr/lib/x"), (404, "object at 0x7f00deadbeef"), (0, "Traceback")):
        assert malformed.wrong(Outcome(case, status, 0.0, text))
    assert not malformed.wrong(Outcome(case, 400, 0.0, "HTTP/1.1 400 Bad Request\r\n\r\n" + json.dumps({"error": {"message": "no"}})))


def test_the_same_requests_well_formed(server: Server) -> None:
    """The frames and bodies that the cases distort do work."""
    for data in (
        malformed.post("/tokenize", b'{"prompt": "x"}'),
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'f;a=b\r\n{"prompt": "x"}\r\n0\r\nX: y\r\n\r\n',
    ):
        outcome = run(server, Case("well-formed", data))
        assert outcome.status == 200 and '"count":' in outcome.text
