"""The scheduler as a process: real sockets, real arena, a fake worker, deaths included."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import zmq

from ipc.arena import Stat
from ipc.channels import _ENCODER, _HEADER
from ipc.config import ChildSpec, Config, SchedulerConfig
from ipc.messages import Abort, Drained, FinishReason, PeerGone, Ready, RefuseCode, Refused, SchedulerToFrontend, Submit, Tokens
from ipc.sampling_params import SamplingParams
from tests.api.server import until
from tests.fakes import FakeEngine, fake_engine


class Client:
    """A frontend's socket, blocking: submits and collects."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, spec.identity.encode())
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(spec.address("frontends"))
        self._decoder = msgspec.msgpack.Decoder(SchedulerToFrontend)
        self._sent = 0
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, FinishReason] = {}
        self.refused: dict[int, Refused] = {}

    def send(self, message: msgspec.Struct) -> None:
        self._socket.send_multipart([_HEADER.pack(self.spec.epoch, self._sent), _ENCODER.encode(message)])
        self._sent += 1

    def send_raw(self, data: bytes) -> None:
        self._socket.send_multipart([_HEADER.pack(self.spec.epoch, self._sent), data])
        self._sent += 1

    def submit(self, handle: int, prompt: list[int], **params: object) -> None:
        data = np.array(prompt, np.int32).tobytes()
        self.send(Submit(handle, f"r{handle}", data, SamplingParams(**params), 1, time.monotonic_ns()))  # type: ignore[arg-type]

    def until(self, condition: object, seconds: float = 60.0) -> None:
        """Read messages until condition() holds. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            if not self._socket.poll(max(int((deadline - time.monotonic()) * 1000), 0)):
                raise TimeoutError(f"heard {self.tokens}, {self.reasons}, {self.refused}")
            self._hear(self._decoder.decode(self._socket.recv_multipart()[1]))

    def _hear(self, message: Tokens | Refused) -> None:
        if isinstance(message, Refused):
            self.refused[message.handle] = message
            return
        columns = (np.frombuffer(data, np.int32).tolist() for data in (message.handles, message.index, message.tokens))
        for handle, index, token in zip(*columns):
            known = self.tokens.setdefault(handle, [])
            assert index == len(known), "a gap or a repetition"
            known.append(token)
        for finished in message.finished:
            assert finished.handle not in self.reasons
            self.reasons[finished.handle] = finished.reason

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    with fake_engine() as engine:
        yield engine


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[Client]:
    client = Client(engine.frontend_spec())
    yield client
    client.close()


def stat(engine: FakeEngine, word: Stat) -> int:
    return int(engine.arena.status("scheduler")[word])


def at_rest(engine: FakeEngine) -> None:
    """Wait until its record says that there is nothing to do: then all that was told to frontends is in it."""
    until(lambda: not any(stat(engine, word) for word in (Stat.NUM_RUNNING, Stat.NUM_WAITING, Stat.OLDEST_RUNNABLE_NS)))


def test_echo(client: Client) -> None:
    client.submit(1, [5, 6, 7], max_tokens=10)
    client.submit(2, [8, 9], max_tokens=1)
    client.until(lambda: len(client.reasons) == 2)
    assert client.tokens == {1: [5, 6, 7, 2], 2: [8]}
    assert client.reasons == {1: FinishReason.STOP, 2: FinishReason.LENGTH}


def test_bad_requests_are_refused_and_the_rest_goes_on(engine: FakeEngine, client: Client) -> None:
    at_rest(engine)
    dropped = stat(engine, Stat.DROPPED_FRAMES)
    client.submit(1, [5, 100_000])
    client.submit(2, [])
    client.send_raw(b"\x93\x01nonsense")
    client.submit(3, [5])
    client.until(lambda: 3 in client.reasons and len(client.refused) == 2)
    assert {refused.code for refused in client.refused.values()} == {RefuseCode.INVALID}
    assert "100000" in client.refused[1].message
    until(lambda: stat(engine, Stat.DROPPED_FRAMES) == dropped + 1)


def test_abort(engine: FakeEngine, client: Client) -> None:
    engine.worker.delay = 0.01
    try:
        client.submit(1, [5] * 100, max_tokens=300, ignore_eos=True)
        client.until(lambda: len(client.tokens.get(1, [])) > 3)
        client.send(Abort([1, 77]))
        client.until(lambda: 1 in client.reasons)
    finally:
        engine.worker.delay = 0.0
    assert client.reasons[1] is FinishReason.ABORT
    assert len(client.tokens[1]) < 300


def test_an_idle_scheduler_uses_no_cpu(engine: FakeEngine, client: Client) -> None:
    """What the end of the last request costs may be in the first window; a loop that spins is in each."""
    client.submit(1, [5, 6])
    client.until(lambda: 1 in client.reasons)

    def cpu_ticks() -> int:
        with open(f"/proc/{engine.scheduler.pid}/stat", encoding="ascii") as handle:
            fields = handle.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    shares: list[float] = []
    while len(shares) < 20 and min(shares, default=1.0) > 0.03:
        before = cpu_ticks()
        time.sleep(1.0)
        shares.append((cpu_ticks() - before) / os.sysconf("SC_CLK_TCK"))
    assert min(shares) <= 0.03, shares


def test_status_words(engine: FakeEngine, client: Client) -> None:
    at_rest(engine)
    steps = stat(engine, Stat.STEPS)
    generated = stat(engine, Stat.GENERATION_TOKENS)
    client.submit(1, [5, 6, 7], max_tokens=3)
    client.until(lambda: 1 in client.reasons)
    at_rest(engine)
    assert stat(engine, Stat.STEPS) >= steps + 3
    assert stat(engine, Stat.GENERATION_TOKENS) == generated + 3
    assert stat(engine, Stat.BLOCKS_TOTAL) == 256 and stat(engine, Stat.BLOCKS_USED) == 0


def test_a_dead_frontend_is_forgotten(engine: FakeEngine, client: Client) -> None:
    other = Client(engine.frontend_spec(1))
    engine.worker.delay = 0.005
    try:
        other.submit(1, [5] * 50, max_tokens=400, ignore_eos=True)
        client.submit(1, [6] * 50, max_tokens=30, ignore_eos=True)
        other.until(lambda: other.tokens)
        other.close()
        engine.tell_gone(other.spec)
        client.until(lambda: 1 in client.reasons)
    finally:
        engine.worker.delay = 0.0
    assert len(client.tokens[1]) == 30
    at_rest(engine)


def test_streams_survive_the_death_of_a_worker(engine: FakeEngine, client: Client) -> None:
    engine.worker.delay = 0.01
    prompt = list(range(3, 40))
    client.submit(1, prompt, max_tokens=100, ignore_eos=True)
    client.until(lambda: len(client.tokens.get(1, [])) > 5)
    engine.lose_worker()
    engine.start_worker(delay=0.0)
    client.until(lambda: 1 in client.reasons)
    assert client.tokens[1] == [prompt[at % len(prompt)] if at < len(prompt) else client.tokens[1][at] for at in range(100)]
    assert len(client.tokens[1]) == 100
    engine.supervisor.wait_for(Ready, engine.spec.identity, count=2)


def test_a_worker_that_comes_back_before_its_death_is_told(engine: FakeEngine, client: Client) -> None:
    engine.worker.delay = 0.01
    client.submit(1, [9, 8, 7, 6] * 5, max_tokens=20, ignore_eos=True)
    client.until(lambda: len(client.tokens.get(1, [])) > 2)
    old = engine.worker
    old.crash()
    engine.start_worker(delay=0.0)
    engine.tell_gone(old.spec)
    client.until(lambda: 1 in client.reasons)
    assert client.tokens[1] == [9, 8, 7, 6] * 5


def test_drain() -> None:
    with fake_engine(delay=0.01) as engine:
        client = Client(engine.frontend_spec())
        client.submit(1, [5] * 40, max_tokens=400, ignore_eos=True)
        client.until(lambda: client.tokens)
        engine.drain()
        tried = 1
        while not client.refused:
            tried += 1
            client.submit(tried, [5], max_tokens=1)
            client.until(lambda: len(client.reasons) + len(client.refused) == tried - 1)  # noqa: B023
        assert next(iter(client.refused.values())).code is RefuseCode.DRAINING
        assert 1 not in client.reasons
        engine.worker.delay = 0.0
        client.until(lambda: 1 in client.reasons)
        assert len(client.tokens[1]) == 400
        engine.supervisor.wait_for(Drained, engine.spec.identity)
        client.close()


def test_requests_that_come_before_the_worker_are_kept() -> None:
    config = Config(scheduler=SchedulerConfig(max_queued_requests=1))
    with fake_engine(config) as engine:
        client = Client(engine.frontend_spec())
        engine.lose_worker()
        client.submit(1, [5, 6], max_tokens=3)
        until(lambda: stat(engine, Stat.NUM_WAITING) == 1)  # it may come before the scheduler hears of the loss, and runs until then
        client.submit(2, [5, 6], max_tokens=3)
        client.until(lambda: 2 in client.refused)
        assert client.refused[2].code is RefuseCode.QUEUE_FULL and client.refused[2].retry_after_s >= 1
        engine.start_worker()
        client.until(lambda: 1 in client.reasons)
        assert client.tokens[1] == [5, 6, 2]
        client.close()


def test_peer_gone_of_a_stranger_is_harmless(engine: FakeEngine, client: Client) -> None:
    engine.supervisor.tell(engine.spec.identity, PeerGone("worker", 0, 99_999))
    engine.supervisor.tell(engine.spec.identity, PeerGone("frontend", 3, 99_999))
    client.submit(1, [5, 6])
    client.until(lambda: 1 in client.reasons)
    assert client.tokens[1] == [5, 6, 2]
