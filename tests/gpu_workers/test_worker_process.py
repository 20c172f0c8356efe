"""Real worker processes: the protocol with the scheduler, tensor parallelism over gloo, a bad checkpoint seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from ipc import config as ipc_config
from ipc import model_info
from ipc.arena import Arena, Dimensions, PlanHeader, ResultHeader, RowFlag, RowSetup, Stat
from ipc.config import ChildSpec
from ipc.messages import (
    ChildToSupervisor,
    Fatal,
    KVReady,
    KVSize,
    Loading,
    Masks,
    Ready,
    StepPlan,
    StepResult,
    Stop,
    WorkerReady,
    WorkerToScheduler,
)
from tests import oracle

EPOCH, SCHEDULER_EPOCH = 7, 3
DEADLINE = 100


class Peer:
    """One ROUTER of ours, read by polling."""

    def __init__(self, context: zmq.Context[Any], address: str, incoming: Any, epoch: int) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.bind(address)
        self.decoder = msgspec.msgpack.Decoder(incoming)
        self.epoch, self.sent = epoch, 0

    def get(self) -> Any:
        """The next message; fails the test when none comes in time."""
        assert self.socket.poll(DEADLINE * 1000), "no message from the worker"
        frames = self.socket.recv_multipart()
        return self.decoder.decode(frames[2])

    def send(self, index: int, message: msgspec.Struct) -> None:
        header = self.epoch.to_bytes(8, "little") + self.sent.to_bytes(8, "little")
        self.sent += 1
        self.socket.send_multipart([f"worker.{index}.{EPOCH}".encode(), header, msgspec.msgpack.encode(message)])


class Group:
    """Worker processes of one engine, with this test as their supervisor and scheduler. module: what they run in place of quire.child."""

    def __init__(self, runtime: str, path: str, ranks: int, flags: dict[str, Any], module: str = "quire.child") -> None:
        flags = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "cpu_threads": 1, "tensor_parallel_size": ranks, **flags}
        self.config = ipc_config.load(flags, environ={})
        self.model = model_info.read(path, self.config.model, "test")
        self.ranks, self.module = ranks, module
        self.arena = Arena.create(Dimensions.of(self.config, self.model))
        self.death_read, self.death_write = os.pipe()
        self.context: zmq.Context[Any] = zmq.Context()
        self.supervisor = Peer(self.context, f"ipc://{runtime}/supervisor", ChildToSupervisor, 0)
        self.scheduler = Peer(self.context, f"ipc://{runtime}/workers-{SCHEDULER_EPOCH}", WorkerToScheduler, SCHEDULER_EPOCH)
        self.processes = [self._spawn(runtime, rank) for rank in range(ranks)]
        self.step = 0

    def _spawn(self, runtime: str, rank: int) -> subprocess.Popen[bytes]:
        spec = ChildSpec(
            role="worker", index=rank, epoch=EPOCH, scheduler_epoch=SCHEDULER_EPOCH, runtime_dir=runtime, device="cpu", config=self.config,
            model=self.model, fds={"arena": self.arena.fd, "death": self.death_read},
        )  # fmt: skip
        fd = os.memfd_create("spec", 0)
        os.write(fd, msgspec.json.encode(spec))
        process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            pass_fds=(fd, self.arena.fd, self.death_read),
            env={**os.environ, "QUIRE_SPEC_FD": str(fd)},
        )
        os.close(fd)
        return process

    def start(self, num_blocks: int = 32) -> list[WorkerReady]:
        """Bring all ranks to where plans may come."""
        ready = sorted((self.scheduler.get() for _ in range(self.ranks)), key=lambda message: message.rank)
        for rank in range(self.ranks):
            self.scheduler.send(rank, KVSize(num_blocks))
        assert {self.scheduler.get() for _ in range(self.ranks)} == {KVReady(rank) for rank in range(self.ranks)}
        return ready

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Prefill one request in row 2 and decode it, two steps in flight at a time, as the scheduler does it."""
        setup = msgspec.msgpack.encode([RowSetup(row=2, num_prompt=len(prompt), seed=0)])
        blocks = -(-(len(prompt) + count) // self.config.cache.block_size)
        tokens: list[int] = []
        for number in range(count):
            slot = (self.step + 1) % 4
            plan = self.arena.plans[slot]
            first = number == 0
            ids = prompt if first else []
            plan.row[0], plan.num_new[0] = 2, len(ids) or 1
            plan.start[0] = 0 if first else len(prompt) + number - 1
            plan.flags[0] = RowFlag.SAMPLE | (RowFlag(0) if first else RowFlag.DEVICE_TOKEN)
            plan.token_ids[: len(ids)] = ids
            updates = blocks if first else 0
            plan.block_row[:updates], plan.block_index[:updates] = 2, np.arange(updates)
            plan.block_id[:updates] = np.arange(updates)[::-1] + 3
            if first:
                plan.setup[: len(setup)] = np.frombuffer(setup, np.uint8)
            self.step += 1
            for word, value in (
                (PlanHeader.STEP, self.step), (PlanHeader.NUM_ROWS, 1), (PlanHeader.NUM_TOKENS, len(ids) or 1),
                (PlanHeader.NUM_TOKEN_IDS, len(ids)), (PlanHeader.NUM_BLOCK_UPDATES, updates),
                (PlanHeader.SETUP_BYTES, len(setup) if first else 0),
            ):  # fmt: skip
                plan.header[word] = value
            for rank in range(self.ranks):
                self.scheduler.send(rank, StepPlan(self.step, slot))
            if number:
                tokens.append(self.result())
        tokens.append(self.result())
        return tokens

    def result(self) -> int:
        """The token of the oldest step whose result has not been taken."""
        message = self.scheduler.get()
        assert isinstance(message, StepResult)
        result = self.arena.results[message.slot]
        result.check_step(message.step)
        assert result.header[ResultHeader.FORWARD_NS] > 0
        return int(result.tokens[0])

    def fatal(self) -> Fatal:
        """What the failing worker said last."""
        while True:
            message = self.supervisor.get()
            if isinstance(message, Fatal):
                return message

    def close(self) -> None:
        os.close(self.death_write)  # as when the supervisor dies
        for process in self.processes:
            try:
                process.wait(timeout=DEADLINE)
            finally:
                process.kill()
        self.context.destroy(linger=0)
        os.close(self.death_read)
        os.close(self.arena.fd)


@contextmanager
def group(path: str, ranks: int = 1, module: str = "quire.child", **flags: Any) -> Iterator[Group]:
    with tempfile.TemporaryDirectory(prefix="quire-") as runtime:
        made = Group(runtime, path, ranks, flags, module)
        try:
            yield made
        finally:
            made.close()


PROMPT = list(range(300, 337))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return oracle.make_model(tmp_path_factory.mktemp("worker"), "Llama")


@pytest.mark.parametrize("ranks", [1, 2])
def test_serves_plans(model: str, ranks: int) -> None:
    """Greedy tokens through sockets and shared memory are the oracle's, with one rank and with two."""
    with group(model, ranks) as workers:
        ready = workers.start()
        assert [message.rank for message in ready] == list(range(ranks))
        # 3 layers, 2 KV heads shared out, 16 wide, 16 tokens, K and V, float32; the floor of 256 MiB for each worker.
        assert ready[0].kv_bytes_per_block == 3 * 2 // ranks * 16 * 16 * 2 * 4
        assert ready[0].num_blocks == 256 * 2**20 // ready[0].kv_bytes_per_block
        assert workers.greedy(PROMPT, 12) == oracle.greedy(model, PROMPT, 12)
        assert workers.greedy(PROMPT[5:], 12) == oracle.greedy(model, PROMPT[5:], 12)
        assert workers.arena.status("worker", 0)[Stat.STEPS] == 24
        for rank in range(ranks):
            workers.supervisor.send(rank, Stop())
        assert [process.wait(timeout=DEADLINE) for process in workers.processes] == [0] * ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_waits_for_masks_before_sampling_only(model: str, ranks: int) -> None:
    """Two steps whose masks follow: neither ends before its own, masks may come early, and the second step's token hangs on the first's."""
    with group(model, ranks) as workers:
        workers.start()
        allowed, last = 77, [*PROMPT, 77]
        setup = msgspec.msgpack.encode([RowSetup(row=1, num_prompt=len(PROMPT), seed=0)])
        for step in (1, 2):
            plan, first = workers.arena.plans[step], step == 1
            ids = PROMPT if first else []
            plan.row[0], plan.num_new[0], plan.start[0] = 1, len(ids) or 1, 0 if first else len(PROMPT)
            plan.flags[0] = RowFlag.SAMPLE | RowFlag.GRAMMAR | (RowFlag(0) if first else RowFlag.DEVICE_TOKEN)
            plan.token_ids[: len(ids)] = ids
            plan.block_row[:4], plan.block_index[:4], plan.block_id[:4] = 1, np.arange(4), np.arange(4) + 5
            plan.setup[: len(setup)] = np.frombuffer(setup, np.uint8)
            words = (step, 1, len(ids) or 1, len(ids), 4 * first, len(setup) * first, 1, 1)
            plan.header[: PlanHeader.MASKS_FOLLOW + 1] = words
            plan.masks[0] = -1
            for rank in range(ranks):
                workers.scheduler.send(rank, StepPlan(step, step))
        workers.arena.plans[2].masks[0] = -1
        for rank in range(ranks):
            workers.scheduler.send(rank, Masks(2))
        assert not workers.scheduler.socket.poll(300), "a step ended without its masks"
        workers.arena.plans[1].masks[0] = 0
        workers.arena.plans[1].masks[0, allowed // 32] = 1 << allowed % 32
        for rank in range(ranks):
            workers.scheduler.send(rank, Masks(1))
        assert workers.result() == allowed
        assert workers.result() == oracle.greedy(model, last, 1)[0]


def test_tells_the_supervisor_how_it_goes(model: str) -> None:
    with group(model) as workers:
        workers.start()
        said = []
        while not said or not isinstance(said[-1], Ready):
            said.append(workers.supervisor.get())
        loading = [message for message in said if isinstance(message, Loading)]
        assert loading[-1].what == "weights"
        assert loading[-1].done == loading[-1].total > 0
        assert "32 KV blocks" in said[-1].detail


def test_a_missing_file_ends_it_with_one_message(model: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(model) / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with group(str(tmp_path)) as workers:
        fatal = workers.fatal()
        assert fatal.user_error
        assert "no .safetensors weight file" in fatal.message
        assert "pytorch_model.bin" in fatal.message
        assert workers.processes[0].wait(timeout=DEADLINE) == 1


def test_dies_with_its_supervisor(model: str) -> None:
    with group(model) as workers:
        workers.start()
    assert workers.processes[0].returncode == 1
