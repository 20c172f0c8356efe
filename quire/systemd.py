"""The two parts of systemd's protocol that a service needs: telling its state, and taking a socket systemd has opened for it.

Sources: the manual pages sd_notify(3) and sd_listen_fds(3). Outside systemd every function here does nothing.
"""

from __future__ import annotations

import os
import socket

LISTEN_FDS_START = 3


class Notifier:
    """Sends state lines such as READY=1 to the socket in $NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdigit() and mine else 0.0

    def send(self, *lines: str) -> None:
        """Say it, and never fail for it: a service that cannot reach its manager still serves."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(1.0)
                out.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            pass


def inherited_socket() -> socket.socket | None:
    """The first socket systemd opened for this process (socket activation), or None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS", "0") in ("", "0"):
        return None
    # Not for our children: their LISTEN_PID would not match, and the descriptor is handed on in our own way.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    taken = socket.socket(fileno=LISTEN_FDS_START)
    taken.set_inheritable(False)
    return taken
