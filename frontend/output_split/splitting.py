"""Which splitter a request's answers need, if any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from frontend.output_split.channels import Channels
from frontend.output_split.deltas import Message
from frontend.output_split.formats import ReasoningFormat, ToolFormat
from frontend.output_split.splitter import Splitter


@dataclass(frozen=True, slots=True)
class Splitting:
    """Makes a splitter for each answer of a request.

    schemas: by tool name, its parameters' JSON schema. opened: the prompt ends inside of reasoning. parallel: more than one call is wanted.
    kept: ids of special tokens that are markers and must reach the splitter as text. show_reasoning: clients get to see it.
    """

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    opened: bool = False
    parallel: bool = True
    kept: frozenset[int] = frozenset()
    show_reasoning: bool = True

    def splitter(self) -> Splitter:
        return Splitter(self.tools, self.reasoning, self.schemas, opened=self.opened, parallel=self.parallel)

    def split(self, text: str) -> Message:
        """A whole answer at once."""
        splitter = self.splitter()
        return Message.of(splitter.feed(text) + splitter.finish())


def markers(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> frozenset[str]:
    """All markers of the two formats."""
    found = frozenset(tools.markers if tools is not None else ()) | frozenset(reasoning.markers if reasoning is not None else ())
    if reasoning is not None and reasoning.channels:
        found |= frozenset(Channels().markers)
    return found - {""}


def special_ids(tools: ToolFormat | None, reasoning: ReasoningFormat | None, tokens: Mapping[int, str]) -> frozenset[int]:
    """Those of the special tokens (id to text) that are markers or stand in one."""
    wanted = markers(tools, reasoning)
    return frozenset(token for token, text in tokens.items() if any(text in marker for marker in wanted))


def opened_by(prompt: str, continued: str | None, reasoning: ReasoningFormat | None) -> bool:
    """Whether the answer begins inside of reasoning: the template has opened it, or the message to continue has.

    continued: text of the assistant's message that the answer continues.
    """
    if reasoning is None or not reasoning.begin:
        return False
    if continued is not None:
        return continued.rfind(reasoning.begin) > continued.rfind(reasoning.end)
    return prompt.rstrip().endswith(reasoning.begin)


def choose(name: str, formats: Mapping[str, Any], signs: tuple[tuple[tuple[str, ...], str], ...], template: str) -> Any:
    """The format called `name`; for 'auto' the one whose signs the chat template has, or None. Raises KeyError for an unknown name."""
    if name == "none":
        return None
    if name != "auto":
        return formats[name]
    return next((formats[found] for texts, found in signs if all(text in template for text in texts)), None)
