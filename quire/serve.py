"""`quire serve`: one engine in the foreground, until a signal or its failure."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from ipc import logs
from ipc.config import Config
from ipc.messages import Loading
from quire import device_choice, listening, model_source, open_files
from quire.admin import Admin
from quire.early_workers import EarlyWorkers
from quire.supervisor import ABORT_SECONDS, STOP_SECONDS, EngineFailedError, Supervisor, either

log = logging.getLogger(__name__)

OK, CRASHED, USER_ERROR = 0, 1, 2


def serve(config: Config, started: float, early: EarlyWorkers | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. started: time.monotonic() when the user began to wait. early: workers
    that were started already.

    Raises ConfigError before any process is started.
    """
    logs.configure("supervisor", config.log.log_level)
    config = open_files.allow(config)
    listener = listening.open_socket(config.server)
    config = listening.as_bound(config, listener)
    with listener:
        device, remark = device_choice.choose(config.device.device)
        if remark:
            log.info("%s", remark)
        model = model_source.load(config)
        if listening.is_public(listener) and not (config.server.api_key or config.server.api_key_file):
            log.warning("other machines can reach this server and no --api-key is set")
        supervisor = Supervisor(config, model, device, listener, on_loading=LoadingLog(), early=early)
        return uvloop.run(_live(supervisor, config, listener, started))


async def _live(supervisor: Supervisor, config: Config, listener: socket.socket, started: float) -> int:
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    admin = Admin(supervisor, lambda: signals.put_nowait(signal.SIGTERM))
    seconds = STOP_SECONDS
    try:
        first = loop.create_task(signals.get())
        if not await _unless(first, supervisor.start()):
            return OK
        await admin.start()
        log.info("admin socket: %s", admin.path)
        _announce(listening.url_of(listener), config, started)
        await either(first, supervisor.failed)
        if supervisor.failed.done():
            supervisor.failed.result()
        log.info("%s: no new requests; running ones get up to %.0f s", first.result().name, config.server.shutdown_timeout)
        await _unless(loop.create_task(signals.get()), supervisor.drain(config.server.shutdown_timeout))
        return OK
    except EngineFailedError as error:
        seconds = ABORT_SECONDS
        print(f"quire: {error}", file=sys.stderr, flush=True)
        return USER_ERROR if error.user_error else CRASHED
    finally:
        admin.close()
        await supervisor.stop(seconds)


async def _unless(interruption: asyncio.Task[signal.Signals], work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`; False if the interruption came first, and `work` is cancelled then. Raises what `work` raises."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, interruption}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.wait({task})
    return False


def _announce(url: str, config: Config, started: float) -> None:
    """Tell where it serves, and a request that can be pasted as it stands."""
    shown = config.server.api_key[0] if config.server.api_key else "<key>" if config.server.api_key_file else ""
    key = f" -H 'Authorization: Bearer {shown}'" if shown else ""
    body = json.dumps({"messages": [{"role": "user", "content": "Count from 3 to 9."}]})
    print(f"quire is ready at {url} after {time.monotonic() - started:.1f} s. Try:", flush=True)
    print(f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'", flush=True)


class LoadingLog:
    """Logs the start and the end of each thing a child says it loads, and every tenth in between."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, int, str], int] = {}

    def __call__(self, message: Loading) -> None:
        key = (message.role, message.index, message.what)
        tenth = 10 * message.done // message.total if message.total else 0
        if self._said.get(key, -1) < tenth:
            self._said[key] = tenth
            progress = f" {100 * message.done // message.total} %" if message.total else ""
            log.info("%s %d: %s%s", message.role, message.index, message.what, progress)
