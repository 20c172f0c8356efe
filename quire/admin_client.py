"""`quire admin`: asks a running server's admin socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
from typing import Any

from ipc.errors import ConfigError, EngineDeadError
from quire import runtime_dir

_SECONDS = 15.0


def run(action: str, value: str, path: str) -> int:
    """Print the server's answer; returns the exit code. path: the socket, '' to look for it. Raises ConfigError."""
    body = {"level": value} if action == "log-level" else {}
    status, answer = ask(path or find(), "GET" if action == "state" else "POST", f"/admin/{action.replace('-', '_')}", body)
    print(json.dumps(answer, indent=2))
    return 0 if status < 300 else 1


def find() -> str:
    """The one running server's socket. Raises ConfigError if there is none or more than one."""
    found = [path for path in runtime_dir.sockets("admin") if _alive(path)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError("no running server of yours was found; --socket names its admin socket")
    raise ConfigError("several servers are running; name one with --socket:\n  " + "\n  ".join(found))


def ask(path: str, method: str, target: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON. Raises EngineDeadError when nobody listens."""
    connection = _Connection(path)
    try:
        connection.request(method, target, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EngineDeadError(f"{path} does not answer: {error}") from None
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self._path)


def _alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return os.stat(path).st_uid == os.getuid()
