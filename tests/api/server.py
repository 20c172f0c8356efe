"""Frontend processes in front of tests.fakes' engine, and raw HTTP for what no client library would send."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ipc import model_info
from ipc.arena import Stat
from ipc.config import ChildSpec, Config, ModelInfo
from ipc.messages import Ready, Stop
from tests.fakes import ROOT, FakeEngine, fake_engine

DEMO = ROOT / "quire" / "demo_model"
_CHILD = """
import importlib, os, sys
import msgspec
from ipc.config import ChildSpec
from frontend.run import run
if os.environ.get("TEST_PRELUDE"):
    importlib.import_module(os.environ["TEST_PRELUDE"])
sys.exit(run(msgspec.json.decode(os.read(int(os.environ["QUIRE_SPEC_FD"]), 1 << 22), type=ChildSpec)))
"""


@dataclass
class ApiServer:
    """host:port served by one or more frontend processes."""

    engine: FakeEngine
    listener: socket.socket
    specs: list[ChildSpec] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stat(self, word: Stat) -> int:
        return int(self.engine.arena.status("scheduler")[word])

    def at_rest(self) -> None:
        """Wait until the engine has nothing to do: then its record has all that was answered. An answer may leave a moment before."""
        until(lambda: not any(map(self.stat, (Stat.NUM_RUNNING, Stat.NUM_WAITING, Stat.OLDEST_RUNNABLE_NS))))

    def start_frontend(self) -> None:
        spec = self.engine.frontend_spec(len(self.specs), listen=self.listener.fileno())
        fd = os.memfd_create("quire-spec")
        os.write(fd, msgspec.json.encode(spec))
        os.lseek(fd, 0, os.SEEK_SET)
        self.specs.append(spec)
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                cwd=ROOT,
                env={**os.environ, "XDG_STATE_HOME": spec.runtime_dir, "QUIRE_SPEC_FD": str(fd)},
                pass_fds=[fd, *spec.fds.values()],
            )
        )
        os.close(fd)

    def wait_ready(self) -> None:
        for spec in self.specs:
            self.engine.supervisor.wait_for(Ready, spec.identity)

    def tell(self, message: Any, index: int = 0) -> None:
        """Let the supervisor tell a frontend something."""
        self.engine.supervisor.tell(self.specs[index].identity, message)

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def raw(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, read one answer to its end."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            return read_answer(connection)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own; body: bytes as they are, anything else as JSON."""
        return self.raw(http(method, path, body, headers))

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and decoded JSON."""
        status, _, answer = self.request("POST", path, body, headers)
        return status, json.loads(answer)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        status, _, answer = self.request("GET", path, None, headers)
        return status, json.loads(answer)


def http(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request that asks to close the connection afterwards."""
    lines = {"Host": "localhost", "Connection": "close", **(headers or {})}
    raw = b""
    if body is not None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **lines}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + raw


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, and the body with chunked framing undone."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(chunks(body))
    return int(first.split()[1]), headers, body


def chunks(body: bytes) -> Iterator[bytes]:
    """The chunks of a complete chunked body. Raises AssertionError if it is cut short."""
    while True:
        size, found, rest = body.partition(b"\r\n")
        assert found, f"chunked body ends in the middle: {body[:100]!r}"
        length = int(size, 16)
        if length == 0:
            return
        assert rest[length : length + 2] == b"\r\n"
        yield rest[:length]
        body = rest[length + 2 :]


def events(body: bytes) -> list[Any]:
    """The JSON of each event; the last, [DONE], as that string."""
    found = []
    for part in body.split(b"\n\n"):
        if part:
            assert part.startswith(b"data: "), part
            found.append("[DONE]" if part == b"data: [DONE]" else json.loads(part[6:]))
    return found


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for it; a busy machine may take long. Raises AssertionError when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def demo(config: Config, **changes: Any) -> ModelInfo:
    """The bundled model's ModelInfo, under the name 'demo'; nothing reads its weights here."""
    return msgspec.structs.replace(model_info.read(str(DEMO), config.model, "demo"), **changes)


@contextlib.contextmanager
def api_server(config: Config | None = None, frontends: int = 1, model: ModelInfo | None = None, **worker: Any) -> Iterator[ApiServer]:
    """An engine with `frontends` real frontend processes; worker: options of tests.fake_worker.FakeWorker."""
    config = config or Config()
    config = msgspec.structs.replace(config, parallel=msgspec.structs.replace(config.parallel, frontends=frontends))
    with fake_engine(config, model or demo(config), **worker) as engine, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        server = ApiServer(engine, listener)
        try:
            for _ in range(frontends):
                server.start_frontend()
            server.wait_ready()
            yield server
        finally:
            for index, process in enumerate(server.processes):
                server.tell(Stop(), index)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
