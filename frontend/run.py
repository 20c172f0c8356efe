"""Entry point of a frontend process."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from typing import Any

from frontend.acceptor import Acceptor
from frontend.app import App
from frontend.connection import HttpServer
from frontend.engine_client import EngineClient
from frontend.metrics import Metrics
from ipc.actor import Actor
from ipc.arena import Stat, State
from ipc.config import ChildSpec
from ipc.errors import EngineDeadError
from ipc.messages import Drain, Drained, Peers

log = logging.getLogger(__name__)

BACKLOG = 4096
LAST_WORDS_SECONDS = 0.5


def run(spec: ChildSpec) -> int:
    """Serve HTTP on the inherited socket until told to stop; returns the exit code."""
    return Frontend(spec).run()


class Frontend(Actor):
    """HTTP in front of the engine. The listening socket is the supervisor's, shared with the other frontends."""

    app: App

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self._acceptor: Acceptor | None = None
        self._for_peers: asyncio.Server | None = None
        self._http: HttpServer | None = None
        self._drained = False
        count = spec.config.parallel.frontends
        self._others = [self.arena.status("frontend", index) for index in range(count) if index != spec.index]
        self._metrics = Metrics(spec.runtime_dir, spec.index)
        self.client = EngineClient(spec, self.context, self.arena, metrics=self._metrics)

    async def start(self) -> None:
        """Load the tokenizer, then accept connections."""
        self.loading("tokenizer")
        await self.client.start()
        self.app = App(self.spec, self.arena, self.client, self._metrics, self.spec.version)
        listener = socket.socket(fileno=self.spec.fds["listen"])
        listener.setblocking(False)
        self._http = self.app.make_server()
        listener.listen(BACKLOG)
        self._acceptor = Acceptor(self.loop, listener, self._http, lambda: int(self.status[Stat.OPEN_CONNECTIONS]), self._least_connections)
        if self.app.peers.count > 1:
            self._for_peers = await self.loop.create_unix_server(self._http, self.app.peers.address(self.spec.index))
        self.app.batch_runner.start()
        # What start-up made lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self.ready()

    async def stop(self) -> None:
        """Close connections; what still runs is aborted in the scheduler."""
        for server in (self._acceptor, self._for_peers):
            if server is not None:
                server.close()
        if hasattr(self, "app"):
            await self.app.close()
        self.client.close()
        if self._http is not None:
            await self._http.shutdown(timeout=1.0)

    def on_drain(self, message: Drain) -> None:
        """New requests get 503 from now on; those in flight have until the deadline."""
        if not hasattr(self, "app"):
            self.supervisor.send(Drained(self.spec.role, self.spec.index))
            return
        self.app.admission.draining = True
        self.app.on_idle = self._check_drained
        left = (message.deadline_ns - time.monotonic_ns()) * 1e-9 - LAST_WORDS_SECONDS
        self.loop.call_later(max(0.0, left), self._deadline)
        self._check_drained()

    def on_peers(self, message: Peers) -> None:
        # While the tokenizer loads, the client only takes note.
        self.client.scheduler_changed(message.scheduler_epoch)

    def _on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What goes wrong on one client's connection is that client's matter and ends nobody else's; all else ends the process."""
        if "transport" in context or "protocol" in context or "future" in context or "task" in context:
            log.error("a connection failed: %s", context.get("message"), exc_info=context.get("exception"))
        else:
            super()._on_loop_exception(loop, context)

    def _least_connections(self) -> int | None:
        """Of the other frontends that serve, the fewest open connections that one has."""
        counts = [int(record[Stat.OPEN_CONNECTIONS]) for record in self._others if record[Stat.STATE] == State.READY]
        return min(counts, default=None)

    def _check_drained(self) -> None:
        if self.app.in_flight == 0 and not self._drained:
            self._drained = True
            self.supervisor.send(Drained(self.spec.role, self.spec.index))

    def _deadline(self) -> None:
        """A clear word instead of a cut connection."""
        self.client.fail_all(EngineDeadError("the server is shutting down; this request did not finish in time"))
