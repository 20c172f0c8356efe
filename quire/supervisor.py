"""Starts an engine's processes, restarts what dies (what hangs is killed by `quire/watchdog.py`), and ends them in order.

It owns what must outlive any one of them: the runtime directory, the listening socket, the arena, the death pipe. It runs on one event
loop, in the main thread for `quire serve`, in a thread of its own for `LLM`; the kernel's parent-death signal follows that thread.

Who is restarted with whom: the workers hold one group's KV blocks together, and those blocks belong to one scheduler. So a
worker's death renews all workers, the scheduler's death renews scheduler and workers, a frontend's death renews that frontend alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import msgspec
import zmq

from ipc import logs
from ipc.arena import Arena, Dimensions
from ipc.channels import Channel
from ipc.config import ChildSpec, Config, ModelInfo
from ipc.errors import EngineDeadError
from ipc.messages import (
    ChildToSupervisor,
    Drain,
    Drained,
    Fatal,
    Hello,
    Loading,
    PeerGone,
    Peers,
    PrefixCacheReset,
    Ready,
    ResetPrefixCache,
    SetLogLevel,
    Stop,
)
from quire import child_process
from quire.child_process import Child
from quire.early_workers import EarlyWorkers
from quire.runtime_dir import RuntimeDir
from quire.systemd import Notifier
from quire.version import __version__
from quire.watchdog import Watchdog

log = logging.getLogger(__name__)

Role = Literal["frontend", "scheduler", "worker"]

MAX_RESTARTS = 5
RESTART_WINDOW = 60.0
STOP_SECONDS = 5.0
# A failed start has nothing to lose; a child that reads weights would notice a Stop only much later.
ABORT_SECONDS = 1.0
# A child's last message travels through ZeroMQ, its end through the kernel: the message may come second.
LAST_WORDS_SECONDS = 0.5
ADMIN_SECONDS = 5.0


class EngineFailedError(EngineDeadError):
    """The engine stopped by itself. user_error: the cause is the configuration or the model (exit code 2), not a crash (1)."""

    def __init__(self, message: str, user_error: bool = False) -> None:
        super().__init__(message)
        self.user_error = user_error


class Supervisor:
    """One engine's processes.

    listener: the HTTP socket its frontends accept on; None for an embedded engine, whose frontend lives in this process (`frontend_spec`).
    on_scheduler: called with the new scheduler's epoch after a restart. on_loading: called with each Loading message. early: worker
    processes that were started already. log_level: of all processes. failed: a future that ends with EngineFailedError when the engine
    is beyond repair.
    """

    failed: asyncio.Future[None]

    def __init__(
        self,
        config: Config,
        model: ModelInfo,
        device: Literal["cpu", "cuda"],
        listener: socket.socket | None = None,
        on_scheduler: Callable[[int], None] | None = None,
        on_loading: Callable[[Loading], None] | None = None,
        early: EarlyWorkers | None = None,
    ) -> None:
        self._config, self._model, self._device, self._listener = config, model, device, listener
        self._on_scheduler, self._on_loading, self._early = on_scheduler, on_loading, early
        self._children: dict[tuple[Role, int], Child] = {}
        self._dying: set[int] = set()  # pids of killed workers whose end is awaited before the next group starts
        self._restarts: deque[float] = deque()
        self.log_level: str = config.log.log_level
        self._reset: asyncio.Future[int] | None = None
        self._epoch = 0
        self._scheduler_epoch = self._next_epoch()
        self._serving = False  # all were ready once
        self._draining = False
        self._ending = False
        self._notifier = Notifier()
        self._runtime = RuntimeDir.create()
        try:
            self.arena = Arena.create(Dimensions.of(config, model))
        except BaseException:
            self._runtime.remove()
            raise
        self._death_read, self._death_write = os.pipe()

    @property
    def runtime_dir(self) -> str:
        return self._runtime.path

    @property
    def children(self) -> list[Child]:
        """Those that live."""
        return list(self._children.values())

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the living children by name, as 'worker 0'."""
        return {child.name: child.process.pid for child in self._children.values()}

    async def start(self) -> None:
        """Start all processes at once and return when all are ready. Raises EngineFailedError with the first child's one reason."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        # Whoever awaits `failed` gets the exception; nobody must.
        self.failed.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        self._changed = asyncio.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._channel: Channel[ChildToSupervisor] = Channel.router(
            self._context, f"ipc://{self.runtime_dir}/supervisor", ChildToSupervisor, 0
        )
        self._channel.attach(self._loop, self._on_message)
        watchdog = Watchdog(self._children.values(), self.arena.status("scheduler"), self._notifier)
        self._watching = self._loop.create_task(watchdog.run())
        self._start_workers()  # the slowest first
        self._start("scheduler", 0, self._scheduler_epoch)
        for index in range(self._config.parallel.frontends if self._listener is not None else 0):
            self._start("frontend", index, self._next_epoch())
        await self._until(lambda: all(child.ready for child in self._children.values()))
        self._serving = True
        self._notifier.send("READY=1", f"STATUS=serving {self._model.name}")

    async def drain(self, timeout: float) -> None:
        """Let running requests finish, for at most `timeout` seconds; nothing new is taken meanwhile."""
        self._draining = True
        self._notifier.send("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int((timeout + 2 * STOP_SECONDS) * 1e6)}")
        deadline = Drain(time.monotonic_ns() + int(timeout * 1e9))
        # The scheduler last: until the frontends are done, what they have accepted must still get in.
        for role in ("frontend", "scheduler"):
            draining = [child for child in self._children.values() if child.spec.role == role and child.ready]
            for child in draining:
                self._send(child, deadline)
            remaining = deadline.deadline_ns / 1e9 - time.monotonic()
            try:
                await asyncio.wait_for(self._until(partial(_all_drained, draining)), max(0.0, remaining))
            except (TimeoutError, EngineFailedError):
                return

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End every process, by force after `seconds`, and give back all that the engine held. A second call does nothing."""
        if self._ending:
            return
        self._ending = True
        self._notifier.send("STOPPING=1")
        if hasattr(self, "_watching"):
            self._watching.cancel()
            await self._end_children(seconds)
            self._channel.close()
            self._context.destroy(linger=0)
        for fd in (self._death_read, self._death_write):
            os.close(fd)
        self._runtime.remove()

    # for quire/admin.py

    def set_log_level(self, level: str) -> None:
        """Of all processes, those that will be started included."""
        self.log_level = level
        logs.set_level(level)
        for child in self._children.values():
            self._send(child, SetLogLevel(level))

    async def reset_prefix_cache(self) -> int:
        """Forget all KV blocks that no request uses; how many there were. Raises TimeoutError."""
        if self._reset is None or self._reset.done():
            self._reset = self._loop.create_future()
            for child in self._of("scheduler"):
                self._send(child, ResetPrefixCache())
        return await asyncio.wait_for(asyncio.shield(self._reset), ADMIN_SECONDS)

    def frontend_spec(self) -> ChildSpec:
        """The spec of a frontend inside this process."""
        return self._spec("frontend", 0, self._next_epoch())

    # starting

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _spec(self, role: Role, index: int, epoch: int) -> ChildSpec:
        fds = {"arena": self.arena.fd, "death": self._death_read}
        if role == "frontend" and self._listener is not None:
            fds["listen"] = self._listener.fileno()
        return ChildSpec(
            role=role,
            index=index,
            epoch=epoch,
            scheduler_epoch=self._scheduler_epoch,
            runtime_dir=self.runtime_dir,
            device=self._device,
            config=self._config,
            model=self._model,
            fds=fds,
            version=__version__,
        )

    def _start(self, role: Role, index: int, epoch: int) -> None:
        early = self._early.take() if role == "worker" and self._early is not None else None
        child = child_process.start(self._spec(role, index, epoch), self.arena.status(role, index), early)
        self._children[role, index] = child
        self._loop.add_reader(child.pidfd, self._on_exit, child)
        log.debug("started the %s, pid %d, epoch %d", child.name, child.process.pid, epoch)

    def _start_workers(self) -> None:
        """All ranks of one group life share an epoch, so that they can find each other by it."""
        epoch = self._next_epoch()
        for rank in range(self._config.parallel.tensor_parallel_size):
            self._start("worker", rank, epoch)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; raises what `failed` holds if that comes first."""
        while not condition():
            self._changed.clear()
            waiter = self._loop.create_task(self._changed.wait())
            await either(waiter, self.failed)
            waiter.cancel()
            if self.failed.done():
                self.failed.result()

    # messages

    def _send(self, child: Child, message: msgspec.Struct) -> None:
        if child.introduced:
            self._channel.send(message, child.spec.identity)

    def _on_message(self, peer: str, message: ChildToSupervisor) -> None:
        child = next((child for child in self._children.values() if child.spec.identity == peer), None)
        if child is None:
            return  # the last words of one who was already replaced
        child.sign_of_life()
        match message:
            case Hello():
                child.introduced = True
                if self.log_level != self._config.log.log_level:
                    self._send(child, SetLogLevel(self.log_level))
                # A frontend that began before the scheduler was replaced knows a dead address.
                if child.spec.role == "frontend" and child.spec.scheduler_epoch != self._scheduler_epoch:
                    self._send(child, Peers(self._scheduler_epoch))
            case Ready():
                child.ready, child.ready_since = True, time.monotonic()
                level = logging.INFO if self._serving else logging.DEBUG
                log.log(level, "the %s is ready%s", child.name, message.detail and f": {message.detail}")
            case Loading():
                if self._on_loading is not None:
                    self._on_loading(message)
            case Fatal():
                child.fatal, child.user_error = message.message, message.user_error
            case Drained():
                child.drained = True
            case PrefixCacheReset():
                if self._reset is not None and not self._reset.done():
                    self._reset.set_result(message.num_blocks)
        self._changed.set()

    # ends

    def _on_exit(self, child: Child) -> None:
        self._loop.remove_reader(child.pidfd)
        code = child.process.wait()
        if code > 0 and not child.fatal and not self._ending:
            self._loop.call_later(LAST_WORDS_SECONDS, self._on_end, child)
        else:
            self._on_end(child)

    def _on_end(self, child: Child) -> None:
        key: tuple[Role, int] = (child.spec.role, child.spec.index)
        if self._children.get(key) is child:
            del self._children[key]
        self._channel.forget(child.spec.identity)
        child.release()
        child.drained = True  # nothing is in flight in a dead process
        self._changed.set()
        if self._ending:
            return
        if child.process.pid in self._dying:
            self._dying.discard(child.process.pid)
            self._renew_workers()
            return
        why = child.end_of_life()
        if not self._serving:
            self._fail(why, child.user_error)
            return
        log.error("%s; restarting", why)
        if self._may_restart(why):
            self._restart(child)

    def _may_restart(self, why: str) -> bool:
        now = time.monotonic()
        self._restarts.append(now)
        while self._restarts[0] < now - RESTART_WINDOW:
            self._restarts.popleft()
        if len(self._restarts) <= MAX_RESTARTS:
            return True
        self._fail(f"more than {MAX_RESTARTS} restarts in {RESTART_WINDOW:.0f} s; giving up. The last one: {why}", False)
        return False

    def _restart(self, dead: Child) -> None:
        gone = PeerGone(dead.spec.role, dead.spec.index, dead.spec.epoch)
        if dead.spec.role == "scheduler":
            self._scheduler_epoch = self._next_epoch()
            self._start("scheduler", 0, self._scheduler_epoch)
            self._kill_workers()
            for child in self._of("frontend"):
                self._send(child, Peers(self._scheduler_epoch))
            if self._on_scheduler is not None:
                self._on_scheduler(self._scheduler_epoch)
            return
        for child in self._of("scheduler"):
            self._send(child, gone)
        if dead.spec.role == "worker":
            self._kill_workers()
        elif not self._draining:
            self._start("frontend", dead.spec.index, self._next_epoch())

    def _of(self, role: Role) -> list[Child]:
        return [child for child in self._children.values() if child.spec.role == role]

    def _kill_workers(self) -> None:
        """End what is left of the group; the next one starts when all its processes are gone and their memory is free."""
        for worker in self._of("worker"):
            self._dying.add(worker.process.pid)
            worker.kill("belonged to a group that lost a member")
            for scheduler in self._of("scheduler"):
                self._send(scheduler, PeerGone("worker", worker.spec.index, worker.spec.epoch))
        self._renew_workers()

    def _renew_workers(self) -> None:
        if not self._dying and not self._of("worker"):
            self._start_workers()

    def _fail(self, message: str, user_error: bool) -> None:
        if not self.failed.done():
            self.failed.set_exception(EngineFailedError(message, user_error))

    async def _end_children(self, seconds: float) -> None:
        for child in self._children.values():
            if child.introduced:
                self._send(child, Stop())
            else:
                child.kill("was not wanted any more")
        children = list(self._children.values())
        if not await self._gone(children, seconds):
            for child in self._children.values():
                log.warning("the %s did not end in %.0f s; killing it", child.name, seconds)
                child.kill("did not end")
            await self._gone(children, STOP_SECONDS)

    async def _gone(self, children: Iterable[Child], seconds: float) -> bool:
        """Wait until all are reaped; False if that takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while any(child.process.returncode is None for child in children):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                pass
        return True


async def either(first: asyncio.Future[Any], second: asyncio.Future[Any]) -> None:
    """Return when one of them is done, whatever it holds."""
    await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)


def _all_drained(children: Iterable[Child]) -> bool:
    return all(child.drained for child in children)
