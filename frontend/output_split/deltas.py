"""What a splitter gives: typed pieces of an answer, and the message that they add up to."""

from __future__ import annotations

import enum
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ID_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class Kind(enum.IntEnum):
    """What a Delta carries."""

    CONTENT = 0
    REASONING = 1
    CALL = 2  # a tool call begins
    ARGUMENTS = 3  # more of its arguments


@dataclass(slots=True)
class Delta:
    """One piece. text: of content, reasoning or arguments (JSON text of an object). call: number of the tool call, from 0.

    name and id are those of a call that begins.
    """

    kind: Kind
    text: str = ""
    call: int = -1
    name: str = ""
    id: str = ""


@dataclass(slots=True)
class ToolCall:
    """A call as it stands; arguments is JSON text, cut short if the answer was. index: its number in the answer, from 0.

    In a stream of what is new, a call that goes on has neither id nor name, and more of its arguments.
    """

    id: str
    name: str
    arguments: str = ""
    index: int = 0

    def as_json(self) -> dict[str, Any]:
        """OpenAI's object for a call."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(slots=True)
class Message:
    """The sum of deltas. None: there was nothing of it."""

    content: str | None = None
    reasoning: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Message:
        """The sum of all deltas of an answer."""
        texts: dict[tuple[Kind, int], list[str]] = {}
        calls: dict[int, ToolCall] = {}
        for delta in deltas:
            if delta.kind == Kind.CALL:
                calls[delta.call] = ToolCall(delta.id, delta.name, "", delta.call)
            else:
                texts.setdefault((delta.kind, delta.call), []).append(delta.text)
        whole = {key: "".join(parts) for key, parts in texts.items()}
        for (kind, number), text in whole.items():
            if kind is Kind.ARGUMENTS:
                calls.setdefault(number, ToolCall("", "", "", number)).arguments = text
        return cls(whole.get((Kind.CONTENT, -1)), whole.get((Kind.REASONING, -1)), list(calls.values()))

    def as_input(self) -> dict[str, Any]:
        """As the conversation's next message, in OpenAI's shape; what comes after it are the results of its calls."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call.as_json() for call in self.calls]
        return message

    def followed_by(self, new: Message) -> Message:
        """The message that this and what is new of it make together; neither changes."""
        calls = {call.index: call for call in self.calls}
        for call in new.calls:
            old = calls.get(call.index)
            calls[call.index] = call if old is None else ToolCall(old.id, old.name, old.arguments + call.arguments, old.index)
        return Message(_sum(self.content, new.content), _sum(self.reasoning, new.reasoning), list(calls.values()))


def _sum(first: str | None, second: str | None) -> str | None:
    return first if second is None else second if first is None else first + second


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """The same with neighbours of one part made one; a call that begins stays by itself."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if last is not None and delta.kind is not Kind.CALL and (last.kind, last.call) == (delta.kind, delta.call):
            found[-1] = Delta(last.kind, last.text + delta.text, last.call)
        else:
            found.append(delta)
    return found


def new_call_id(length: int = 24, prefix: str = "call_") -> str:
    """A fresh id of a tool call, as clients send it back with the result."""
    return prefix + "".join(secrets.choice(ID_LETTERS) for _ in range(length))


class Emitter:
    """Gathers deltas and joins neighbours of one kind.

    White space at the edges of content and reasoning belongs to the format and not to the text: it is held back and dropped where a
    marker follows, and given out where text follows or the answer ends.
    """

    def __init__(self, new_id: str | None, parallel: bool) -> None:
        """new_id: 'mistral' for ids of nine letters. parallel: False keeps the first call and drops all others."""
        self.out: list[Delta] = []
        self.calls = 0
        self.done = False  # the one call that was allowed is complete
        self._parallel = parallel
        self._nine_letters = new_id == "mistral"
        self._muted = False
        self._space = ""
        self._lead = False  # white space that comes now stands before the text
        self._gap = ["", ""]  # what was dropped before and after the last marker
        self._said: set[Kind] = set()

    def take(self) -> list[Delta]:
        """Deltas since the last call."""
        taken, self.out = self.out, []
        return taken

    def say(self, kind: Kind, text: str) -> None:
        """Content or reasoning."""
        if self._lead:
            stripped = text.lstrip()
            self._gap[1] += text[: len(text) - len(stripped)]
            if not stripped:
                return
            # Text that goes on behind a call keeps apart from the text before it.
            text = (self._gap[1] or self._gap[0]) + stripped if kind in self._said else stripped
            self._lead = False
        kept = text.rstrip()
        if kept:
            self._put(kind, self._space + kept)
            self._said.add(kind)
            self._space = text[len(kept) :]
        else:
            self._space += text

    @property
    def settled(self) -> bool:
        """No white space is being dropped."""
        return not self._lead

    def edge(self) -> None:
        """A marker was here: drop the white space on both its sides."""
        self._gap = [self._space or self._gap[0] if self._lead else self._space, ""]
        self._space, self._lead = "", True

    def end(self, kind: Kind) -> None:
        """The answer ends while it says `kind`."""
        if self._space and not self._lead:
            self._put(kind, self._space)
        self._space = ""

    def begin_call(self, name: str, given_id: str = "") -> None:
        """A call begins."""
        self.edge()
        if self.calls and not self._parallel:
            self._muted = True
            return
        fresh = new_call_id(9, "") if self._nine_letters else new_call_id()
        self.out.append(Delta(Kind.CALL, "", self.calls, name, given_id or fresh))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that began last."""
        if text and not self._muted:
            self._put(Kind.ARGUMENTS, text, self.calls - 1)

    def end_call(self) -> None:
        """The call's arguments are complete."""
        self.done = not self._parallel

    def _put(self, kind: Kind, text: str, call: int = -1) -> None:
        last = self.out[-1] if self.out else None
        if last is not None and last.kind == kind:
            last.text += text
        else:
            self.out.append(Delta(kind, text, call))
