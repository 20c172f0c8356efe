"""Requests under a grammar, as the core sees them: which masks are ordered, where an answer's mask goes, which steps await one."""

from __future__ import annotations

import numpy as np

from ipc.messages import FinishReason, RefuseCode, Refused
from scheduler_proc.constraint import GRAMMAR, Answer, Order, Outcome
from scheduler_proc.flight import Flight, Flights
from scheduler_proc.lifecycle import Lifecycle
from scheduler_proc.request import Ending, Request, Status


class GrammarRows:
    """Orders to the grammar desk, and what its answers do. eos: tokens that close a text."""

    def __init__(self, lifecycle: Lifecycle, flights: Flights, eos: list[int]) -> None:
        self._lifecycle, self._flights, self._eos = lifecycle, flights, eos
        self._orders: list[Order] = []

    def orders(self) -> list[Order]:
        """What the desk is to do, since the last call."""
        orders, self._orders = self._orders, []
        return orders

    def compile(self, request: Request) -> None:
        """Order a new request's grammar and its first mask, on which it waits."""
        assert request.constraint is not None
        request.waiting_on.add(GRAMMAR)
        self._orders.append(Order(request.constraint, request.tokens[request.num_prompt :].tolist(), True))

    def answer(self, answers: list[Answer]) -> list[tuple[str, Refused]]:
        """Take over the desk's answers: masks go where they are awaited, requests end. The refusals, with the frontends to tell."""
        refused: list[tuple[str, Refused]] = []
        finish = self._lifecycle.finish
        for answer in answers:
            request = answer.constraint.request
            if request.status is Status.FINISHED:
                continue
            match answer.outcome:
                case Outcome.READY:
                    self._resume(request)
                case Outcome.COMPLETE:
                    finish(request, Ending(FinishReason.STOP, self._closing_token(request)))
                case Outcome.FAILED:
                    finish(request, Ending(FinishReason.ERROR, error=answer.message))
                case Outcome.INVALID | Outcome.BUSY:
                    code = RefuseCode.INVALID if answer.outcome is Outcome.INVALID else RefuseCode.QUEUE_FULL
                    refusal = Refused(request.handle, code, answer.message, answer.constraint.grammar.param)
                    refused.append((request.frontend.identity, refusal))
                    finish(request, None)
        return refused

    def _closing_token(self, request: Request) -> int:
        """The request's last token if that is one that closes a text, else -1."""
        rows = self._lifecycle.rows
        tokens = request.tokens if request.row < 0 else rows.history[request.row, : rows.num_known[request.row]]
        last = int(tokens[-1])
        return last if len(tokens) > request.num_prompt and last in self._eos else -1

    def _resume(self, request: Request) -> None:
        """The mask of the request's next token is there."""
        request.waiting_on.discard(GRAMMAR)
        if request.status is Status.RUNNING:
            assert request.constraint is not None
            self._flights.give(request.constraint)
        else:
            self._lifecycle.resume(request)

    def mask(self, flight: Flight) -> None:
        """Write the masks that are there, which are those of rows whose tokens are all known; the others are awaited."""
        columns, rows = self._lifecycle.rows, [each.row for each in flight.bound]
        known = columns.num_known[rows] == columns.num_scheduled[rows]
        for at, (each, is_known) in enumerate(zip(flight.bound, known.tolist())):
            constraint = each.constraint
            flight.awaited[constraint] = at
            if is_known and GRAMMAR not in constraint.request.waiting_on:
                flight.give(constraint)
        flight.follow = bool(flight.awaited)

    def advance(self, flight: Flight) -> None:
        """Order the next masks of the rows under a grammar that got a token in this step and go on.

        Steps in flight wait for them. Nobody's step shall wait for a slow one, so such a row gives its place back until the mask is there.
        """
        columns, rows = self._lifecycle.rows, np.array([each.row for each in flight.bound])
        last = columns.history_flat[columns.history_base[rows] + columns.num_known[rows] - 1].tolist()
        slow: list[Request] = []
        for each, generation, token in zip(flight.bound, columns.generation[rows].tolist(), last):
            if generation == each.generation:
                request = each.constraint.request
                request.waiting_on.add(GRAMMAR)
                self._orders.append(Order(each.constraint, [token], False))
                if each.constraint.slow:
                    slow.append(request)
        if slow and self._lifecycle.num_running > len(slow):
            for request in slow:
                self._lifecycle.preempt(request)
