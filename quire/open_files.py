"""The limit on open files, which each connection counts against; children inherit it."""

from __future__ import annotations

import resource

from ipc.config import Config
from ipc.errors import ConfigError

# What a frontend has open besides connections: sockets and pipes to the others, files, the event loop's own.
OTHERS = 128


def allow(config: Config) -> None:
    """Raise the soft limit as far as the connections of one process need. Raises ConfigError when the hard limit is below that."""
    needed = config.server.max_connections + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"max_connections ({config.server.max_connections}) takes {needed} open files per process, and this user may have {hard}; "
            f"lower --max-connections to {max(1, hard - OTHERS)}, or raise the limit (ulimit -Hn, LimitNOFILE= in systemd)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
