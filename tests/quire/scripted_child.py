"""Stands in for `python -m quire.child`: a real actor process that does what the environment variable SCRIPT_<ROLE> says.

Words: fatal (a ConfigError at start), crash (exit code 3 before ready), deaf (no reaction to Stop), slow (1 s until ready), busy (says
Drained only a moment after the second Drain). What it hears of others goes into Stat.STEPS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ipc.actor import Actor
from ipc.arena import Stat
from ipc.config import ChildSpec
from ipc.errors import ConfigError
from ipc.messages import Drain, Drained, PeerGone, Peers
from quire import child


class Scripted(Actor):
    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.script = os.environ.get(f"SCRIPT_{spec.role.upper()}", "")
        self.drains = 0

    async def start(self) -> None:
        if self.script == "fatal":
            raise ConfigError("the weights are made of cheese")
        if self.script == "crash":
            os._exit(3)
        if self.script == "slow":
            self.loop.call_later(1.0, self.ready)
            return
        self.ready()

    def on_drain(self, message: Drain) -> None:
        self.drains += 1
        drained = Drained(self.spec.role, self.spec.index)
        if self.script != "busy":
            self.supervisor.send(drained)
        elif self.drains == 2:
            self.loop.call_later(0.3, self.supervisor.send, drained)

    def on_peers(self, message: Peers) -> None:
        self.status[Stat.STEPS] = message.scheduler_epoch

    def on_peer_gone(self, message: PeerGone) -> None:
        self.status[Stat.STEPS] = 1000 * (message.role == "worker") + message.epoch

    def finish(self, exit_code: int = 0) -> None:
        if self.script != "deaf":
            super().finish(exit_code)


if __name__ == "__main__":
    sys.exit(Scripted(child.read_spec(lambda: None)).run())
