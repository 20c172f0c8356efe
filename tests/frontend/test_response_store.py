"""What is kept of stored responses, and what has to go."""

from __future__ import annotations

import pytest

from frontend import response_store
from frontend.http_errors import HttpError
from frontend.response_store import EventLog, Store, Stored
from ipc.config import ServerConfig
from ipc.errors import InvalidRequestError


def stored(identity: str, size: int = 0, status: str = "completed") -> Stored:
    return Stored({"id": identity, "status": status, "output": ["x" * size]}, [])


def store(count: int = 100, size: int = 10_000) -> Store:
    return Store(ServerConfig(max_stored_responses=count, max_stored_bytes=size), frontends=1)


def test_bytes_are_bounded() -> None:
    kept = store(size=1000)
    for place in range(5):
        kept.put(stored(str(place), 300))
    assert len(kept) == 2
    assert kept.get("4").document["id"] == "4"
    with pytest.raises(HttpError):
        kept.get("0")


def test_one_that_grows_is_counted_again() -> None:
    kept = store(size=1000)
    first, second = stored("a"), stored("b")
    kept.put(first)
    kept.put(second)
    second.document["output"] = ["x" * 950]
    kept.put(second)
    assert len(kept) == 1 and kept.has(second) and not kept.has(first)
    kept.remove("b")
    kept.put(stored("c", 800))
    assert len(kept) == 1


def test_what_runs_stays() -> None:
    kept = store(count=1)
    kept.put(stored("running", status="in_progress"))
    kept.put(stored("done"))
    assert kept.has(kept.get("running")) and len(kept) == 1
    with pytest.raises(InvalidRequestError, match="not ended"):
        kept.previous("running")


def test_none_are_stored() -> None:
    none = store(count=0)
    with pytest.raises(InvalidRequestError):
        none.need("background")
    with pytest.raises(InvalidRequestError):
        none.previous("x")


def test_each_of_several_processes_has_its_share() -> None:
    share = Store(ServerConfig(max_stored_responses=5, max_stored_bytes=3000), frontends=3)
    for place in range(5):
        share.put(stored(str(place), 300))
    assert len(share) == 2


def test_a_log_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "MAX_LOG_BYTES", 100)
    log = EventLog()
    log.frame(None, b"data: 1\n\ndata: 2\n\n")
    assert log.events == [b"data: 1\n\n", b"data: 2\n\n"]
    log.frame(None, b"data: " + b"3" * 100 + b"\n\n")
    assert log.too_long and not log.events
