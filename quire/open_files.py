"""The limit on open files, which each connection counts against; children inherit it."""

from __future__ import annotations

import logging
import resource

import msgspec

from ipc.config import Config, ServerConfig
from ipc.errors import ConfigError

# What a frontend has open besides connections: sockets and pipes to the others, files, the event loop's own.
OTHERS = 128

log = logging.getLogger(__name__)


def allow(config: Config) -> Config:
    """Raise the soft limit as far as the connections of one process need.

    Where the hard limit is below that, the default number of connections is lowered; another raises ConfigError.
    """
    needed = config.server.max_connections + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        if config.server.max_connections == ServerConfig().max_connections and hard > OTHERS:
            log.warning("at most %d connections per frontend: this user may have %d open files (ulimit -Hn)", hard - OTHERS, hard)
            lowered = msgspec.structs.replace(config.server, max_connections=hard - OTHERS)
            return allow(msgspec.structs.replace(config, server=lowered))
        raise ConfigError(
            f"max_connections ({config.server.max_connections}) takes {needed} open files per process, and this user may have {hard}; "
            f"lower --max-connections to {max(1, hard - OTHERS)}, or raise the limit (ulimit -Hn, LimitNOFILE= in systemd)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return config
