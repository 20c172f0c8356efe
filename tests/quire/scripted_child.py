"""Stands in for `python -m quire.child`: a real actor process that does what the environment variable SCRIPT_<ROLE> says.

Words, separated by commas; `once` limits them to the first life of that role (a file in the runtime directory remembers):
fatal (a ConfigError at start), crash (exit code 3 before ready), die (SIGKILL itself after ready), hang (busy for ever after ready),
deaf (no reaction to Stop), slow (1 s until ready), busy (Drained only after 1 s). What it hears of others goes into Stat.STEPS.
"""

from __future__ import annotations

import os
import signal
import sys
import time
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
        self.script = set(os.environ.get(f"SCRIPT_{spec.role.upper()}", "").split(","))
        marker = Path(spec.runtime_dir) / f"lived-{spec.role}-{spec.index}"
        if "once" in self.script and marker.exists():
            self.script = set()
        marker.touch()

    async def start(self) -> None:
        if "fatal" in self.script:
            raise ConfigError("the weights are made of cheese")
        if "crash" in self.script:
            os._exit(3)
        if "slow" in self.script:
            self.loop.call_later(1.0, self.ready)
            return
        self.ready()
        if "die" in self.script:
            self.loop.call_later(0.2, os.kill, os.getpid(), signal.SIGKILL)
        if "hang" in self.script:
            self.loop.call_later(0.2, time.sleep, 1000)

    def on_drain(self, message: Drain) -> None:
        drained = Drained(self.spec.role, self.spec.index)
        self.loop.call_later(1.0 if "busy" in self.script else 0.0, self.supervisor.send, drained)

    def on_peers(self, message: Peers) -> None:
        self.status[Stat.STEPS] = message.scheduler_epoch

    def on_peer_gone(self, message: PeerGone) -> None:
        self.status[Stat.STEPS] = 1000 * (message.role == "worker") + message.epoch

    def finish(self, exit_code: int = 0) -> None:
        if "deaf" not in self.script:
            super().finish(exit_code)


if __name__ == "__main__":
    sys.exit(Scripted(child.read_spec(lambda: None)).run())
