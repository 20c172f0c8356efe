"""Clients that leave, clients that do not read, keys, several frontends, draining, and a scheduler that dies."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipc.arena import Stat
from ipc.config import Config, SchedulerConfig, ServerConfig
from ipc.messages import Drain, Drained, Peers, Ready
from tests.api.server import ApiServer, api_server, events, http, read_answer, until
from tests.fakes import FakeEngine, start_scheduler
from tests.paged_toy import hashed

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "one two three", "max_tokens": 1900, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow() -> Iterator[ApiServer]:
    """Two frontends; a step takes 5 ms, and two requests run at a time."""
    config = Config(scheduler=SchedulerConfig(max_num_seqs=2, max_queued_requests=4), server=ServerConfig())
    with api_server(config, frontends=2, delay=0.005) as running:
        yield running


@contextlib.contextmanager
def ended_early(server: ApiServer) -> Iterator[None]:
    """What was begun in the block, each of LONG, has ended some time after it, and none of it with its last token."""
    server.at_rest()
    before = server.stat(Stat.GENERATION_TOKENS)
    yield
    server.at_rest()
    assert server.stat(Stat.GENERATION_TOKENS) < before + int(LONG["max_tokens"])


def begin(server: ApiServer, body: dict[str, object], receive_buffer: int = 0) -> socket.socket:
    connection = server.connect(receive_buffer)
    connection.sendall(http("POST", COMPLETIONS, body))
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(slow: ApiServer, stream: bool) -> None:
    with ended_early(slow), begin(slow, {**LONG, "stream": stream}):
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 1)
        time.sleep(0.05)


TALK = [{"role": "user", "content": "word " * 600}]


@pytest.mark.parametrize(
    "path, body, text",
    [
        (COMPLETIONS, LONG, rb'"text":"[^"]'),
        ("/v1/chat/completions", {"messages": TALK, "max_tokens": 1000}, rb'"content":"[^"]'),
        ("/v1/messages", {"messages": TALK, "max_tokens": 1000}, rb'"text_delta","text":"[^"]'),
        ("/v1/responses", {"input": TALK, "max_output_tokens": 1000}, rb'"delta":"[^"]'),
        ("/api/chat", {"model": "demo", "messages": TALK}, rb'"content":"[^"]'),
    ],
    ids=["completions", "chat", "messages", "responses", "ollama"],
)
def test_text_comes_while_the_request_runs(slow: ApiServer, path: str, body: dict[str, Any], text: bytes) -> None:
    slow.at_rest()
    with slow.connect() as connection:
        connection.sendall(http("POST", path, {**body, "stream": True}))
        data = b""
        while not re.search(text, data):
            part = connection.recv(65536)
            assert part, data
            data += part
        assert slow.stat(Stat.NUM_RUNNING) == 1


def test_a_client_that_leaves_the_queue(slow: ApiServer) -> None:
    with ended_early(slow):
        running = [begin(slow, {**LONG, "stream": True}) for _ in range(2)]
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 2)
        for stream in (True, False):
            with begin(slow, {**LONG, "stream": stream}):
                until(lambda: slow.stat(Stat.NUM_WAITING) == 1)
            until(lambda: slow.stat(Stat.NUM_WAITING) == 0)
        for connection in running:
            connection.close()


def test_a_full_queue_answers_429(slow: ApiServer) -> None:
    with ended_early(slow):
        busy = [begin(slow, {**LONG, "stream": True}) for _ in range(2)]
        until(lambda: slow.stat(Stat.NUM_RUNNING) == 2)
        waiting = [begin(slow, LONG) for _ in range(4)]
        until(lambda: slow.stat(Stat.NUM_WAITING) == 4)
        for stream in (True, False):
            status, headers, raw = slow.request("POST", COMPLETIONS, {**LONG, "stream": stream})
            assert status == 429
            assert 1 <= int(headers["retry-after"]) <= 60
            assert json.loads(raw)["error"]["type"] == "rate_limit_error"
        for connection in (*busy, *waiting):
            connection.close()
    # More at once than may ever wait, with room for some of them: none is kept.
    with ended_early(slow):
        assert slow.request("POST", COMPLETIONS, {**LONG, "n": 20})[0] == 429


def test_both_frontends_serve_and_one_scrape_shows_both(slow: ApiServer) -> None:
    slow.at_rest()
    statuses = [slow.engine.arena.status("frontend", index) for index in range(2)]
    before = [int(status[Stat.STEPS]) for status in statuses]
    sent = 0
    while not all(int(status[Stat.STEPS]) > count for status, count in zip(statuses, before)):
        assert slow.post(COMPLETIONS, {"prompt": "one", "max_tokens": 20})[0] == 200
        sent += 1
        assert sent < 500, "the kernel never gave a connection to one of the frontends"
    counts = set()
    for _ in range(8):
        counts.add(scrape(slow)['quire:request_success_total{finished_reason="stop"}'])
    assert counts == {scrape(slow)['quire:request_success_total{finished_reason="stop"}']}
    assert counts.pop() >= sent


def scrape(server: ApiServer) -> dict[str, float]:
    """Samples by name and labels other than the model's; parsed by Prometheus's own client."""
    status, headers, raw = server.request("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(raw.decode()):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "demo"
            sample.labels.pop("engine")
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[sample.name + ("{" + labels + "}" if labels else "")] = sample.value
    return found


def test_metrics_count_what_happened(slow: ApiServer) -> None:
    slow.at_rest()
    before = scrape(slow)
    slow.post(COMPLETIONS, {"prompt": "one two three", "max_tokens": 3, "n": 2})
    slow.at_rest()
    after = scrape(slow)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown('quire:request_success_total{finished_reason="length"}') == 2
    assert grown("quire:time_to_first_token_seconds_count") == 2
    assert grown("quire:inter_token_latency_seconds_count") == 4
    assert grown("quire:inter_token_latency_seconds_sum") > 0
    assert grown("quire:request_generation_tokens_sum") == 6
    assert grown('quire:request_generation_tokens_bucket{le="5.0"}') == 2
    assert grown('quire:request_generation_tokens_bucket{le="2.0"}') == 0
    assert grown("quire:e2e_request_latency_seconds_count") == 2
    assert grown("quire:request_queue_time_seconds_count") == 2
    assert grown("quire:generation_tokens_total") == 6
    assert after["vllm:num_requests_running"] == 0 == after["vllm:num_requests_waiting"]
    assert 0 <= after["vllm:kv_cache_usage_perc"] <= 1
    info = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",num_gpu_blocks="256"}'
    assert after[info] == 1


def test_a_slow_reader_gets_everything() -> None:
    """Its text gathers while it does not read; nobody else waits for it."""
    with api_server(Config(), num_blocks=2000) as server:
        body = {**LONG, "stream": True, "n": 12}
        connection = begin(server, body, receive_buffer=4096)
        time.sleep(0.3)
        assert server.post(COMPLETIONS, {"prompt": "one", "max_tokens": 20})[0] == 200
        server.at_rest()
        with connection:
            status, _, raw = read_answer(connection)
        found = events(raw)
        assert status == 200 and found[-1] == "[DONE]"
        # 12 x 1900 frames of 200 bytes do not fit into the kernel's buffers and the transport, so text was joined.
        assert len(found) < 12 * 1900
        texts = [""] * 12
        for each in found[:-1]:
            texts[each["choices"][0]["index"]] += each["choices"][0]["text"]
        whole = server.post(COMPLETIONS, LONG)[1]["choices"][0]["text"]
        assert texts == [whole] * 12


def test_a_client_that_never_reads_is_cut_off() -> None:
    with api_server(Config()) as server:
        before = scrape(server)["quire:slow_readers_total"]
        connection = begin(server, {**LONG, "stream": True, "n": 8, "logprobs": 10}, receive_buffer=4096)
        until(lambda: scrape(server)["quire:slow_readers_total"] == before + 1)
        with connection:
            data = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 20):
                    data += part
        assert b"[DONE]" not in data
        server.at_rest()
        assert server.post(COMPLETIONS, {"prompt": "one", "max_tokens": 20})[0] == 200


def test_an_old_client_gets_a_stream_without_chunks(slow: ApiServer) -> None:
    raw = http("POST", COMPLETIONS, {"prompt": "one two", "stream": True, "max_tokens": 20}).replace(b"HTTP/1.1", b"HTTP/1.0")
    status, headers, body = slow.raw(raw)
    assert status == 200 and "transfer-encoding" not in headers
    assert "".join(each["choices"][0]["text"] for each in events(body)[:-1]) == "one two"


def test_too_many_connections() -> None:
    config = Config(server=ServerConfig(max_connections=3))
    with api_server(config) as server:
        held = [server.connect() for _ in range(3)]
        until(lambda: int(server.engine.arena.status("frontend")[Stat.OPEN_CONNECTIONS]) == 3)
        status, headers, raw = server.request("GET", "/health")
        assert status == 503 and headers["retry-after"] and "connections" in json.loads(raw)["error"]["message"]
        for connection in held:
            connection.close()
        until(lambda: int(server.engine.arena.status("frontend")[Stat.OPEN_CONNECTIONS]) == 0)
        assert server.get("/health")[0] == 200


def test_keys() -> None:
    with api_server(Config(server=ServerConfig(api_key=["first-key", "second-key"]))) as server:
        body = {"prompt": "one"}
        assert server.get("/health")[0] == 200
        for path in ("/v1/models", "/metrics", "/version", "/nowhere", "/v1/models/demo"):
            status, headers, raw = server.request("GET", path)
            assert status == 401 and json.loads(raw)["error"]["code"] == "invalid_api_key"
            assert headers["www-authenticate"] == "Bearer"
        for path in (COMPLETIONS, "/tokenize", "/detokenize", "/v1/chat/completions"):
            assert server.request("POST", path, body)[0] == 401
        bad = [
            "Bearer wrong",
            "Bearer ",
            "Bearer first-key2",
            "Bearer first-ke",
            "Basic first-key",
            "first-key",
            "Bearer first-key second-key",
        ]
        for value in bad:
            assert server.request("POST", COMPLETIONS, body, {"Authorization": value})[0] == 401
        assert server.request("POST", COMPLETIONS, body, {"x-api-key": "wrong"})[0] == 401
        for headers in ({"Authorization": "Bearer first-key"}, {"Authorization": "bearer second-key"}, {"x-api-key": "second-key"}):
            assert server.request("POST", COMPLETIONS, body, headers)[0] == 200


def test_draining() -> None:
    """What runs finishes, new requests are sent away, health tells the balancer."""
    with api_server(delay=0.005) as server:
        body = {**LONG, "max_tokens": 150, "stream": True}
        with begin(server, body) as connection:
            until(lambda: server.stat(Stat.NUM_RUNNING) == 1)
            server.tell(Drain(time.monotonic_ns() + 100 * 10**9))
            until(lambda: server.get("/health")[1]["status"] == "draining")
            assert server.request("GET", "/health")[0] == 503
            status, headers, _ = server.request("POST", COMPLETIONS, {"prompt": "one"})
            assert status == 503 and int(headers["retry-after"]) > 0
            found = events(read_answer(connection)[2])
        assert found[-1] == "[DONE]" and found[-2]["choices"][0]["finish_reason"] == "length"
        server.engine.supervisor.wait_for(Drained, server.specs[0].identity)


def test_the_deadline_of_a_drain_ends_streams_with_a_word() -> None:
    with api_server(delay=0.005) as server, begin(server, {**LONG, "stream": True}) as connection:
        until(lambda: server.stat(Stat.NUM_RUNNING) == 1)
        server.tell(Drain(time.monotonic_ns() + 10**9))
        found = events(read_answer(connection)[2])
        assert found[-1] == "[DONE]"
        assert "shutting down" in found[-2]["error"]["message"]
        server.engine.supervisor.wait_for(Drained, server.specs[0].identity)


@contextlib.contextmanager
def new_scheduler(engine: FakeEngine, epoch: int) -> Iterator[None]:
    """Kill the scheduler and start its successor, with a new worker, for the time of the block."""
    engine.scheduler.kill()
    engine.scheduler.wait()
    engine.worker.close()
    engine.spec = msgspec.structs.replace(engine.spec, epoch=epoch, scheduler_epoch=epoch)
    successor = start_scheduler(engine.spec)
    try:
        worker = engine.start_worker()
        engine.supervisor.wait_for(Ready, engine.spec.identity)
        yield
        worker.close()
    finally:
        successor.kill()
        successor.wait()


def test_a_scheduler_that_dies_is_not_noticed_by_streams() -> None:
    """The frontend submits again to its successor; each token comes once, and they are the tokens of an undisturbed run."""
    with api_server(delay=0.003, next_token=hashed(4000)) as server:
        params = {"prompt": "one two three", "max_tokens": 300, "ignore_eos": True, "return_token_ids": True, "seed": 5}
        undisturbed = server.post(COMPLETIONS, params)[1]["choices"][0]
        with begin(server, {**params, "stream": True}) as streaming, begin(server, params) as whole:
            until(lambda: server.stat(Stat.NUM_RUNNING) == 2)
            time.sleep(0.2)
            with new_scheduler(server.engine, 500):
                server.tell(Peers(500))
                found = events(read_answer(streaming)[2])
                choice = json.loads(read_answer(whole)[2])["choices"][0]
                assert server.get("/health")[1]["status"] == "ok"
        assert "".join(each["choices"][0]["text"] for each in found[:-1]) == undisturbed["text"]
        assert found[-2]["choices"][0]["finish_reason"] == "length"
        assert choice["token_ids"] == undisturbed["token_ids"]
        assert choice["text"] == undisturbed["text"]


def test_a_frontend_starts_before_the_engine_and_says_so() -> None:
    with api_server() as server:
        record = server.engine.arena.status("scheduler")
        state = int(record[Stat.STATE])
        record[Stat.STATE] = 1
        status, headers, raw = server.request("POST", COMPLETIONS, {"prompt": "one"})
        assert status == 503 and "loading" in json.loads(raw)["error"]["message"] and int(headers["retry-after"]) > 0
        assert server.get("/health")[0] == 503
        # Peers' clients wait for this path's first 200.
        assert server.get("/v1/models")[0] == 503
        record[Stat.STATE] = state
        assert server.get("/v1/models")[0] == 200
        assert server.post(COMPLETIONS, {"prompt": "one"})[0] == 200
