"""Who may ask: default-deny once keys are set."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence

from ipc.errors import ConfigError

# Load balancers and init systems probe it, and it tells nothing but whether the engine serves.
PUBLIC_PATHS = frozenset({"/health"})


class ApiKeys:
    """Keys are kept and compared as SHA-256 digests, in constant time: timing tells neither a key's length nor how much of it was right."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def allow(self, path: str, headers: Mapping[str, str]) -> bool:
        """Whether a request may pass: no keys are set, the path is public, or it brings a key as `Authorization: Bearer` or `x-api-key`."""
        if not self._digests or path in PUBLIC_PATHS:
            return True
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        offered = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        # No early exit: every key is compared.
        return sum(self._matches(key) for key in offered if key) > 0

    def _matches(self, key: str) -> int:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests)


def read_key_file(file: str) -> list[str]:
    """Keys in a file, one per line; empty lines and those that begin with # are none.

    Raises ConfigError if it cannot be read, or holds no key: the server would be open to all.
    """
    try:
        with open(file, encoding="utf-8") as handle:
            lines = [line.strip() for line in handle]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file: cannot read {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file: {file} holds no key")
    return keys


class HostNames:
    """Names that a Host header may have. A web page can point its own name at 127.0.0.1 (DNS rebinding); the header tells."""

    def __init__(self, bound: str, allowed: Sequence[str]) -> None:
        """bound: the address the server listens on; anything but loopback is meant to be reached by names we do not know."""
        self.any = "*" in allowed or not _is_loopback(bound)
        self._names = {"localhost", "127.0.0.1", "[::1]", bound.lower(), *(name.lower() for name in allowed)}

    def allow(self, host: str) -> bool:
        """host: the header's value, with or without a port. HTTP/1.0 clients may leave it out; browsers never do."""
        return self.any or not host or _PORT.sub("", host).lower() in self._names


class Origins:
    """Whose web pages may ask. Browsers let any page send requests to 127.0.0.1, and name it in the Origin header; other clients send none.

    A page has no key of ours, so keys are protection enough, and a server that listens on more than loopback is meant to be asked.
    """

    def __init__(self, hosts: HostNames, allowed: Sequence[str], keys: bool) -> None:
        """hosts: names of the server, whose own pages may always ask. allowed: origins, or *. keys: whether requests need one."""
        self._hosts = hosts
        self.any = "*" in allowed or (not allowed and (keys or hosts.any))
        self._allowed = {origin.lower().rstrip("/") for origin in allowed}

    def allow(self, origin: str) -> bool:
        """origin: the header's value; '' if there is none."""
        if self.any or not origin or origin.lower() in self._allowed:
            return True
        scheme, _, host = origin.partition("://")
        # Pages of desktop programs and browser extensions, which no page of the web can pass itself off as.
        if host and scheme.lower() not in ("http", "https"):
            return True
        return bool(host) and not self._hosts.any and self._hosts.allow(host)


_PORT = re.compile(r":\d+$")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
