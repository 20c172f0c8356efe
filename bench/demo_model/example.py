"""What one training or test example is, how it becomes ChatML text, and which examples are held out.

`render` writes by hand what `chat_template.jinja` writes by template (a test compares the two): training needs
thousands of renderings a second, and the boundaries of the assistant's turns besides.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

HELD_OUT_SHARE = 10  # one prompt in this many is never trained on

TOOLS_HEAD = "You can call tools. The tools are:\n<tools>"
TOOLS_TAIL = '</tools>\nTo call one, write:\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
THINK_MARK = "/think"


def held_out(content: str) -> bool:
    """Whether this content (operands, words, a prompt) belongs to the test side; the same on every machine and day."""
    digest = hashlib.blake2b(content.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class ToolCall:
    """A call the assistant makes."""

    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        body = json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"


@dataclass(frozen=True)
class Turn:
    """One message. Tool calls and thinking belong to the assistant."""

    role: str
    content: str = ""
    thinking: str | None = None
    calls: tuple[ToolCall, ...] = ()

    def said(self) -> str:
        """What the assistant writes after its header, in a turn that is to be learnt."""
        return thought(self.thinking) + self.shown()

    def shown(self) -> str:
        """What stays in the history of this turn: thoughts are dropped."""
        parts = [self.content] if self.content else []
        return "\n".join(parts + [call.text() for call in self.calls])


def thought(thinking: str | None) -> str:
    """The thinking block that opens an answer."""
    return "" if thinking is None else f"<think>\n{thinking}\n</think>\n\n"


@dataclass(frozen=True)
class Example:
    """A conversation whose last turn is the assistant's and counts; `accepted` are all right answers to it.

    `contents` name what it is about; they decide whether it is held out. With no turns at all, `text` is a plain
    document instead, and `accepted` is empty.
    """

    kind: str
    turns: tuple[Turn, ...] = ()
    accepted: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = False
    text: str = ""
    contents: tuple[str, ...] = ()

    def for_test(self) -> bool:
        """Whether any part of this example's content is held out; training takes only examples with none."""
        return any(held_out(content) for content in self.contents)

    def prompt(self) -> str:
        """The rendered conversation up to where the assistant's last turn begins."""
        pieces = pieces_of(self)
        return "".join(text for text, _ in pieces[:-1])


def system_text(example: Example, written: str) -> str:
    """The system turn's text: the writer's words, then the tools, then the thinking mark."""
    parts = [written] if written else []
    if example.tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in example.tools)
        parts.append(f"{TOOLS_HEAD}\n{listed}\n{TOOLS_TAIL}")
    if example.thinking:
        parts.append(THINK_MARK)
    return "\n\n".join(parts)


def pieces_of(example: Example) -> list[tuple[str, bool]]:
    """The rendered text, cut into (text, is it learnt) pieces; the last piece is the last answer."""
    if not example.turns:
        return [("<|endoftext|>", False), (example.text + "<|endoftext|>", True)]
    turns = list(example.turns)
    written = turns.pop(0).content if turns[0].role == "system" else ""
    system = system_text(example, written)
    pending = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    pieces: list[tuple[str, bool]] = []
    for index, turn in enumerate(turns):
        last = index == len(turns) - 1
        if turn.role == "assistant":
            pieces.append((pending + "<|im_start|>assistant\n", False))
            pieces.append(((turn.said() if last else turn.shown()) + "<|im_end|>", last or not example.thinking))
            pending = "\n"
        elif turn.role == "tool":
            # Consecutive tool results share one user turn.
            before = "" if turns[index - 1].role == "tool" else "<|im_start|>user"
            after = "" if not last and turns[index + 1].role == "tool" else "<|im_end|>\n"
            pending += f"{before}\n<tool_response>\n{turn.content}\n</tool_response>{after}"
        else:
            pending += f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n"
    return pieces


def ask(kind: str, prompt: str, answers: str | list[str], *contents: str, thinking: str | None = None) -> Example:
    """A one-question conversation. The first answer is the one to learn, all are accepted."""
    accepted = [answers] if isinstance(answers, str) else answers
    turns = (Turn("user", prompt), Turn("assistant", accepted[0], thinking=thinking))
    return Example(kind, turns, tuple(accepted), thinking=thinking is not None, contents=contents or (prompt,))
