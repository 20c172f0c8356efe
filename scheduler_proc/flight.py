"""What the scheduler remembers of a plan until its result is applied."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from ipc.arena import I32, I64, RowFlag
from scheduler_proc.constraint import Constraint
from scheduler_proc.emissions import Segment, grouped, segments_of
from scheduler_proc.request import Request
from scheduler_proc.rows import Rows

_DECODE = int(RowFlag.SAMPLE | RowFlag.DEVICE_TOKEN)
NO_VECTOR = -1
# The mask of a row whose token will not count: that token is 0 then, whatever the sampler does.
_NOBODYS = 1


class Bound(msgspec.Struct, gc=False, eq=False):
    """A row that samples under a grammar, in the life that `generation` says."""

    constraint: Constraint
    row: int
    generation: int


class DecodeSet(msgspec.Struct, gc=False, eq=False):
    """The rows that take one token each per step, grouped by frontend; valid until any row starts or stops decoding.

    rows int64[n], narrow: the same as int32, generations int64[n]: the rows' at the time. flags: RowFlag bits, int32[n] or the same for
    all. bound: those under a grammar, in the order of rows. steps_left: how many plans until one of them reaches its limit. version:
    Rows.version for which this holds.
    """

    rows: I64
    narrow: I32
    generations: I64
    segments: list[Segment]
    flags: I32 | int
    bound: list[Bound]
    steps_left: int
    version: int

    @classmethod
    def of(cls, columns: Rows) -> DecodeSet:
        rows = np.flatnonzero(columns.decoding)
        order = grouped(rows, columns)
        if order is not None:
            rows = rows[order]
        left = int((columns.limit[rows] - columns.num_scheduled[rows]).min()) if len(rows) else 0
        constrained = columns.constrained[rows]
        flags: I32 | int = _DECODE
        if constrained.any():
            flags = _DECODE | constrained * np.int32(RowFlag.GRAMMAR)
        bound = [bound_of(columns, row) for row in rows[constrained].tolist()]
        narrow, generations = rows.astype(np.int32), columns.generation[rows]
        return cls(rows, narrow, generations, segments_of(rows, columns), flags, bound, left, columns.version)


def bound_of(columns: Rows, row: int) -> Bound:
    """What a step remembers of a row under a grammar."""
    request = columns.requests[row]
    assert request is not None and request.constraint is not None
    return Bound(request.constraint, row, int(columns.generation[row]))


class Prefill(msgspec.Struct, gc=False, eq=False):
    """A row that computes known tokens. position: its place in the plan; token_place: of its first token among the plan's tokens; vector:
    of its vector in the result, if this step gives it.
    """

    request: Request
    row: int
    generation: int
    position: int
    start: int
    count: int
    sample: bool
    token_place: int
    first_report: int  # first prompt token to report log-probabilities of
    num_report: int
    vector: int = NO_VECTOR


class Flight(msgspec.Struct, gc=False, eq=False):
    """One planned step. has_last: some row got its last token planned. budget: tokens that it may have; budget_behind: up to which it
    may have those of prompts that no client waits for.

    bound: the rows that sample under a grammar, in the plan's order. masks: the plan's column, masks[at] is bound[at]'s. awaited: whose
    mask is not in it yet, and its place there. follow: some were awaited when the plan's doorbell rang, and the workers have not been
    told yet that all are there. num_vectors: how many its result will have.
    """

    step: int
    masks: I32
    budget: int = 0
    budget_behind: int = 0
    decodes: DecodeSet | None = None
    prefills: list[Prefill] = []
    bound: list[Bound] = []
    awaited: dict[Constraint, int] = {}
    has_last: bool = False
    num_rows: int = 0
    num_tokens: int = 0
    follow: bool = False
    num_vectors: int = 0

    def give(self, constraint: Constraint) -> bool:
        """Write the constraint's mask, if it is awaited here."""
        at = self.awaited.pop(constraint, None)
        if at is not None:
            assert constraint.mask is not None
            self.masks[at] = constraint.mask
        return at is not None

    def forget(self, constraint: Constraint) -> None:
        """The constraint's row has been taken from it: await no mask, since its token does not count any more."""
        at = self.awaited.pop(constraint, None)
        if at is not None:
            self.masks[at] = 0
            self.masks[at, 0] = _NOBODYS


class Flights(deque[Flight]):
    """The steps in flight, the oldest first: workers run them, and results come, in this order."""

    def give(self, constraint: Constraint) -> None:
        """Write the mask of the constraint's next token where it is awaited, if it is: the first such step samples that token."""
        for flight in self:
            if flight.give(constraint):
                break

    def forget(self, constraint: Constraint) -> None:
        """The constraint's row has been taken from it."""
        for flight in self:
            flight.forget(constraint)

    def masked(self) -> list[int]:
        """Steps whose awaited masks are all there since the last call, in order: the workers may sample."""
        steps = []
        for flight in self:
            if flight.awaited:
                break
            if flight.follow:
                flight.follow = False
                steps.append(flight.step)
        return steps

    def requests(self, rows: Rows) -> list[Request]:
        """The requests that these steps compute and that are still in the row they had then, each once."""
        found: dict[Request, None] = {}
        for flight in self:
            for prefill in flight.prefills:
                if rows.generation[prefill.row] == prefill.generation:
                    found[prefill.request] = None
            if flight.decodes is not None:
                for row, generation in zip(flight.decodes.rows.tolist(), flight.decodes.generations.tolist()):
                    request = rows.requests[row]
                    if request is not None and rows.generation[row] == generation:
                        found[request] = None
        return list(found)
