"""Opens the HTTP socket, before anything heavy starts, so that a busy port is known at once and restarts lose no connection."""

from __future__ import annotations

import errno
import ipaddress
import socket

import msgspec

from ipc.config import Config, ServerConfig
from ipc.errors import ConfigError
from quire import systemd

BACKLOG = 2048


def open_socket(config: ServerConfig) -> socket.socket:
    """A listening stream socket: systemd's if it brings one, else our own. Raises ConfigError naming host, port and reason."""
    inherited = systemd.inherited_socket()
    if inherited is not None:
        if inherited.type != socket.SOCK_STREAM:
            raise ConfigError("the socket that systemd passed is not a stream socket")
        return inherited
    try:
        found = socket.getaddrinfo(config.host or None, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {config.host}: {getattr(error, 'strerror', None) or error}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {config.port} on {config.host} is in use; choose another with --port (0 takes a free one)") from None
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {error.strerror}") from None
    return listener


def as_bound(config: Config, listener: socket.socket) -> Config:
    """With the address of systemd's socket as --host: by it the frontends decide whether to check Host and Origin. A name is kept, as one
    that they answer to."""
    try:
        ipaddress.ip_address(config.server.host)
    except ValueError:
        return config
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return config
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, host=listener.getsockname()[0]))


def url_of(listener: socket.socket) -> str:
    """The address to type into a client on this machine."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_public(listener: socket.socket) -> bool:
    """Whether other machines may reach it."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    host = listener.getsockname()[0]
    return not (host.startswith("127.") or host == "::1")
