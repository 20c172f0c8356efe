"""The engine inside a user's process: a supervisor and a frontend's engine client on an event loop in a thread of their own.

`LLM` and `AsyncLLM` are two faces of it. The thread lives as long as the engine, because the kernel ends the children when the
thread that started them ends; the user's own loop, if there is one, can block or stop without the engine noticing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop
import zmq

from frontend.engine_client import EngineClient
from ipc import config as configuration
from ipc.arena import EngineStats
from ipc.config import Config, ModelInfo
from ipc.errors import ConfigError, EngineDeadError
from quire import device_choice, model_source
from quire.supervisor import ABORT_SECONDS, STOP_SECONDS, EngineFailedError, Supervisor, either

T = TypeVar("T")

CLOSE_SECONDS = 2 * STOP_SECONDS + 5


class EmbeddedEngine:
    """Starts in the constructor, which returns when the engine is ready. Usable from any thread.

    Raises ConfigError for settings or a model that cannot be used, EngineDeadError when a process failed.
    """

    client: EngineClient

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        self.config = load_config(model, settings)
        device, _ = device_choice.choose(self.config.device.device)
        self.model: ModelInfo = model_source.load(self.config)
        # It sees too little of this object to keep it alive: an LLM that nobody holds any more ends its engine.
        self._thread = _EngineThread(self.config, self.model, device)
        self._finalizer = weakref.finalize(self, self._thread.close)
        try:
            self._thread.ready.result()
        except BaseException:
            self._finalizer()
            raise
        self.client = self._thread.client

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, as 'worker 0'."""
        return self._thread.supervisor.pids

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the engine's loop; cancelling the future cancels it. Raises EngineDeadError when there is no engine."""
        try:
            self.check()
        except EngineDeadError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._thread.loop)

    def stats(self) -> EngineStats:
        """The scheduler's counters, read from shared memory. Raises EngineDeadError when there is no engine."""
        self.check()
        return EngineStats.of(self._thread.supervisor.arena.status("scheduler"))

    @property
    def dead(self) -> str:
        """Why there is no engine any more; '' while it lives."""
        return self._thread.dead

    def check(self) -> None:
        """Raise EngineDeadError if the engine cannot be used."""
        if os.getpid() != self._thread.owner:
            raise EngineDeadError("the engine belongs to the process that this one was forked from")
        if self.dead:
            raise EngineDeadError(self.dead)

    def close(self) -> None:
        """End all processes; a second call does nothing."""
        self._finalizer()


class _EngineThread:
    """The thread, its loop, and what runs there."""

    loop: asyncio.AbstractEventLoop
    supervisor: Supervisor
    client: EngineClient

    def __init__(self, config: Config, model: ModelInfo, device: Any) -> None:
        self.owner = os.getpid()
        self.dead = ""
        self.ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._config, self._model, self._device = config, model, device
        # A daemon: Python waits for other threads before it calls what ends this one.
        self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if os.getpid() != self.owner:
            return
        if self._thread.is_alive() and hasattr(self, "loop"):
            try:
                self.loop.call_soon_threadsafe(self._closing.set)
            except RuntimeError:  # it ended in this moment
                pass
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._live())
        except BaseException as error:
            self.dead = self.dead or f"the engine's thread failed: {type(error).__name__}: {error}"
            if not self.ready.done():
                self.ready.set_exception(error)

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self.supervisor = Supervisor(self._config, self._model, self._device, on_scheduler=self._on_scheduler)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        closing = self.loop.create_task(self._closing.wait())
        starting = self.loop.create_task(self._start(context))
        seconds = STOP_SECONDS
        try:
            await asyncio.wait({closing, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self.ready.set_result(None)
                await either(closing, self.supervisor.failed)
                if self.supervisor.failed.done():
                    self.supervisor.failed.result()
            self.dead = "the engine was closed"
        except EngineFailedError as error:
            seconds = ABORT_SECONDS
            self.dead = str(error)
            if not self.ready.done():
                self.ready.set_exception(ConfigError(str(error)) if error.user_error else EngineDeadError(str(error)))
        finally:
            starting.cancel()
            closing.cancel()
            self.dead = self.dead or "the engine ended"
            if hasattr(self, "client"):
                self.client.engine_died(self.dead)
                self.client.close()
            await self.supervisor.stop(seconds)
            context.destroy(linger=0)

    async def _start(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        processes = self.loop.create_task(self.supervisor.start())
        await asyncio.sleep(0)  # they start; meanwhile this thread reads the tokenizer
        self.client = EngineClient(self.supervisor.frontend_spec(), context)
        await self.client.start()
        await processes

    def _on_scheduler(self, epoch: int) -> None:
        if hasattr(self, "client"):
            self.client.scheduler_changed(epoch)


def load_config(model: str, settings: dict[str, Any]) -> Config:
    """Settings by field name over QUIRE_* variables. Inside a program the children log warnings only, unless asked for more."""
    flags: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    if model:
        flags["model"] = os.fspath(model)
    if "log_level" not in flags and configuration.ENV_PREFIX + "LOG_LEVEL" not in os.environ:
        flags["log_level"] = "warning"
    return configuration.load(flags)
