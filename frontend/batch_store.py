"""Batches in the state directory's database: their stamps, counts, and the record of each line that has been run."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from frontend import file_store
from frontend.http_errors import HttpError
from frontend.state_dir import StateDir
from ipc.errors import InvalidRequestError

WINDOW, WINDOW_SECONDS = "24h", 86_400
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_STAMPS = (
    "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of one line. record: the JSON line for the output or the error file. tokens: input, cached, output, reasoning."""

    line: int
    failed: bool
    record: bytes
    tokens: tuple[int, int, int, int] = (0, 0, 0, 0)


class BatchStore:
    """Batches by id. A change of status is one UPDATE that names the status it begins from, so that processes cannot cross each other."""

    def __init__(self, state: StateDir) -> None:
        self._state = state

    async def create(
        self, endpoint: str, input_file_id: str, metadata: dict[str, str] | None, output_seconds: int | None
    ) -> dict[str, Any]:
        """A batch that waits for its turn. Raises InvalidRequestError for a file that is no batch's input."""
        identity, now = f"batch_{secrets.token_hex(12)}", int(time.time())

        def insert(database: sqlite3.Connection) -> dict[str, Any]:
            try:
                purpose = file_store.find(database, input_file_id)["purpose"]
            except HttpError as error:
                raise InvalidRequestError(error.message, "input_file_id", error.code) from None
            if purpose != "batch":
                raise InvalidRequestError(f"the file's purpose is {purpose}; a batch needs one of purpose batch", "input_file_id")
            kept = None if metadata is None else json.dumps(metadata)
            database.execute(
                "INSERT INTO batches (id, status, endpoint, input_file_id, completion_window, metadata, output_seconds, created_at, "
                "expires_at) VALUES (?, 'validating', ?, ?, ?, ?, ?, ?, ?)",
                (identity, endpoint, input_file_id, WINDOW, kept, output_seconds, now, now + WINDOW_SECONDS),
            )
            return document(_find(database, identity))

        return await self._state.run(insert)

    async def get(self, identity: str) -> dict[str, Any]:
        """Raises HttpError 404."""
        return await self._state.run(lambda database: document(_find(database, identity)))

    async def page(self, after: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """The newest first, and whether there are more. Raises HttpError 404 when `after` is none of them."""

        def select(database: sqlite3.Connection) -> tuple[list[dict[str, Any]], bool]:
            below = _find(database, after)["number"] if after is not None else 1 << 62
            rows = database.execute("SELECT * FROM batches WHERE number < ? ORDER BY number DESC LIMIT ?", (below, limit + 1))
            found = [document(row) for row in rows]
            return found[:limit], len(found) > limit

        return await self._state.run(select)

    async def cancel(self, identity: str) -> dict[str, Any]:
        """Ask for its end; one that has ended stays as it is. Raises HttpError 404, 409."""

        def update(database: sqlite3.Connection) -> dict[str, Any]:
            status = _find(database, identity)["status"]
            if status not in ("validating", "in_progress", "cancelling", "cancelled"):
                raise HttpError(409, f"the batch is {status} and cannot be cancelled", "batch_id", "batch_not_cancellable")
            if status in ("validating", "in_progress"):
                _move(database, identity, "cancelling", {})
            return document(_find(database, identity))

        return await self._state.run(update)

    async def unfinished(self) -> list[str]:
        """Ids of batches that somebody has to work on, oldest first."""

        def select(database: sqlite3.Connection) -> list[str]:
            marks = ",".join("?" * len(UNFINISHED))
            return [row["id"] for row in database.execute(f"SELECT id FROM batches WHERE status IN ({marks}) ORDER BY number", UNFINISHED)]

        return await self._state.run(select)

    async def row(self, identity: str) -> sqlite3.Row:
        return await self._state.run(lambda database: _find(database, identity))

    async def move(self, identity: str, old: tuple[str, ...], new: str, **values: Any) -> bool:
        """Change status and stamp it, if the status is still one of `old`."""

        def update(database: sqlite3.Connection) -> bool:
            if _find(database, identity)["status"] not in old:
                return False
            _move(database, identity, new, values)
            return True

        return await self._state.run(update)

    async def lines_done(self, number: int) -> set[int]:
        def select(database: sqlite3.Connection) -> set[int]:
            return {row["line"] for row in database.execute("SELECT line FROM batch_lines WHERE batch = ?", (number,))}

        return await self._state.run(select)

    async def record(self, number: int, ran: Ran) -> None:
        """Keep a line's result; a second one for the same line changes nothing."""

        def insert(database: sqlite3.Connection) -> None:
            values = (number, ran.line, ran.failed, ran.record)
            if database.execute("INSERT OR IGNORE INTO batch_lines VALUES (?, ?, ?, ?)", values).rowcount:
                count = "failed" if ran.failed else "completed"
                database.execute(
                    f"UPDATE batches SET {count} = {count} + 1, input_tokens = input_tokens + ?, "
                    "cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?, reasoning_tokens = reasoning_tokens + ? "
                    "WHERE number = ?",
                    (*ran.tokens, number),
                )

        await self._state.run(insert)

    async def write_records(self, number: int, failed: bool, path: str) -> int:
        """Write the records of the lines that failed, or of the others, in the order of the lines; returns how many there were."""

        def write(database: sqlite3.Connection) -> int:
            count = 0
            rows = database.execute("SELECT record FROM batch_lines WHERE batch = ? AND failed = ? ORDER BY line", (number, failed))
            with open(path, "wb") as file:
                for row in rows:
                    file.write(row["record"] + b"\n")
                    count += 1
            return count

        return await self._state.run(write)

    async def forget_lines(self, number: int) -> None:
        """Its files are written."""

        def delete(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM batch_lines WHERE batch = ?", (number,))

        await self._state.run(delete)


def _move(database: sqlite3.Connection, identity: str, status: str, values: dict[str, Any]) -> None:
    changes = {"status": status, f"{status}_at": int(time.time()), **values}
    database.execute(f"UPDATE batches SET {', '.join(f'{name} = ?' for name in changes)} WHERE id = ?", (*changes.values(), identity))


def _find(database: sqlite3.Connection, identity: str) -> sqlite3.Row:
    row: sqlite3.Row | None = database.execute("SELECT * FROM batches WHERE id = ?", (identity,)).fetchone()
    if row is None:
        raise HttpError(404, f"there is no batch {identity!r:.120}", "batch_id", "batch_not_found")
    return row


def document(row: sqlite3.Row) -> dict[str, Any]:
    """OpenAI's batch object."""
    same = ("id", "endpoint", "input_file_id", "completion_window", "status", "model", "output_file_id", "error_file_id", *_STAMPS)
    return {
        "object": "batch",
        **{name: row[name] for name in same},
        "errors": {"object": "list", "data": json.loads(row["errors"])} if row["errors"] is not None else None,
        "request_counts": {name: row[name] for name in ("total", "completed", "failed")},
        "metadata": json.loads(row["metadata"]) if row["metadata"] is not None else None,
        "usage": {
            "input_tokens": row["input_tokens"],
            "input_tokens_details": {"cached_tokens": row["cached_tokens"]},
            "output_tokens": row["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": row["reasoning_tokens"]},
            "total_tokens": row["input_tokens"] + row["output_tokens"],
        },
    }
