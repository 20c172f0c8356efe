"""One request's grammar as the core sees it: orders to the grammar desk go out, answers come back; nothing is computed here.

A request under a grammar waits on it (`Request.waiting_on`) whenever an order of it is out: while the grammar compiles, which keeps it
out of the queue, and after each token, while the step that samples the next one is computed (Flight.awaited). At most one order of a
constraint is out at a time, so the desk may work on it without locks.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import msgspec

from ipc.arena import I32
from ipc.grammar import Grammar

if TYPE_CHECKING:
    from scheduler_proc.request import Request

GRAMMAR = "grammar"  # what Request.waiting_on calls it


class Constraint:
    """What a request's output must follow, from its acceptance to its end; preemption and lost workers change nothing about it.

    mask: int32[ceil(vocab / 32)], what may follow the known tokens, lowest bit first; valid while the request does not wait on its grammar.
    state: the desk's own. slow: the desk expects the next mask to take so long that a step must not wait for it.
    """

    __slots__ = ("grammar", "mask", "request", "slow", "state")

    def __init__(self, grammar: Grammar, request: Request) -> None:
        self.grammar = grammar
        self.request = request
        self.mask: I32 | None = None
        self.state: Any = None
        self.slow = False


class Order(msgspec.Struct, gc=False, eq=False):
    """The constraint's request has these tokens more; what may follow? first: its grammar has not been compiled for it yet."""

    constraint: Constraint
    tokens: list[int]
    first: bool


class Outcome(enum.Enum):
    """What became of an order."""

    READY = "ready"  # the mask of the next token is in constraint.mask
    COMPLETE = "complete"  # nothing more may follow
    INVALID = "invalid"  # the grammar cannot be used; only in answer to a first order
    BUSY = "busy"  # too many grammars wait to be compiled; only in answer to a first order
    FAILED = "failed"  # the request cannot go on


class Answer(msgspec.Struct, gc=False, eq=False):
    """To one order. message: for people, where the outcome is not a good one."""

    constraint: Constraint
    outcome: Outcome
    message: str = ""
