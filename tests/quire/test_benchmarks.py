"""The arithmetic and the inputs of `quire bench`."""

from __future__ import annotations

import asyncio
import json
import platform
from pathlib import Path

import pytest

from ipc.errors import ConfigError
from quire.benchmarks import client, machine, report, workload
from quire.benchmarks.client import LoadClient
from quire.benchmarks.report import RequestTiming, percentile, summarize
from quire.benchmarks.workload import BenchRequest


def test_percentiles_interpolate() -> None:
    assert percentile([], 50) == 0.0
    assert percentile([4.0], 99) == 4.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([0.0, 10.0], 90) == pytest.approx(9.0)


def test_a_summary_counts_good_and_failed_requests_apart() -> None:
    timings = [
        RequestTiming(ttft=0.1, e2e=1.1, tokens=11, prompt_tokens=5, chunk_gaps=[0.1] * 10),
        RequestTiming(ttft=0.3, e2e=0.3, tokens=1, prompt_tokens=5, chunk_gaps=[]),
        RequestTiming(0, 0, 0, 0, [], "503: no"),
    ]
    summary = summarize(timings, wall_s=2.0)
    assert (summary["completed"], summary["failed"], summary["first_error"]) == (2, 1, "503: no")
    assert (summary["output_tokens"], summary["output_tokens_per_s"], summary["requests_per_s"]) == (12, 6.0, 1.0)
    assert summary["ttft_ms"]["p50"] == pytest.approx(200)
    assert summary["inter_token_ms"]["p99"] == pytest.approx(100), "a request of one token has no inter-token time"


def test_a_cpu_has_a_name_on_any_machine(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nmodel name\t: Some CPU: 9\n\nprocessor\t: 1\nmodel name\t: Another\n")
    arm.write_text("processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nprocessor\t: 1\nCPU part\t: 0xd40\n")
    assert machine.cpu_name(str(x86)) == "Some CPU: 9"
    assert machine.cpu_name(str(arm)) == f"{platform.machine()} 0x41 0xd0c"
    assert machine.cpu_name(str(tmp_path / "none")) == platform.machine()


def test_random_workloads_repeat_and_share_what_they_should() -> None:
    first, again = (workload.random_tokens(5, 20, 7, 1000, seed=3, shared_prefix=8) for _ in range(2))
    assert first == again != workload.random_tokens(5, 20, 7, 1000, seed=4, shared_prefix=8)
    prompts = [request.prompt for request in first.requests]
    assert {len(prompt) for prompt in prompts} == {20}
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 5
    with pytest.raises(ConfigError, match="30 shared"):
        workload.random_tokens(5, 20, 7, 1000, shared_prefix=30)


def test_workload_files(tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    file.write_text(json.dumps({"name": "x", "requests": [{"prompt": [1, 2], "out": 3}, {"prompt": "text", "out": 4}]}))
    loaded = workload.from_file(str(file))
    assert [(request.prompt, request.output_len) for request in loaded.requests] == [([1, 2], 3), ("text", 4)]
    assert len(workload.from_file(str(file), 1).requests) == 1
    for content in ("[]", "{", '{"requests": [{"prompt": 3, "out": 1}]}', '{"requests": [{"out": 1}]}', '{"requests": []}'):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"w\.json"):
            workload.from_file(str(file))
    with pytest.raises(ConfigError, match="cannot read"):
        workload.from_file(str(tmp_path / "none.json"))


def test_runs_are_added_to_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "r.json")
    report.write(path, {"kind": "a"})
    report.write(path, {"kind": "b"})
    assert [run["kind"] for run in json.loads(Path(path).read_text())["runs"]] == ["a", "b"]


def test_commands_name_no_folder() -> None:
    assert report.command("quire", ["bench", "--model", "/a/b/model/", "--n", "3"]) == "quire bench --model model --n 3"


@pytest.mark.parametrize("answers, good", [(1, 2), (0, 0)], ids=["kept alive for one request", "never answering"])
def test_a_connection_closed_between_two_requests_is_no_failure_of_the_second(answers: int, good: int) -> None:
    """The server answers so many requests of each connection and closes it when it reads one more."""
    event = b'data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(event), event)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for number in range(answers + 1):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            if number < answers:
                writer.write(answer)
        writer.close()

    async def test() -> list[RequestTiming]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, LoadClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m", {}) as load:
            return [await load.one(BenchRequest([1], 1)) for _ in range(2)]

    timings = asyncio.run(test())
    assert [timing.tokens for timing in timings] == [1] * good + [0] * (2 - good)
    assert all("ServerDisconnectedError" in timing.error for timing in timings[good:])
    assert connections == (2 if good else 2 * (1 + client.RETRIES))
