"""What the scheduler remembers of a plan until its result is applied."""

from __future__ import annotations

import msgspec
import numpy as np

from ipc.arena import I32, I64
from scheduler_proc.emissions import Segment, grouped, segments_of
from scheduler_proc.request import Request
from scheduler_proc.rows import Rows


class DecodeSet(msgspec.Struct, gc=False, eq=False):
    """The rows that take one token each per step, grouped by frontend; valid until any row starts or stops decoding.

    rows int64[n], narrow: the same as int32, generations int64[n]: the rows' at the time. steps_left: how many plans until one of
    them reaches its limit.
    """

    rows: I64
    narrow: I32
    generations: I64
    segments: list[Segment]
    steps_left: int

    @classmethod
    def of(cls, columns: Rows) -> DecodeSet:
        rows = np.flatnonzero(columns.decoding)
        order = grouped(rows, columns)
        if order is not None:
            rows = rows[order]
        left = int((columns.limit[rows] - columns.num_scheduled[rows]).min()) if len(rows) else 0
        return cls(rows, rows.astype(np.int32), columns.generation[rows], segments_of(rows, columns), left)


class Prefill(msgspec.Struct, gc=False, eq=False):
    """A row that computes known tokens. position: its place in the plan; token_place: of its first token among the plan's tokens.

    decode: it is the one token sampled last of a row under a grammar.
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
    decode: bool = False


class Flight(msgspec.Struct, gc=False, eq=False):
    """One planned step. version: of the decoding rows when it was planned. has_last: some row got its last token planned."""

    step: int
    decodes: DecodeSet | None
    prefills: list[Prefill]
    version: int
    has_last: bool
    num_tokens: int
