"""What every child process of an engine does the same way: one loop, one mailbox, a heartbeat, and no life after its supervisor.

A subclass implements `start` (build everything, then call `ready`) and the handlers it needs. Work happens in callbacks on the loop; an
exception in any of them ends the process with a Fatal message, because an actor in an unknown state is worse than a dead one.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from typing import Any

import uvloop
import zmq

from ipc import logs
from ipc.arena import Arena, Dimensions, Stat, State
from ipc.channels import Channel
from ipc.config import ChildSpec
from ipc.errors import ConfigError
from ipc.messages import Drain, Fatal, Hello, Loading, PeerGone, Peers, Ready, ResetPrefixCache, SetLogLevel, Stop, SupervisorToChild

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
LAST_WORDS_MS = 1000
_PR_SET_PDEATHSIG = 1


class Actor:
    """Base of frontend, scheduler and worker processes.

    Attributes for subclasses: spec, loop, context (ZeroMQ), arena, status (own record, int64 indexed by Stat), supervisor (channel).
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.arena = Arena(spec.fds["arena"], Dimensions.of(spec.config, spec.model))
        self.status = self.arena.status(spec.role, spec.index)
        self._exit_code = 0
        self._stopped: asyncio.Event

    async def start(self) -> None:
        """Build everything this process needs; call `ready` when it serves."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Release what must not be left to process exit; called once, before the loop ends."""

    def on_drain(self, message: Drain) -> None:
        """Take nothing new and answer Drained when nothing is in flight."""

    def on_peers(self, message: Peers) -> None:
        """The scheduler lives in a new epoch."""

    def on_peer_gone(self, message: PeerGone) -> None:
        """Another process died."""

    def on_reset_prefix_cache(self) -> None:
        """Forget what no request uses; the scheduler's matter."""

    def ready(self, detail: str = "") -> None:
        self.status[Stat.STATE] = State.READY
        self.supervisor.send(Ready(self.spec.role, self.spec.index, detail))

    def loading(self, what: str, done: int = 0, total: int = 0) -> None:
        """Tell the user how far start-up is."""
        self.supervisor.send(Loading(self.spec.role, self.spec.index, what, done, total))

    def fail(self, error: BaseException) -> None:
        """End this process, saying why."""
        user_error = isinstance(error, ConfigError)
        if user_error:
            message = str(error)
        else:
            message = f"{type(error).__name__}: {error}"
            log.error("%s", "".join(traceback.format_exception(error)).rstrip())
        self.supervisor.send(Fatal(self.spec.role, self.spec.index, message, user_error))
        self.finish(1)

    def finish(self, exit_code: int = 0) -> None:
        """End the loop; the process exits with `exit_code`."""
        self._exit_code = self._exit_code or exit_code
        self._stopped.set()

    def heartbeat(self) -> None:
        """Called each second on the loop; subclasses may add to it."""
        self.status[Stat.HEARTBEAT_NS] = time.monotonic_ns()

    def run(self) -> int:
        """Live until told to stop; returns the exit code."""
        _die_with_parent()
        logs.configure(
            self.spec.role if self.spec.role == "scheduler" else f"{self.spec.role}-{self.spec.index}", self.spec.config.log.log_level
        )
        # The supervisor decides when children end; a Ctrl-C or a SIGTERM to the whole group must not race it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return uvloop.run(self._live())

    async def _live(self) -> int:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._on_loop_exception)
        self._stopped = asyncio.Event()
        self.status[:] = 0
        self.status[Stat.EPOCH], self.status[Stat.PID], self.status[Stat.STATE] = self.spec.epoch, os.getpid(), State.STARTING
        self.supervisor: Channel[Any] = Channel.dealer(
            self.context, self.spec.address("supervisor"), self.spec.identity, SupervisorToChild, None
        )
        self.supervisor.attach(self.loop, self._on_supervisor)
        self.loop.add_reader(self.spec.fds["death"], self._on_supervisor_death)
        self.supervisor.send(Hello(self.spec.role, self.spec.index, os.getpid()))
        beat = self.loop.create_task(self._beat())
        try:
            await self.start()
        except Exception as error:
            self.fail(error)
        await self._stopped.wait()
        beat.cancel()
        await self.stop()
        # A last Fatal or Drained still has to pass ZeroMQ's I/O thread, which on a busy machine takes longer than one would think.
        self.supervisor.close(LAST_WORDS_MS)
        self.context.destroy(linger=0)
        return self._exit_code

    async def _beat(self) -> None:
        while True:
            self.heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _on_supervisor(self, _peer: str, message: Any) -> None:
        match message:
            case Drain():
                self.status[Stat.STATE] = State.DRAINING
                self.on_drain(message)
            case Stop():
                self.finish()
            case Peers():
                self.on_peers(message)
            case PeerGone():
                self.on_peer_gone(message)
            case SetLogLevel():
                logs.set_level(message.level)
            case ResetPrefixCache():
                self.on_reset_prefix_cache()

    def _on_supervisor_death(self) -> None:
        log.error("the supervisor is gone; ending")
        os._exit(1)

    def _on_loop_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self.fail(error)
        else:
            log.error("%s", context.get("message"))


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies; the death pipe covers parents that spawn from a short-lived thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
