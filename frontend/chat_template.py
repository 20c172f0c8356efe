"""Renders a model's chat template in a sandbox, with a bound on time and on size.

The template comes with the model, so it is not trusted: no attribute of Python's inside is reachable (Jinja's immutable sandbox), no
operation makes a string or number out of proportion, and a render that takes too long is interrupted in its thread. It is interrupted
rather than abandoned, because abandoned threads would soon hold all the places there are.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ipc.errors import ConfigError, InvalidRequestError

MAX_SECONDS = 2.0
MAX_CHARS = 8 * 1024 * 1024
RENDER_THREADS = 2
_MAX_OPERAND = 100_000
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format_map", "to_bytes", "translate"})
_WIDE_OR_NESTED = re.compile(r"\d{4,}|\{[^{}]*\{")

Result = TypeVar("Result")


class TemplateTimeout(BaseException):
    """Raised inside a rendering thread. Not an Exception, so that nothing on the way swallows it."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox bounds reach but not size; this one bounds size too."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str) and ("*" in left or _WIDE_OR_NESTED.search(left)):
            raise jinja2.exceptions.SecurityError("format widths in templates have at most three digits")
        if operator in ("*", "**"):
            for value in (left, right):
                size = abs(value) if isinstance(value, (int, float)) else len(value) if hasattr(value, "__len__") else 0
                if size > (_MAX_OPERAND if operator == "*" else 64):
                    raise jinja2.exceptions.SecurityError(f"{operator} in templates takes no operand as large as {size}")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _PADDING_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatter = super().wrap_str_format(value)
        if formatter is not None and _WIDE_OR_NESTED.search(value.__self__):
            raise jinja2.exceptions.SecurityError("format widths in templates have at most three digits")
        return formatter


class ChatTemplate:
    """One compiled template. `handles_parts`: it walks over lists of content parts, so contents need not be flattened to text."""

    def __init__(self, source: str) -> None:
        """Raises ConfigError if the source is not valid Jinja."""
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        for name in ("center", "wordwrap", "format", "pprint", "xmlattr", "urlize"):
            environment.filters.pop(name, None)
        environment.filters["indent"] = _indent
        environment.filters["tojson"] = _to_json
        environment.globals = {
            name: value for name, value in environment.globals.items() if name in ("range", "dict", "namespace", "joiner", "cycler")
        }
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template is not valid: {error}") from None
        self.source = source
        self.handles_parts = _walks_over_contents(tree)
        self.knows_developer = "developer" in source

    def render(self, **variables: Any) -> str:
        """The prompt. Raises InvalidRequestError with the template's own complaint. Run it in `Renderer`, which bounds its time."""
        pieces, size = [], 0
        try:
            for piece in self._template.generate(**variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_CHARS:
                    raise InvalidRequestError(f"the chat template makes more than {MAX_CHARS} characters of these messages", "messages")
        except InvalidRequestError:
            raise
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
            RecursionError,
            MemoryError,
            ArithmeticError,
        ) as error:
            raise InvalidRequestError(f"the chat template refused these messages: {error!s:.500}", "messages") from None
        return "".join(pieces)


class Renderer:
    """A few threads for work that must not hold the loop, each job within a bound of time."""

    def __init__(self, threads: int = RENDER_THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="quire-render")

    async def run(self, work: Callable[[], Result], seconds: float = MAX_SECONDS) -> Result:
        """work() in a thread. Raises InvalidRequestError when it takes longer than `seconds` of its own time."""
        loop = asyncio.get_running_loop()
        job = _Job(work, seconds)
        timer = loop.call_later(seconds, job.watch, loop)
        try:
            return await loop.run_in_executor(self._pool, job)
        finally:
            timer.cancel()
            job.finished = True

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Job:
    """A call that may be interrupted, but only while it runs: its thread does other jobs before and after."""

    def __init__(self, work: Callable[[], Any], seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._lock = threading.Lock()
        self._thread = 0
        self._started = 0.0
        self.finished = False

    def __call__(self) -> Any:
        try:
            self._started = time.monotonic()
            self._thread = threading.get_ident()
            result = self._work()
            with self._lock:
                self._thread = 0
            return result
        except TemplateTimeout:
            raise InvalidRequestError(f"the chat template took more than {self._seconds:g} s", "messages") from None
        finally:
            self._thread = 0

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Interrupt the job if it has used its time; look again if it waited for a thread for part of it."""
        with self._lock:
            left = self._started + self._seconds - time.monotonic() if self._started else self._seconds
            if self._thread and left <= 0:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(TemplateTimeout))
        if not self.finished:
            loop.call_later(max(left, 0.2), self.watch, loop)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Jinja's own escapes < and > for HTML, which changes what the model reads."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(width, int) and width > 100:
        raise jinja2.exceptions.SecurityError("indent in templates goes up to 100")
    return jinja2.filters.do_indent(text, width, first, blank)


def _walks_over_contents(tree: nodes.Template) -> bool:
    """Whether every place that uses a message's content copes with a list: it loops over it and never adds or trims it as text."""
    loops = False
    for loop in tree.find_all(nodes.For):
        loops = loops or _is_content(loop.iter)
    if not loops:
        return False
    used_as_text = any(
        _is_content(part) for joined in tree.find_all((nodes.Concat, nodes.Add, nodes.Output)) for part in joined.iter_child_nodes()
    )
    filtered = any(
        node.node is not None and _is_content(node.node) and node.name in ("trim", "string") for node in tree.find_all(nodes.Filter)
    )
    called = any(_is_content(node.node) for node in tree.find_all(nodes.Getattr) if node.attr in ("strip", "split", "lstrip", "rstrip"))
    return not (used_as_text or filtered or called)


def _is_content(node: nodes.Node) -> bool:
    """message.content, message['content'] or a variable named content."""
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name == "content"
