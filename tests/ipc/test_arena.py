"""The arena: columns do not overlap, two mappings see one memory, stale slots and wrong sizes are refused."""

from __future__ import annotations

import fcntl
import os
import resource

import numpy as np
import pytest

from ipc import arena as arena_module
from ipc.arena import NUM_SLOTS, Arena, Dimensions, PlanColumns, PlanHeader, ResultColumns, Stat
from ipc.config import Config, ModelInfo, SchedulerConfig
from ipc.errors import ConfigError, ProtocolError

MODEL = ModelInfo(
    path="", tokenizer_path="", name="", architecture="", vocab_size=1000, max_model_len=100, eos_token_ids=[], generation_defaults={}
)
SMALL = Dimensions.of(Config(scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=32)), MODEL)


def _all_columns(arena: Arena) -> list[np.ndarray]:
    names = [(columns, name) for slot in range(NUM_SLOTS) for columns in (arena.plans[slot], arena.results[slot]) for name in vars(columns)]
    return [getattr(columns, name) for columns, name in names] + [arena.status("scheduler"), arena.status("frontend", 3)]


def test_columns_are_disjoint_and_shared_between_mappings() -> None:
    first = Arena.create(SMALL)
    second = Arena(first.fd, SMALL)
    mine, theirs = _all_columns(first), _all_columns(second)
    for number, column in enumerate(mine, start=1):
        column[...] = number
    for number, (column, other) in enumerate(zip(mine, theirs, strict=True), start=1):
        assert (column == number).all()
        assert (other == number).all()
    os.close(first.fd)


def test_the_size_is_sealed_and_checked() -> None:
    arena = Arena.create(SMALL)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 10)
    with pytest.raises(OSError, match="not permitted"):
        fcntl.fcntl(arena.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    other = Dimensions.of(Config(), MODEL)
    with pytest.raises(ProtocolError, match="this configuration needs"):
        Arena(arena.fd, other)
    os.close(arena.fd)


def test_too_little_memory_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arena_module.os, "posix_fallocate", no_space)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="max_num_seqs"):
        Arena.create(SMALL)
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_than_the_machine_has_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would give it, and then end programs, ours or others, to get it back."""
    monkeypatch.setattr(arena_module.os, "posix_fallocate", lambda *_: pytest.fail("it was taken"))
    monkeypatch.setattr(arena_module, "available_memory", lambda: Arena.size_of(SMALL) - 1)
    with pytest.raises(ConfigError, match="max_grammar_rows"):
        Arena.create(SMALL)


def test_a_stale_slot_is_refused() -> None:
    plan, result = PlanColumns(SMALL), ResultColumns(SMALL)
    plan.header[PlanHeader.STEP] = 7
    plan.check_step(7)
    with pytest.raises(ProtocolError, match="step 7, the doorbell said 8"):
        plan.check_step(8)
    with pytest.raises(ProtocolError, match="doorbell said 3"):
        result.check_step(3)


def test_status_records_are_apart() -> None:
    arena = Arena.create(SMALL)
    records = [arena.status("scheduler")] + [arena.status(role, i) for role in ("frontend", "worker") for i in range(64)]
    for number, record in enumerate(records):
        record[Stat.PID] = number
    assert [int(record[Stat.PID]) for record in records] == list(range(129))
    os.close(arena.fd)


def test_mapping_and_closing_leaks_no_descriptor() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limit > 64
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        arena = Arena.create(SMALL)
        os.close(arena.fd)
        del arena
    assert len(os.listdir("/proc/self/fd")) <= before + 20  # mmap keeps its own duplicate until the columns are collected
