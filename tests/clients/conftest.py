"""`--write-table`: make docs/clients.md from what this run shows."""

from __future__ import annotations

import os

import pytest

# litellm asks the network for prices when it is imported, unless it is told to use its own list.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_LOG"] = "ERROR"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write docs/clients.md from this run of tests/clients")
