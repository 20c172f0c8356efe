"""What describes a format: data that the splitter works from, and nothing that it does."""

from __future__ import annotations

from dataclasses import dataclass

from frontend.output_split.calls import HeadedCalls, JsonCalls
from frontend.output_split.channels import Channels
from frontend.output_split.python_calls import PythonCalls
from frontend.output_split.tagged_calls import TaggedCalls

Payload = JsonCalls | HeadedCalls | TaggedCalls | PythonCalls | Channels


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes tool calls: sections from one of `begin` to one of `end`, with calls in between.

    end: empty where a section ends with its call or list. bare: the answer may also begin with a call, without a marker; such a call must
    name a known tool, since any text may look like it. between: what separates calls outside of lists. ids: 'mistral' for nine letters.
    """

    payload: Payload
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    bare: bool = False
    between: tuple[str, ...] = ()
    ids: str | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that is no part of names, arguments or content."""
        return (*self.begin, *self.end, *self.payload.markers)


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model writes its thoughts: from `begin` to `end`, at the start of the answer.

    dropped: markers around the answer proper. interleaved: thoughts may also come later, between tool calls. ends_at_tool_call: a tool
    call ends them as well. channels: they come in channels, with everything else (gpt-oss).
    """

    begin: str
    end: str
    dropped: tuple[str, ...] = ()
    interleaved: bool = False
    ends_at_tool_call: bool = False
    channels: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that is neither content nor reasoning."""
        return (self.begin, self.end, *self.dropped)
