"""Stand-ins for processes: a supervisor's mailbox, and an engine of real scheduler and fake worker for tests of frontends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import zmq

from ipc.arena import Arena, Dimensions
from ipc.channels import Channel
from ipc.config import ChildSpec, Config, ModelInfo
from ipc.messages import ChildToSupervisor, Drain, PeerGone, Ready, Stop
from tests.fake_worker import FakeWorker

ROOT = Path(__file__).resolve().parent.parent


class FakeSupervisor(threading.Thread):
    """The supervisor's end of the mailbox: keeps what children say in `heard` as (identity, message), and can speak to them."""

    def __init__(self, address: str, epoch: int) -> None:
        super().__init__(name="fake-supervisor", daemon=True)
        self.heard: list[tuple[str, Any]] = []
        self._news = threading.Condition()
        self._address, self._epoch = address, epoch
        self._loop = asyncio.new_event_loop()
        self._bound = threading.Event()

    def run(self) -> None:
        context: Any = zmq.Context()
        self._channel: Channel[Any] = Channel.router(context, self._address, ChildToSupervisor, self._epoch)
        self._channel.attach(self._loop, self._on_message)
        self._bound.set()
        try:
            self._loop.run_forever()
        finally:
            self._channel.close()
            context.destroy(linger=0)
            self._loop.close()

    def _on_message(self, peer: str, message: Any) -> None:
        with self._news:
            self.heard.append((peer, message))
            self._news.notify_all()

    def wait_for(self, kind: type, identity: str, seconds: float = 60.0, count: int = 1) -> Any:
        """The `count`-th message of this kind from a child. Raises TimeoutError with what was heard instead."""

        def found() -> list[Any]:
            return [message for peer, message in self.heard if peer == identity and isinstance(message, kind)]

        with self._news:
            if not self._news.wait_for(lambda: len(found()) >= count, seconds):
                raise TimeoutError(f"no {kind.__name__} from {identity}; heard {self.heard}")
            return found()[count - 1]

    def tell(self, identity: str, message: Any) -> None:
        """Send to a child."""
        self._bound.wait(60)
        self._loop.call_soon_threadsafe(self._channel.send, message, identity)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)


_CHILD = """
import importlib, os, sys
import msgspec
from ipc.config import ChildSpec
from scheduler_proc.run import run
if os.environ.get("TEST_PRELUDE"):
    importlib.import_module(os.environ["TEST_PRELUDE"])
spec = msgspec.json.decode(os.read(int(os.environ["QUIRE_SPEC_FD"]), 1 << 22), type=ChildSpec)
sys.exit(run(spec))
"""


@dataclass
class FakeEngine:
    """A real scheduler process with a fake worker. `frontend_spec` is what a frontend, or its EngineClient, is started with."""

    spec: ChildSpec  # the scheduler's
    arena: Arena
    supervisor: FakeSupervisor
    scheduler: subprocess.Popen[bytes]
    workers: list[FakeWorker] = field(default_factory=list)
    worker_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10

    @property
    def worker(self) -> FakeWorker:
        return self.workers[-1]

    def next_spec(self, role: Literal["frontend", "worker"], index: int = 0, **fds: int) -> ChildSpec:
        """A spec with a fresh epoch."""
        self.epochs += 1
        return msgspec.structs.replace(self.spec, role=role, index=index, epoch=self.epochs, fds={**self.spec.fds, **fds})

    def frontend_spec(self, index: int = 0, **fds: int) -> ChildSpec:
        """Spec of one more frontend; fds adds descriptors, such as listen=..."""
        return self.next_spec("frontend", index, **fds)

    def start_worker(self, **options: Any) -> FakeWorker:
        """One more worker of rank 0 (its predecessor should be lost first); kind: its class."""
        options = {**self.worker_options, **options}
        worker: FakeWorker = options.pop("kind", FakeWorker)(self.next_spec("worker"), **options)
        self.workers.append(worker)
        worker.start()
        return worker

    def lose_worker(self) -> None:
        """Crash the worker and let the supervisor tell of it."""
        self.worker.crash()
        self.tell_gone(self.worker.spec)

    def tell_gone(self, spec: ChildSpec) -> None:
        """Let the supervisor tell the scheduler of a death."""
        self.supervisor.tell(self.spec.identity, PeerGone(spec.role, spec.index, spec.epoch))

    def drain(self) -> None:
        self.supervisor.tell(self.spec.identity, Drain(time.monotonic_ns() + 10**10))


def small_model(**changes: Any) -> ModelInfo:
    """A ModelInfo that no file stands behind: 1,000 tokens, of which 2 ends a request, context 512."""
    fields: dict[str, Any] = {
        "path": "",
        "tokenizer_path": "",
        "name": "toy",
        "architecture": "ToyForCausalLM",
        "vocab_size": 1000,
        "max_model_len": 512,
        "eos_token_ids": [2],
    }
    return ModelInfo(**{**fields, **changes})


@contextlib.contextmanager
def fake_engine(config: Config | None = None, model: ModelInfo | None = None, **worker_options: Any) -> Iterator[FakeEngine]:
    """Start a scheduler process and a FakeWorker(**worker_options); yields the FakeEngine once plans may flow."""
    config, model = config or Config(), model or small_model()
    with tempfile.TemporaryDirectory(prefix="quire-test-") as directory:
        arena = Arena.create(Dimensions.of(config, model))
        death_read, death_write = os.pipe()
        spec = ChildSpec(
            role="scheduler",
            index=0,
            epoch=1,
            scheduler_epoch=1,
            runtime_dir=directory,
            device="cpu",
            config=config,
            model=model,
            fds={"arena": arena.fd, "death": death_read},
        )
        supervisor = FakeSupervisor(spec.address("supervisor"), epoch=0)
        supervisor.start()
        process = start_scheduler(spec)
        engine = FakeEngine(spec, arena, supervisor, process, worker_options=worker_options)
        try:
            engine.start_worker()
            supervisor.wait_for(Ready, spec.identity)
            yield engine
            engine.worker.close()
        finally:
            supervisor.tell(spec.identity, Stop())
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for worker in engine.workers:
                with contextlib.suppress(BaseException):
                    worker.close()
            supervisor.close()
            for fd in (death_read, death_write, arena.fd):
                os.close(fd)


def start_scheduler(spec: ChildSpec) -> subprocess.Popen[bytes]:
    """The scheduler as a child process of the calling thread, which must outlive it."""
    spec_fd = os.memfd_create("quire-spec")
    os.write(spec_fd, msgspec.json.encode(spec))
    os.lseek(spec_fd, 0, os.SEEK_SET)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            cwd=ROOT,
            env={**os.environ, "QUIRE_SPEC_FD": str(spec_fd)},
            pass_fds=[spec_fd, *spec.fds.values()],
        )
    finally:
        os.close(spec_fd)
