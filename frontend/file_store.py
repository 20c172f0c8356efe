"""Uploaded files and batches' results: contents as plain files in the state directory, the rest in its database."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from typing import Any

from frontend.http_errors import HttpError
from frontend.state_dir import StateDir

PURPOSES = ("batch", "user_data", "assistants", "vision", "fine-tune", "evals")
OUTPUT = "batch_output"
MAX_NAME = 255
_ABANDONED_SECONDS = 86_400.0


class FileStore:
    """Files by id. What has expired is gone: it is not found, and its contents are removed with the next upload."""

    def __init__(self, state: StateDir, max_total_bytes: int) -> None:
        self._state, self._max_total = state, max_total_bytes

    def content_path(self, identity: str) -> str:
        return self._state.place(os.path.join("files", identity))

    async def begin(self) -> tuple[str, str]:
        """A new file's id, and where to write its contents before `keep`."""
        identity = f"file-{secrets.token_hex(12)}"
        await self._state.run(self._prune)
        return identity, self.content_path(identity) + ".part"

    async def keep(self, identity: str, filename: str, purpose: str, seconds: int | None) -> dict[str, Any]:
        """The contents are complete: from now on the file is there. seconds: until it expires. Raises HttpError 413 when all is full."""
        path = self.content_path(identity)

        def insert(database: sqlite3.Connection) -> dict[str, Any]:
            size = os.path.getsize(path + ".part")
            used = int(database.execute("SELECT COALESCE(SUM(bytes), 0) FROM files").fetchone()[0])
            if purpose != OUTPUT and used + size > self._max_total:
                raise HttpError(
                    413, f"files may take {self._max_total} bytes here, and {used} are taken; delete some", "file", "storage_full"
                )
            os.replace(path + ".part", path)
            now = int(time.time())
            values = (identity, filename[:MAX_NAME], purpose, size, now, now + seconds if seconds else None)
            database.execute("INSERT INTO files (id, filename, purpose, bytes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)", values)
            return document(database.execute("SELECT * FROM files WHERE id = ?", (identity,)).fetchone())

        try:
            return await self._state.run(insert)
        except HttpError:
            self.abandon(identity)
            raise

    def abandon(self, identity: str) -> None:
        """The upload failed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.content_path(identity) + ".part")

    async def get(self, identity: str) -> dict[str, Any]:
        """Raises HttpError 404."""
        return await self._state.run(lambda database: document(find(database, identity)))

    async def page(self, purpose: str | None, after: str | None, limit: int, ascending: bool) -> tuple[list[dict[str, Any]], bool]:
        """A page of files, and whether there are more. Raises HttpError 404 when `after` is none of them."""

        def select(database: sqlite3.Connection) -> tuple[list[dict[str, Any]], bool]:
            where = ["(expires_at IS NULL OR expires_at > ?)"]
            values: list[int | str] = [int(time.time())]
            if purpose is not None:
                where.append("purpose = ?")
                values.append(purpose)
            if after is not None:
                where.append(f"number {'>' if ascending else '<'} ?")
                values.append(find(database, after)["number"])
            order = "ASC" if ascending else "DESC"
            rows = database.execute(
                f"SELECT * FROM files WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?", [*values, limit + 1]
            )
            found = [document(row) for row in rows]
            return found[:limit], len(found) > limit

        return await self._state.run(select)

    async def delete(self, identity: str) -> None:
        """Raises HttpError 404, or 409 while a batch reads it."""

        def remove(database: sqlite3.Connection) -> None:
            find(database, identity)
            busy = "SELECT id FROM batches WHERE input_file_id = ? AND status IN ('validating', 'in_progress')"
            batch = database.execute(busy, (identity,)).fetchone()
            if batch is not None:
                raise HttpError(409, f"batch {batch['id']} still reads this file; cancel it first", "file_id", "file_in_use")
            self._forget(database, identity)

        await self._state.run(remove)

    def _prune(self, database: sqlite3.Connection) -> None:
        """Remove what has expired, and what uploads left that were killed."""
        now = time.time()
        for row in database.execute("SELECT id FROM files WHERE expires_at <= ?", (int(now),)).fetchall():
            self._forget(database, row["id"])
        for entry in os.scandir(self._state.place("files")):
            if entry.name.endswith(".part") and now - entry.stat().st_mtime > _ABANDONED_SECONDS:
                os.unlink(entry.path)

    def _forget(self, database: sqlite3.Connection, identity: str) -> None:
        database.execute("DELETE FROM files WHERE id = ?", (identity,))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.content_path(identity))


def find(database: sqlite3.Connection, identity: str) -> sqlite3.Row:
    """Raises HttpError 404."""
    row: sqlite3.Row | None = database.execute("SELECT * FROM files WHERE id = ?", (identity,)).fetchone()
    if row is None or (row["expires_at"] is not None and row["expires_at"] <= time.time()):
        raise HttpError(404, f"there is no file {identity!r:.120}", "file_id", "file_not_found")
    return row


def document(row: sqlite3.Row) -> dict[str, Any]:
    """OpenAI's file object."""
    names = ("id", "bytes", "created_at", "expires_at", "filename", "purpose")
    return {"object": "file", **{name: row[name] for name in names}, "status": "processed", "status_details": None}
