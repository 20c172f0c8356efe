"""Each cell of the matrix, and the page made of them."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Iterator

import pytest

for name in ("instructor", "langchain_openai", "litellm"):
    pytest.importorskip(name, reason="`make develop` installs the extra `clients`, and instructor by itself")

from tests.clients import openai_cells, other_cells  # noqa: E402
from tests.clients.cells import CELLS, CLIENTS, ENDPOINTS, Cell, Target, table  # noqa: E402
from tests.processes.server import ROOT, Server  # noqa: E402

PAGE = ROOT / "docs" / "clients.md"
# The libraries' own: what they say of themselves is not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::UserWarning"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]
assert openai_cells and other_cells  # importing them fills CELLS


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    # float32: two ways to the same text must not part at a near tie.
    with Server("--dtype", "float32", "--kv-cache-memory", "64M", runtime=tmp_path_factory.mktemp("r")) as running:
        tried = Target(running.ready())
        yield tried
        tried.close()
    gc.collect()  # some leave their connections to the collector, whose complaint must not hit another test


@pytest.fixture(scope="module")
def passed() -> set[tuple[str, str, str]]:
    return set()


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.client}-{cell.endpoint}-{cell.what}".replace(" ", "_"))
def test_cell(target: Target, passed: set[tuple[str, str, str]], cell: Cell) -> None:
    if inspect.iscoroutinefunction(cell.check):
        asyncio.run(cell.check(target))
    else:
        cell.check(target)
    passed.add((cell.client, cell.endpoint, cell.what))


def test_the_matrix_is_whole() -> None:
    """No cell twice, no client or endpoint that the page does not know; each client shows its own errors."""
    places = [(each.client, each.endpoint, each.what) for each in CELLS]
    assert len(set(places)) == len(places)
    assert {each.client for each in CELLS} == set(CLIENTS) and {each.endpoint for each in CELLS} <= set(ENDPOINTS)
    assert {each.client for each in CELLS if each.what == "errors"} >= set(CLIENTS) - {"instructor"}


def test_the_page_is_what_this_run_shows(request: pytest.FixtureRequest, passed: set[tuple[str, str, str]]) -> None:
    if len(passed) < len(CELLS) and not request.session.testsfailed:
        pytest.skip("the page is made of a whole run")
    made = table(passed)
    if request.config.getoption("--write-table"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made, "run: python -m pytest tests/clients --write-table"
