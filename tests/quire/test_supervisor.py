"""The supervisor with scripted children: real processes and messages, no model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ipc import config
from ipc.arena import I64, Stat
from ipc.config import ChildSpec, ModelInfo
from ipc.errors import EngineDeadError
from quire import child_process, early_workers
from quire.child_process import Patience
from quire.early_workers import EarlyWorker, EarlyWorkers
from quire.supervisor import EngineFailedError, Supervisor

SCRIPT = str(Path(__file__).with_name("scripted_child.py"))
MODEL = ModelInfo(path="-", tokenizer_path="-", name="m", architecture="A", vocab_size=100, max_model_len=128, eos_token_ids=[])


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "COMMAND", [SCRIPT])
    monkeypatch.setattr(early_workers, "COMMAND", [SCRIPT])


@asynccontextmanager
async def engine(frontends: int = 1, workers: int = 1, early: EarlyWorkers | None = None) -> AsyncIterator[Supervisor]:
    """A supervisor that is not started; all its processes and its directory are gone afterwards."""
    flags = {"max_num_seqs": 8, "frontends": frontends, "tensor_parallel_size": workers, "log_level": "error"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        supervisor = Supervisor(config.load(flags, {}), MODEL, "cpu", listener, early=early)
        try:
            yield supervisor
        finally:
            pids = supervisor.pids.values()
            await supervisor.stop(1.0)
            assert not os.path.exists(supervisor.runtime_dir)
            assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.02)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_start_and_stop() -> None:
    async def test() -> None:
        async with engine(frontends=2, workers=2) as supervisor:
            await supervisor.start()
            assert set(supervisor.pids) == {"worker 0", "worker 1", "scheduler", "frontend 0", "frontend 1"}
            assert os.stat(supervisor.runtime_dir).st_mode & 0o777 == 0o700
            children = supervisor.children
            await supervisor.stop(60)
            assert [child.process.returncode for child in children] == [0] * 5, "one was killed"

    run(test)


def test_a_worker_that_was_started_early_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_WORKER", "")

    async def test() -> None:
        with EarlyWorkers(1) as early:
            (pid,) = early.pids
            async with engine(workers=2, early=early) as supervisor:
                await supervisor.start()
                assert supervisor.pids["worker 0"] == pid != supervisor.pids["worker 1"]
                os.kill(pid, 9)
                await eventually(lambda: pid not in supervisor.pids.values() and len(supervisor.pids) == 4)

    run(test)


def test_a_worker_that_ended_before_it_was_wanted_is_told_of() -> None:
    async def test() -> None:
        with EarlyWorkers(1) as early:
            os.kill(early.pids[0], 9)
            async with engine(early=early) as supervisor:
                with pytest.raises(EngineFailedError, match="worker 0 was ended by SIGKILL") as error:
                    await supervisor.start()
                assert not error.value.user_error

    run(test)


def test_workers_that_nobody_wanted_are_ended() -> None:
    with EarlyWorkers(2) as early:
        pids = early.pids
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)


def test_a_fatal_message_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_WORKER", "fatal")

    async def test() -> None:
        async with engine() as supervisor:
            with pytest.raises(EngineFailedError, match=r"^the weights are made of cheese$") as error:
                await supervisor.start()
            assert error.value.user_error

    run(test)


def test_a_crash_during_start_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_SCHEDULER", "crash")

    async def test() -> None:
        async with engine() as supervisor:
            with pytest.raises(EngineFailedError, match="scheduler ended with exit code 3") as error:
                await supervisor.start()
            assert not error.value.user_error

    run(test)


def test_a_dead_worker_renews_its_whole_group_and_the_scheduler_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with engine(workers=2) as supervisor:
            await supervisor.start()
            before = supervisor.pids
            epoch = int(supervisor.arena.status("worker", 0)[Stat.EPOCH])
            os.kill(before["worker 1"], 9)
            await eventually(
                lambda: (
                    int(supervisor.arena.status("worker", 1)[Stat.STATE]) == 2
                    and "worker 1" in supervisor.pids
                    and not {before["worker 0"], before["worker 1"]} & set(supervisor.pids.values())
                )
            )
            after = supervisor.pids
            assert (after["scheduler"], after["frontend 0"]) == (before["scheduler"], before["frontend 0"])
            await eventually(lambda: int(supervisor.arena.status("scheduler")[Stat.STEPS]) == 1000 + epoch)
            first, second = supervisor.arena.status("worker", 0), supervisor.arena.status("worker", 1)
            await eventually(lambda: int(first[Stat.EPOCH]) == int(second[Stat.EPOCH]) > epoch)

    run(test)


def test_a_dead_scheduler_renews_the_workers_and_frontends_learn_its_epoch() -> None:
    async def test() -> None:
        async with engine() as supervisor:
            await supervisor.start()
            before = supervisor.pids
            os.kill(before["scheduler"], 9)
            await eventually(lambda: int(supervisor.arena.status("frontend", 0)[Stat.STEPS]) > 1)
            await eventually(lambda: len(supervisor.pids) == 3 and supervisor.pids["worker 0"] != before["worker 0"])
            assert supervisor.pids["frontend 0"] == before["frontend 0"]
            await eventually(
                lambda: int(supervisor.arena.status("frontend", 0)[Stat.STEPS]) == int(supervisor.arena.status("scheduler")[Stat.EPOCH])
            )

    run(test)


def test_a_dead_frontend_is_renewed_alone() -> None:
    async def test() -> None:
        async with engine(frontends=2) as supervisor:
            await supervisor.start()
            before = supervisor.pids
            epoch = int(supervisor.arena.status("frontend", 0)[Stat.EPOCH])
            os.kill(before["frontend 0"], 9)
            await eventually(lambda: supervisor.pids.get("frontend 0", before["frontend 0"]) != before["frontend 0"])
            assert {name for name in before if before[name] != supervisor.pids[name]} == {"frontend 0"}
            await eventually(lambda: int(supervisor.arena.status("scheduler")[Stat.STEPS]) == epoch)

    run(test)


def test_a_process_that_dies_again_and_again_ends_the_engine() -> None:
    async def test() -> None:
        async with engine() as supervisor:
            await supervisor.start()
            killed: set[int] = set()
            while not supervisor.failed.done():
                pid = supervisor.pids.get("frontend 0")
                if pid is not None and pid not in killed:
                    os.kill(pid, 9)
                    killed.add(pid)
                await asyncio.sleep(0.02)
            with pytest.raises(EngineFailedError, match=r"more than 5 restarts in 60 s.*SIGKILL") as error:
                await supervisor.failed
            assert len(killed) == 6 and not error.value.user_error

    run(test)


def test_a_hung_process_is_killed_and_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with engine() as supervisor:
            await supervisor.start()
            monkeypatch.setitem(child_process.RUNNING, "scheduler", Patience(idle=2.0, busy=4.0))
            hung = supervisor.pids["scheduler"]
            os.kill(hung, signal.SIGSTOP)
            await eventually(lambda: supervisor.pids.get("scheduler", hung) != hung and len(supervisor.pids) == 3)
            assert not alive(hung)

    run(test)


def test_drain_waits_for_the_frontends_and_not_longer_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_FRONTEND", "busy")

    async def test() -> None:
        async with engine() as supervisor:
            await supervisor.start()
            frontend = next(child for child in supervisor.children if child.name == "frontend 0")
            start = time.monotonic()
            await supervisor.drain(0.2)
            assert time.monotonic() - start > 0.1 and not frontend.drained
            await supervisor.drain(100)
            assert frontend.drained

    run(test)


def test_a_child_that_ignores_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_WORKER", "deaf")

    async def test() -> None:
        async with engine() as supervisor:
            await supervisor.start()
            worker, start = supervisor.pids["worker 0"], time.monotonic()
            await supervisor.stop(0.5)
            assert time.monotonic() - start > 0.4
            assert not alive(worker)

    run(test)


def test_systemd_hears_of_readiness_life_and_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")

        heard: list[bytes] = []

        async def test() -> None:
            asyncio.get_running_loop().add_reader(manager, lambda: heard.append(manager.recv(200)))
            async with engine() as supervisor:
                await supervisor.start()
                ready = b"READY=1\nSTATUS=serving m"
                await eventually(lambda: ready in heard and b"WATCHDOG=1" in heard[heard.index(ready) :])
                await supervisor.drain(5)
            asyncio.get_running_loop().remove_reader(manager)

        run(test)
        while not any(b"STOPPING=1" in each for each in heard):
            heard.append(manager.recv(200))


def test_no_process_is_left_when_one_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = child_process.start

    def start(spec: ChildSpec, status: I64, early: EarlyWorker | None) -> child_process.Child:
        if spec.role == "frontend":
            raise EngineDeadError("cannot start a process for the frontend: no more processes")
        started.append(real(spec, status, early))
        return started[-1]

    monkeypatch.setattr(child_process, "start", start)

    async def test() -> None:
        async with engine() as supervisor:
            with pytest.raises(EngineDeadError, match="no more processes"):
                await supervisor.start()
        assert len(started) == 2
        assert not any(alive(child.process.pid) for child in started)

    run(test)


def test_stopping_while_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPT_WORKER", "slow")

    async def test() -> None:
        async with engine() as supervisor:
            starting = asyncio.ensure_future(supervisor.start())
            await asyncio.sleep(0.05)
            starting.cancel()
            await asyncio.wait({starting})

    run(test)
