"""Runs batches: line by line through the very handlers that answer clients, behind everything that clients wait for.

Of all processes that share a state directory one is the runner: the one that holds the lock. When it ends, however it does, the kernel
gives the lock to the next, which goes on where the records end. A named pipe wakes the runner when there is something new.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from frontend import http_errors
from frontend.background_request import background_request
from frontend.batch_store import BatchStore, Ran
from frontend.behind_clients import TURNS
from frontend.file_store import OUTPUT, FileStore
from frontend.http_errors import HttpError
from frontend.schemas.batches import MAX_CUSTOM_ID, BatchLine
from frontend.schemas.embeddings import BYTE_FORMATS
from frontend.sse import encode
from frontend.state_dir import StateDir

if TYPE_CHECKING:
    from frontend.app import App

log = logging.getLogger(__name__)

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MAX_LINES = 50_000
MAX_ERRORS = 100
MAX_ACTIVE = 16  # batches at a time
RETRY_SECONDS = 1.0
DRAINING = "draining"
_LINE = msgspec.json.Decoder(BatchLine)
Handler = Callable[["App", web.BaseRequest], Awaitable[web.StreamResponse]]


class BatchRunner:
    """One per frontend; `wake` whenever there may be something to do."""

    def __init__(self, app: App, state: StateDir, files: FileStore, batches: BatchStore, handlers: dict[str, Handler]) -> None:
        """handlers: by endpoint."""
        self._app, self._state, self._files, self._batches, self._handlers = app, state, files, batches, handlers
        self._news = asyncio.Event()
        # Lines that run, and completions or vectors of theirs that are in the engine: a line may ask for thousands.
        self._places, self._turns = (asyncio.Semaphore(app.server_config.batch_concurrency) for _ in range(2))
        self._pipe = self._lock = -1
        self._waiting = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection = app.make_server()()

    def start(self) -> None:
        """Take up what an earlier life of the server has left.

        Several frontends make the directory now: each must wait for the lock before anything is uploaded through another.
        """
        if self._state.exists or (self._app.spec.config.parallel.frontends > 1 and self._state.make()):
            self.wake()

    def wake(self) -> None:
        """Tell the runner, whichever process it is, that something is new."""
        if self._pipe < 0:
            self._open()
        with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            os.write(self._pipe, b".")

    async def close(self) -> None:
        """End; what runs is not recorded and will be run again."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lock >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
        for fd in (self._pipe, self._lock):
            if fd >= 0:
                os.close(fd)
        self._pipe = self._lock = -1

    def _open(self) -> None:
        """Queue up for the lock. The wait is in a thread of its own, because only a blocking flock costs nothing while it lasts."""
        name = self._state.place("batches.pipe")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(name, 0o600)
        # Open for both, so that writing never fails for want of a reader and reading never sees an end.
        self._pipe = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        lock = os.open(self._state.place("batches.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        loop = asyncio.get_running_loop()

        def wait() -> None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the lock goes with the process
                loop.call_soon_threadsafe(self._elected, lock)

        threading.Thread(target=wait, name="batch-lock", daemon=True).start()

    def _elected(self, lock: int) -> None:
        if self._pipe < 0:
            os.close(lock)  # closed meanwhile
            return
        self._lock = lock
        asyncio.get_running_loop().add_reader(self._pipe, self._on_pipe)
        self._news.set()
        self._spawn(self._watch())

    def _on_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe, 65536)
        self._news.set()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self) -> None:
        """Give every unfinished batch a task."""
        running: dict[str, asyncio.Task[None]] = {}
        while True:
            await self._news.wait()
            self._news.clear()
            if self._app.admission.draining:
                continue
            running = {identity: task for identity, task in running.items() if not task.done()}
            for identity in await self._batches.unfinished():
                if identity not in running and len(running) < MAX_ACTIVE:
                    running[identity] = self._spawn(self._run(identity))
                    running[identity].add_done_callback(lambda _: self._news.set())

    async def _run(self, identity: str) -> None:
        """Bring one batch to its end, from wherever it stands."""
        try:
            row = await self._batches.row(identity)
            if row["status"] == "validating":
                await self._validate(row)
                row = await self._batches.row(identity)
            reason = ""
            if row["status"] == "in_progress":
                reason = await self._run_lines(row)
            if reason == DRAINING:
                return  # it goes on in the next life
            await self._finish(await self._batches.row(identity), reason)
        except Exception as error:
            log.error("batch %s failed", identity, exc_info=error)
            await asyncio.sleep(RETRY_SECONDS)  # should even the next line fail, then not in a tight loop
            problem = {"code": "internal_error", "message": http_errors.of(error).message, "param": None, "line": None}
            await self._batches.move(
                identity, ("validating", "in_progress", "finalizing", "cancelling"), "failed", errors=json.dumps([problem])
            )

    # reading the input

    async def _validate(self, row: sqlite3.Row) -> None:
        path, endpoint = self._files.content_path(row["input_file_id"]), row["endpoint"]
        limit = self._app.server_config.max_body_bytes
        total, model, problems = await asyncio.get_running_loop().run_in_executor(None, _check, path, endpoint, limit)
        if problems:
            await self._batches.move(row["id"], ("validating",), "failed", errors=json.dumps(problems), total=total)
        else:
            await self._batches.move(row["id"], ("validating",), "in_progress", total=total, model=model)

    # running

    async def _run_lines(self, row: sqlite3.Row) -> str:
        """Run what has not been run yet; returns why it ended early: '', 'cancelled', 'expired' or DRAINING."""
        done = await self._batches.lines_done(row["number"])
        tasks: set[asyncio.Task[None]] = set()
        reason = ""
        try:
            for number, line in _lines(self._files.content_path(row["input_file_id"])):
                if number in done:
                    continue
                reason = await self._why_stop(row)
                if reason:
                    break
                await self._places.acquire()
                task = self._spawn(self._run_line(row, number, line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks and not reason:
                await asyncio.wait(tasks, timeout=RETRY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                reason = await self._why_stop(row) if tasks else ""
        finally:
            for task in list(tasks) if reason != DRAINING else ():
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return reason

    async def _why_stop(self, row: sqlite3.Row) -> str:
        if self._app.admission.draining:
            return DRAINING
        now = await self._batches.row(row["id"])
        if now["status"] == "cancelling":
            return "cancelled"
        return "expired" if time.time() >= now["expires_at"] else ""

    async def _run_line(self, row: sqlite3.Row, number: int, line: bytes) -> None:
        """A place has been taken for it."""
        self._app.hold()  # a shutdown waits for lines that run
        try:
            request = _LINE.decode(line)
            while not self._app.admission.draining:
                status, body = await self._call(request)
                if status not in (429, 503):
                    break
                # The engine is full or is being restarted: that is no answer to this line.
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return
            record = _record(
                request.custom_id, {"status_code": status, "request_id": secrets.token_hex(12), "body": msgspec.Raw(body)}, None
            )
            await self._batches.record(row["number"], Ran(number, status != 200, record, _tokens(body) if status == 200 else (0, 0, 0, 0)))
        finally:
            self._places.release()
            self._app.release()

    async def _call(self, line: BatchLine) -> tuple[int, bytes]:
        """Status and body that a client would get for this line."""
        try:
            for name in ("stream", "background"):
                if line.body.get(name):
                    raise HttpError(400, f"{name} is not possible in a batch", name, "not_supported")
            if line.body.get("encoding_format") in BYTE_FORMATS:
                raise HttpError(
                    400, "encoding_format may be float or base64 in a batch, whose results are JSON", "encoding_format", "not_supported"
                )
            TURNS.set(self._turns)
            request = background_request(self._connection, line.url, encode(line.body))
            response = await self._handlers[line.url](self._app, request)
        except Exception as error:
            answer = http_errors.of(error)
            return answer.status, answer.body()
        assert isinstance(response, web.Response) and isinstance(response.body, bytes)
        return response.status, response.body

    # ending

    async def _finish(self, row: sqlite3.Row, reason: str) -> None:
        """Write the files and say how it ended."""
        status = row["status"]
        end = "cancelled" if status == "cancelling" else reason or "completed"
        if status == "in_progress" and end == "completed":
            if not await self._batches.move(row["id"], ("in_progress",), "finalizing"):
                end = "cancelled"
        elif status not in ("in_progress", "cancelling", "finalizing"):
            return  # it failed
        if end == "expired":
            await self._give_up_rest(row)
        files = {}
        for name, failed in (("output_file_id", False), ("error_file_id", True)):
            files[name] = await self._write(row, failed)
        if await self._batches.move(row["id"], ("in_progress", "cancelling", "finalizing"), end, **files):
            await self._batches.forget_lines(row["number"])

    async def _give_up_rest(self, row: sqlite3.Row) -> None:
        """Each line that has not been run gets a record that says so."""
        done = await self._batches.lines_done(row["number"])
        message = "this line was not run before the batch's completion window ended"
        for number, line in _lines(self._files.content_path(row["input_file_id"])):
            if number not in done:
                record = _record(_LINE.decode(line).custom_id, None, {"code": "batch_expired", "message": message})
                await self._batches.record(row["number"], Ran(number, True, record))

    async def _write(self, row: sqlite3.Row, failed: bool) -> str | None:
        identity, path = await self._files.begin()
        if not await self._batches.write_records(row["number"], failed, path):
            self._files.abandon(identity)
            return None
        name = f"{row['id']}_{'error' if failed else 'output'}.jsonl"
        kept = await self._files.keep(identity, name, OUTPUT, row["output_seconds"])
        return str(kept["id"])


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Lines with something in them, by number from 1."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _check(path: str, endpoint: str, limit: int) -> tuple[int, str | None, list[dict[str, Any]]]:
    """How many requests there are, the model of the first, and what is wrong with them."""
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    total, model = 0, None

    def wrong(code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        problems.append({"code": code, "message": message, "param": param, "line": line})

    for number, line in _lines(path):
        total += 1
        if total > MAX_LINES:
            wrong("too_many_tasks", f"a batch may have at most {MAX_LINES} requests")
        if len(problems) >= MAX_ERRORS or total > MAX_LINES:
            break
        if len(line) > limit:
            wrong("line_too_long", f"a line may have at most {limit} bytes", number)
            continue
        try:
            request = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            wrong("invalid_json_line", str(error).replace("`", "'")[:300], number)
            continue
        if not 0 < len(request.custom_id) <= MAX_CUSTOM_ID:
            wrong("invalid_custom_id", f"custom_id must have 1 to {MAX_CUSTOM_ID} characters", number, "custom_id")
        elif request.custom_id in seen:
            wrong("duplicate_custom_id", f"custom_id {request.custom_id!r:.80} is there twice", number, "custom_id")
        elif request.url != endpoint:
            wrong("mismatched_endpoint", f"the line's url is {request.url!r:.80}, the batch's endpoint {endpoint}", number, "url")
        seen.add(request.custom_id)
        named = request.body.get("model")
        model = model or (named if isinstance(named, str) else None)
    if not total:
        wrong("empty_file", "the file has no requests")
    return total, model, problems


def _record(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    return encode({"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, "response": response, "error": error})


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Chat and completions call it prompt, Responses input."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def _tokens(body: bytes) -> tuple[int, int, int, int]:
    usage = _ANSWER.decode(body).usage or _Usage()
    read = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    written = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return (
        usage.prompt_tokens + usage.input_tokens,
        read.cached_tokens or 0,
        usage.completion_tokens + usage.output_tokens,
        written.reasoning_tokens or 0,
    )
