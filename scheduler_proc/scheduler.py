"""The scheduler's pure core: events in, plans and emissions out. No I/O, no clock, no threads.

There are no phases: a plan is rows with a number of new tokens each. Up to two plans may be out at once; workers run them in order, so
what an earlier plan writes a later one may read.

The parts: `Lifecycle` moves requests between queue, row and end; `Planner` makes plans, with `Starter` and `PrefillPlanner`; `Results`
takes over what workers computed; `GrammarRows` keeps what stands under a grammar; `Flights` are the plans that are out.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipc.arena import Dimensions, PlanColumns, ResultColumns, ResultHeader
from ipc.config import Config, ModelInfo
from ipc.errors import InvalidRequestError, ProtocolError
from ipc.messages import FinishReason, RefuseCode, Refused, Submit
from scheduler_proc import admission
from scheduler_proc.constraint import Answer, Order
from scheduler_proc.emissions import Emission, Emitter
from scheduler_proc.flight import Flight, Flights
from scheduler_proc.frontends import Frontend, Frontends
from scheduler_proc.grammar_rows import GrammarRows
from scheduler_proc.kv_manager import KVManager
from scheduler_proc.lifecycle import Lifecycle
from scheduler_proc.plan_writer import PlanWriter
from scheduler_proc.planner import Planner
from scheduler_proc.policy import Policy
from scheduler_proc.request import Ending, Request
from scheduler_proc.results import Results
from scheduler_proc.rows import Rows


class Scheduler:
    """State of every request, row and block.

    `config` and `model` as every process has them, `num_blocks` KV blocks as the workers hold them, `secret` (16 to 64 random bytes) keys
    the prefix tree. Times are CLOCK_MONOTONIC nanoseconds given by the caller. `emissions` must be collected after every call of
    `plan`, `abort`, `answer` and `workers_lost`, which may end requests; `apply` returns them itself. `orders` must be given to the grammar
    desk after every `add` and `apply`; its answers come back through `answer`. Any call may complete the masks of a step in flight;
    `masked` says which.
    """

    def __init__(self, config: Config, model: ModelInfo, num_blocks: int, secret: bytes) -> None:
        self._model, self._settings = model, config.scheduler
        self._structured, self._max_logprobs = config.structured_outputs, config.model.max_logprobs
        self.dimensions = Dimensions.of(config, model)
        self.kv = KVManager(num_blocks, config.cache.block_size, secret, config.cache.enable_prefix_caching)
        self.rows = Rows(self.dimensions.rows, model.max_model_len, self.dimensions.blocks_per_row)
        self.frontends = Frontends()
        self.flights = Flights()
        self._max_flights = 2 if self._settings.overlap else 1
        self._policy = Policy(self._settings.scheduling_policy)
        self._emitter = Emitter(self.rows, self.frontends.by_number)
        self.lifecycle = Lifecycle(self.rows, self.kv, self.flights, self._emitter, model.vocab_size)
        self.waiting, self.counters = self.lifecycle.waiting, self.lifecycle.counters
        self.planner = Planner(self.lifecycle, self._policy, self._settings, self.dimensions)
        self._results = Results(self.lifecycle, self._emitter, model.vocab_size)
        self._grammars = GrammarRows(self.lifecycle, self.flights, model.eos_token_ids)
        self._next_request = 0
        self._draining = False

    # What is going on

    @property
    def num_running(self) -> int:
        return self.lifecycle.num_running

    @property
    def num_requests(self) -> int:
        return self.num_running + self.num_waiting

    @property
    def num_waiting(self) -> int:
        return self.lifecycle.num_waiting

    @property
    def may_plan(self) -> bool:
        """Whether another plan may be out, and there is anybody to plan for."""
        return len(self.flights) < self._max_flights and self.num_requests > 0

    @property
    def num_in_flight(self) -> int:
        return len(self.flights)

    def running(self) -> Iterator[Request]:
        return self.lifecycle.running()

    # Events

    def drain(self) -> None:
        """Take no new requests from now on."""
        self._draining = True

    def add(self, submit: Submit, identity: str, now_ns: int) -> Refused | None:
        """Take a request of the frontend `identity`, or say why not (then nothing of it is kept)."""
        frontend = self.frontends.of(identity)
        if self._draining:
            return Refused(submit.handle, RefuseCode.DRAINING, "the engine is shutting down")
        if self.num_waiting >= self._settings.max_queued_requests and not submit.emitted:
            wait = self.counters.seconds_per_admission(now_ns)
            return Refused(submit.handle, RefuseCode.QUEUE_FULL, f"{self.num_waiting} requests are waiting already", "", wait)
        try:
            request = self._request(submit, frontend)
        except InvalidRequestError as error:
            return Refused(submit.handle, RefuseCode.INVALID, error.message, error.param or "")
        self._next_request += 1
        if request.constraint is not None:
            self._grammars.compile(request)
        self.lifecycle.take(request)
        return None

    def _request(self, submit: Submit, frontend: Frontend) -> Request:
        """Raises InvalidRequestError if it can never run."""
        model = self._model
        admission.check(submit, frontend, model.vocab_size, model.max_model_len, self._max_logprobs)
        admission.check_grammar(submit.grammar, self._structured)
        end = len(submit.prompt) // 4 + admission.num_output(submit, model.max_model_len)
        order = self._policy.order(submit.priority, submit.arrival_ns, self._next_request)
        request = Request(submit, frontend, order, end, model.eos_token_ids, model.pooling if submit.embed else "")
        admission.check_size(request, self.kv, self.dimensions.setup_bytes)
        return request

    def abort(self, identity: str, handle: int) -> None:
        """End a request, if it is still known."""
        frontend = self.frontends.known(identity)
        request = frontend.requests.get(handle) if frontend else None
        if request is not None:
            self.lifecycle.finish(request, Ending(FinishReason.ABORT))

    def frontend_gone(self, identity: str) -> None:
        """End all requests of a frontend that died; nobody is told."""
        frontend = self.frontends.remove(identity)
        if frontend is None:
            return
        for request in list(frontend.requests.values()):
            self.lifecycle.finish(request, None)
        self._emitter.forget(frontend)

    def workers_lost(self) -> None:
        """All that the workers computed is gone: every running request waits again, to be computed from its known tokens."""
        self.lifecycle.lose_workers()
        self.planner.starter.forget_blocked()

    def resize(self, num_blocks: int) -> None:
        """New workers hold another number of blocks. Only while nothing runs; what cannot fit any more is failed."""
        if self.num_running:
            raise ProtocolError("the number of KV blocks changed while requests run")
        self.lifecycle.reset_blocks(num_blocks)
        self.planner.starter.forget_blocked()
        for request in self.lifecycle.without_row():
            if self.kv.blocks_for(len(request.tokens)) > num_blocks:
                error = f"the restarted workers hold only {num_blocks} KV blocks"
                self.lifecycle.finish(request, Ending(FinishReason.ERROR, error=error))

    def orders(self) -> list[Order]:
        """What the grammar desk is to do, since the last call."""
        return self._grammars.orders()

    def answer(self, answers: list[Answer]) -> list[tuple[str, Refused]]:
        """Take over the desk's answers: masks go where they are awaited, requests end. The refusals, with the frontends to tell."""
        return self._grammars.answer(answers)

    def masked(self) -> list[int]:
        """Steps whose awaited masks are all there since the last call, in order: the workers may sample."""
        return self.flights.masked()

    def emissions(self, now_ns: int, step: int = 0) -> list[Emission]:
        """Messages about what ended since the last call outside `apply`."""
        return self._emitter.emit(step, now_ns, None, None) if self._emitter.pending else []

    # Steps

    def plan(self, now_ns: int, out: PlanColumns, step: int) -> int:
        """Fill `out` with the work of `step`; the number of tokens in it, 0 if there is nothing to do (then no step is used)."""
        writer, flight = PlanWriter(out), Flight(step, out.masks)
        self.planner.plan(now_ns, writer, flight)
        if not flight.num_rows:
            return 0
        if flight.bound:
            self._grammars.mask(flight)
        writer.finish(step, len(flight.bound), flight.follow)
        self.flights.append(flight)
        return flight.num_tokens

    def apply(self, result: ResultColumns, now_ns: int) -> list[Emission]:
        """Take over the result of the oldest step in flight; what the frontends are to be told.

        Raises ProtocolError when no step is in flight or the columns hold another one's result.
        """
        if not self.flights or result.header[ResultHeader.STEP] != self.flights[0].step:
            raise ProtocolError(f"a result of step {result.header[ResultHeader.STEP]} is not the one that is due")
        flight = self.flights.popleft()
        sampled = self._results.apply(flight, result)
        if flight.bound:
            self._grammars.advance(flight)
        forward_ns = int(result.header[ResultHeader.FORWARD_NS])
        self.counters.applied(flight, len(sampled.rows), now_ns, forward_ns)
        num_decodes = len(flight.decodes.rows) if flight.decodes is not None else 0
        self.planner.step_time.observe(flight.num_tokens - num_decodes, num_decodes, forward_ns / 1e9)
        if self.lifecycle.quarantine.alone is not None:
            self._clear_suspect(self.lifecycle.quarantine.alone)
        return self._emitter.emit(flight.step, now_ns, sampled, result)

    def _clear_suspect(self, request: Request) -> None:
        """A request that ran alone after workers had died: harmless after all? Then it gives way to the next suspect."""
        order = self._policy.order(request.priority, *request.order[1:])
        quarantine = self.lifecycle.quarantine
        if quarantine.cleared(self.rows, order) and quarantine.any_left:
            self.lifecycle.preempt(request)

    def validate(self) -> None:
        """Check every invariant. Raises AssertionError naming the broken one."""
        from scheduler_proc.invariants import check

        check(self)
