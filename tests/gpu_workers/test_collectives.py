"""How ranks meet, who is named when one does not come, and NCCL's calls, with a communicator between threads in NCCL's place."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import zmq

from gpu_workers import nccl
from gpu_workers.collectives import Collectives, join, who_is_silent
from gpu_workers.meeting import meet
from gpu_workers.nccl import NCCLCollectives, new_id
from gpu_workers.worker import Worker
from ipc.arena import STATUS_WORDS, Stat
from ipc.errors import ConfigError, QuireError

SIZES = {2: (4, torch.int32), 9: (2, torch.bfloat16), 7: (4, torch.float32)}


class Communicators:
    """As much of cupy.cuda.nccl as is used, for ranks that are threads of this process; memory is the host's."""

    NCCL_SUM, NCCL_INT32, NCCL_FLOAT32, NCCL_BFLOAT16 = 0, 2, 7, 9

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: dict[int, tuple[int, int]] = {}
        self.streams: list[int] = []
        self.aborted: list[int] = []

    def NcclCommunicator(self, size: int, unique_id: Any, rank: int) -> Any:
        assert unique_id == b"the id"
        return SimpleNamespace(
            allReduce=lambda send, receive, count, dtype, op, stream: self._exchange(
                rank, send, receive, count, dtype, stream, lambda parts: torch.stack(parts).sum(0)
            ),
            allGather=lambda send, receive, count, dtype, stream: self._exchange(rank, send, receive, count, dtype, stream, torch.cat),
            broadcast=lambda send, receive, count, dtype, root, stream: self._exchange(
                rank, send, receive, count, dtype, stream, lambda parts: parts[root]
            ),
            abort=lambda: self.aborted.append(rank),
        )

    def _exchange(
        self, rank: int, send: int, receive: int, count: int, dtype: int, stream: int, combine: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> None:
        self.given[rank] = send, count
        self.streams.append(stream)
        self.barrier.wait()
        result = combine([_at(*self.given[each], dtype).clone() for each in sorted(self.given)])
        self.barrier.wait()
        _at(receive, result.numel(), dtype).copy_(result)
        self.barrier.wait()


def _at(address: int, count: int, dtype: int) -> torch.Tensor:
    size, kind = SIZES[dtype]
    return torch.frombuffer((ctypes.c_uint8 * (size * count)).from_address(address), dtype=kind)


def in_threads(size: int, work: Callable[[int], Any]) -> list[Any]:
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        results[rank] = work(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    return results


def test_ranks_talk_over_the_communicator() -> None:
    fake = Communicators(3)

    def work(rank: int) -> list[Any]:
        ranks = NCCLCollectives(rank, 3, fake, b"the id", lambda: 41)
        total = ranks.all_reduce(torch.full((2, 5), float(rank + 1), dtype=torch.bfloat16))
        columns = ranks.gather_columns(torch.arange(4.0).view(2, 2) + 10 * rank)
        token = ranks.broadcast(torch.tensor([rank + 7], dtype=torch.int32))
        share = ranks.share(12, "heads")
        ranks.close()
        return [total.tolist(), None if columns is None else columns.tolist(), token.tolist(), share]

    results = in_threads(3, work)
    for rank, (total, columns, token, share) in enumerate(results):
        assert total == [[6.0] * 5] * 2
        assert columns == ([[0, 1, 10, 11, 20, 21], [2, 3, 12, 13, 22, 23]] if rank == 0 else None)
        assert (token, share) == ([7], 4)
    assert set(fake.streams) == {41}
    assert sorted(fake.aborted) == [0, 1, 2]


def test_one_rank_is_one_rank_whatever_the_backend() -> None:
    for backend in ("gloo", "nccl"):
        ranks = join(0, 1, backend, "/nowhere")
        assert type(ranks) is Collectives
        x = torch.ones(2, 3)
        assert ranks.all_reduce(x) is x
        assert ranks.gather_columns(x) is x


def test_ranks_meet_and_get_the_first_ones_word(tmp_path: Path) -> None:
    place = str(tmp_path / "ranks-7")
    assert in_threads(3, lambda rank: meet(rank, 3, place, lambda: b"the id\x00\xff", 20)) == [b"the id\x00\xff"] * 3


def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    """By those that did; the first one has all the others' names."""
    place, said = str(tmp_path / "ranks-7"), {}

    def come(rank: int) -> None:
        if rank in (0, 2):
            with pytest.raises(QuireError) as caught:
                meet(rank, 4, place, lambda: b"the id", 2 if rank == 0 else 1.5)
            said[rank] = str(caught.value)

    in_threads(3, come)
    assert said == {rank: f"rank {rank} waited 2 s for ranks 1, 3 of 4, which did not come" for rank in (0, 2)}


def test_so_is_the_first_one(tmp_path: Path) -> None:
    with pytest.raises(QuireError, match="rank 1 waited 0 s for rank 0 of 4"):
        meet(1, 4, str(tmp_path / "ranks-7"), lambda: b"", 0)


def test_who_makes_no_sense_or_goes_again_is_missing(tmp_path: Path) -> None:
    place = str(tmp_path / "ranks-7")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(f"ipc://{place}")
        for frame in (b"", b"rank 1", msgspec.msgpack.encode(["1"])):
            stranger.send(frame)
        with pytest.raises(QuireError, match="rank 0 waited 1 s for rank 1 of 2"):
            meet(0, 2, place, lambda: b"the id", 1)
        assert not stranger.poll(0)


def test_ranks_of_gpus_get_the_id_that_the_binding_gave_the_first_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As bytes, which CuPy's communicator insists on."""
    made, given = bytes(range(100, 228)), {}

    class Communicator:
        def __init__(self, size: int, unique_id: bytes, rank: int) -> None:
            assert size == 2
            given[rank] = unique_id

    fake_binding(monkeypatch, available=True, get_unique_id=lambda: made, NcclCommunicator=Communicator)
    in_threads(2, lambda rank: join(rank, 2, "nccl", str(tmp_path / "ranks-7")))
    assert given == {0: made, 1: made} and all(type(each) is bytes for each in given.values())


def test_without_nccl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_binding(monkeypatch, available=False)
    for call in (new_id, lambda: nccl.join(0, 2, b"")):
        with pytest.raises(ConfigError, match=r"--tensor-parallel-size: CuPy finds no NCCL.*nvidia-nccl-cu13"):
            call()


def fake_binding(monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    binding = SimpleNamespace(**names)
    for name, module in (("cupy", SimpleNamespace(cuda=SimpleNamespace(nccl=binding))), ("cupy.cuda", SimpleNamespace(nccl=binding))):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    "ages, steps, said",
    [
        ([0, 9, 0], [5, 5, 5], "rank 1 gave no sign of life"),
        ([0, 0, 1], [5, 4, 4], "ranks 1, 2 did not follow"),
        ([0, 0], [5, 5], "step 5"),
    ],
)
def test_the_silent_rank_is_named(ages: list[int], steps: list[int], said: str) -> None:
    records = []
    for age, count in zip(ages, steps):
        record = np.zeros(STATUS_WORDS, np.int64)
        record[Stat.HEARTBEAT_NS], record[Stat.STEPS] = (100 - age) * 10**9, count
        records.append(record)
    assert said in who_is_silent(records, 100 * 10**9)


@pytest.mark.parametrize("seconds, gives_up", [(29.0, False), (31.0, True)])
def test_a_step_that_does_not_end_ends_the_worker(seconds: float, gives_up: bool) -> None:
    """The group is left first: a rank that waits in a sum over all of them could not say anything any more."""
    happened: list[str] = []
    now = time.monotonic_ns()
    records = [np.zeros(STATUS_WORDS, np.int64) for _ in range(2)]
    records[0][Stat.HEARTBEAT_NS], records[1][Stat.HEARTBEAT_NS] = now, now - 60 * 10**9
    worker = Worker.__new__(Worker)
    worker.num_ranks, worker.status, worker._scheduler = 2, records[0], None
    worker._runner = SimpleNamespace(waiting_seconds=seconds)  # type: ignore[assignment]
    worker.arena = SimpleNamespace(status=lambda role, rank: records[rank])  # type: ignore[assignment]
    worker.ranks = SimpleNamespace(close=lambda: happened.append("left"))  # type: ignore[assignment]
    worker.fail = lambda error: happened.append(str(error))  # type: ignore[method-assign]
    worker.heartbeat()
    assert happened == (["left", "a step has not ended for 30 s: rank 1 gave no sign of life for 5 s"] if gives_up else [])
