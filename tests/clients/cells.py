"""The matrix of clients and endpoints: which cells there are, and the page that shows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pydantic

from tests.processes.server import Server

CLIENTS = {
    "openai": "openai",
    "openai (async)": "openai",
    "anthropic": "anthropic",
    "ollama": "ollama",
    "langchain-openai": "langchain-openai",
    "litellm": "litellm",
    "instructor": "instructor",
}
ENDPOINTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/models",
    "/v1/files",
    "/v1/batches",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/tags",
    "/api/show",
]
Check = Callable[["Target"], Any]


@dataclass(frozen=True)
class Cell:
    """One thing that one client can do. check: raises AssertionError when it cannot, here; may be a coroutine function."""

    client: str
    endpoint: str
    what: str
    check: Check


@dataclass
class Target:
    """The server that is tried, and what it answers to plain HTTP."""

    server: Server
    _plain: dict[str, Any] = field(default_factory=dict)
    _clients: dict[Any, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def v1(self) -> str:
        return self.server.url + "/v1"

    def client(self, make: Callable[..., Any], **options: Any) -> Any:
        """A client of the kind that `make` makes, the same one each time: making one costs most of a cell's time."""
        key = (make, tuple(options.items()))
        if key not in self._clients:
            self._clients[key] = make(**options)
        return self._clients[key]

    def close(self) -> None:
        """Give back the clients' connections. LangChain's and instructor's keep them in a client of OpenAI's."""
        for client in self._clients.values():
            for holder in (client, getattr(client, "root_client", None), getattr(client, "client", None)):
                close = getattr(holder, "close", None)
                if close is not None and not inspect.iscoroutinefunction(close):
                    close()

    def plain(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request without any client library, asked for once: what every client must get as well."""
        key = f"{path} {body}"
        if key not in self._plain:
            self._plain[key] = self.server.post(path, body)
        return self._plain[key]


CELLS: list[Cell] = []


def cell(client: str, endpoint: str, what: str) -> Callable[[Check], Check]:
    """Enter the decorated function into the matrix."""

    def enter(check: Check) -> Check:
        CELLS.append(Cell(client, endpoint, what, check))
        return check

    return enter


class Item(pydantic.BaseModel):
    """What structured answers are made into. Bounded, so that any model finishes it."""

    model_config = pydantic.ConfigDict(extra="forbid")
    colour: str = pydantic.Field(pattern="^(red|green|blue)$")
    count: int = pydantic.Field(ge=0, le=9)
    done: bool

    def check(self) -> None:
        assert self.colour in ("red", "green", "blue") and 0 <= self.count <= 9


ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": ADD}


def check_arguments(arguments: dict[str, Any]) -> None:
    assert set(arguments) == {"a", "b"} and all(type(value) is int and 0 <= value <= 99 for value in arguments.values()), arguments


def check_vectors(found: Any, expected: list[list[float]]) -> None:
    """Equal up to float32 and what one vector's batch may do to another's last bits."""
    assert len(found) == len(expected) == len(TEXTS)
    for one, other in zip(found, expected):
        assert len(one) == len(other) > 8 and max(abs(a - b) for a, b in zip(one, other)) < 1e-4


QUESTION = "Count from 3 to 9."
USER = [{"role": "user", "content": QUESTION}]
MODEL = "quire-demo"
SETTINGS: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
TEXTS = ["Once upon a time", "Count from 3 to 9."]
# With this question the demo model calls at once; with others it may think first, for as long as it may.
TASK = "Use the tool to add 5 and 7."
ASK = [{"role": "user", "content": TASK}]
LONG: dict[str, Any] = {"max_tokens": 100, "temperature": 0}
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


def table(passed: set[tuple[str, str, str]]) -> str:
    """The page: endpoint and feature by client."""
    rows = sorted({(each.endpoint, each.what) for each in CELLS}, key=lambda row: (ENDPOINTS.index(row[0]), _order(row[1])))
    names = [f"{name} {version(package)}" if "(" not in name else name for name, package in CLIENTS.items()]
    lines = [
        "# Clients",
        "",
        "What client libraries do with quire. Made by a test run that drives `quire serve` with the demo model through each of them",
        "(`python -m pytest tests/clients --write-table`); CI fails when this page is not what its run shows. *passed*: the answer was",
        "the one that plain HTTP gives, calls and structured answers kept to their schemas, errors came as the client's own exception",
        "types. An empty cell was not tried, mostly because the client does not speak that API.",
        "",
        f"| endpoint | what | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for endpoint, what in rows:
        marks = ["passed" if (name, endpoint, what) in passed else "" for name in CLIENTS]
        lines.append(f"| `{endpoint}` | {what} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


_WHATS = ["answer", "stream", "tools", "streamed tools", "structured output", "list", "upload, list, read, delete", "errors"]


def _order(what: str) -> tuple[int, str]:
    return (_WHATS.index(what) if what in _WHATS else len(_WHATS) - 1, what)
