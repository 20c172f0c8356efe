"""Notifications and socket activation, against a socket of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ipc import config
from ipc.errors import ConfigError
from quire import listening, systemd

ROOT = Path(__file__).resolve().parents[2]


def test_notifications_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        notifier = systemd.Notifier()
        notifier.send("READY=1", "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
        assert notifier.watchdog_seconds == 3.0


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"quire-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        systemd.Notifier().send("WATCHDOG=1")
        assert manager.recv(100) == b"WATCHDOG=1"


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.Notifier().send("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.Notifier().send("READY=1")


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.Notifier().watchdog_seconds == 0.0


def test_an_inherited_socket_is_used() -> None:
    """systemd passes the socket as descriptor 3; here a process of its own puts it there."""
    code = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from ipc.config import ServerConfig\nfrom quire import listening\n"
        "taken = listening.open_socket(ServerConfig(port=1))\n"
        "print(taken.getsockname()[1], os.environ.get('LISTEN_FDS'), os.get_inheritable(taken.fileno()))"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run(
            [sys.executable, "-c", code, str(listener.fileno())],
            cwd=ROOT,
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[listener.fileno()],
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.stdout.split() == [str(listener.getsockname()[1]), "None", "False"], done.stderr


@pytest.mark.parametrize(
    ("asked", "bound", "host"),
    [("127.0.0.1", "0.0.0.0", "0.0.0.0"), ("0.0.0.0", "127.0.0.1", "127.0.0.1"), ("box.example.org", "0.0.0.0", "box.example.org")],
)
def test_the_frontends_go_by_the_address_of_an_inherited_socket(asked: str, bound: str, host: str) -> None:
    """They check Host and Origin on loopback alone."""
    with socket.create_server((bound, 0)) as listener:
        assert listening.as_bound(config.load({"host": asked}, environ={}), listener).server.host == host


def test_a_unix_socket_changes_no_setting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert listening.as_bound(config.load({}, environ={}), listener) == config.load({}, environ={})


def test_another_processs_sockets_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.inherited_socket() is None


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            listening.open_socket(config.ServerConfig(port=port))


def test_addresses() -> None:
    with listening.open_socket(config.ServerConfig(port=0)) as local:
        assert listening.url_of(local) == f"http://127.0.0.1:{local.getsockname()[1]}"
        assert not listening.is_public(local)
    with listening.open_socket(config.ServerConfig(host="0.0.0.0", port=0)) as anywhere:
        assert listening.url_of(anywhere).startswith("http://127.0.0.1:")
        assert listening.is_public(anywhere)
