"""One engine for all tests that change nothing about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipc.config import Config, ServerConfig
from tests.api.scripted import last_user_message
from tests.api.server import ApiServer, api_server


@pytest.fixture(scope="session")
def server() -> Iterator[ApiServer]:
    """Its worker repeats the prompt's tokens, then ends the request."""
    with api_server(Config(server=ServerConfig(max_body_bytes=200_000, max_prompts_per_request=8))) as running:
        yield running


@pytest.fixture(scope="session")
def scripted() -> Iterator[ApiServer]:
    """Its worker says what the last user message says. It has a key, and few responses are stored."""
    config = Config(server=ServerConfig(api_key=["sk-one", "sk-two"], max_stored_responses=4))
    with api_server(config, next_token=last_user_message()) as running:
        yield running
