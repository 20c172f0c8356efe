"""The scheduler's pure core: events in, plans and emissions out. No I/O, no clock, no threads.

There are no phases: a plan is rows with a number of new tokens each. Decode rows come first, then prompts that are being computed, then
admissions, all under one token budget (continuous batching: Orca, OSDI 2022; chunked prefill: Sarathi-Serve, OSDI 2024). Up to two
plans may be out at once; workers run them in order, so what an earlier plan writes a later one may read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ipc.arena import I64, Dimensions, PlanColumns, ResultColumns, ResultFlag, ResultHeader, RowFlag
from ipc.config import Config, ModelInfo
from ipc.errors import InvalidRequestError, ProtocolError
from ipc.messages import FinishReason, RefuseCode, Refused, Submit
from scheduler_proc import admission, row_setup
from scheduler_proc.constraint import GRAMMAR, Answer, Order, Outcome
from scheduler_proc.emissions import Emission, Emitter, Sampled, Segment
from scheduler_proc.flight import NO_VECTOR, DecodeSet, Flight, Prefill, bound_of
from scheduler_proc.kv_manager import KVManager
from scheduler_proc.metrics import Counters
from scheduler_proc.plan_writer import PlanWriter
from scheduler_proc.policy import Policy, WaitingQueue
from scheduler_proc.prefix_cache import PrefixMatch
from scheduler_proc.recovery import Quarantine
from scheduler_proc.request import Ending, Frontend, Request, Status
from scheduler_proc.rows import Rows
from scheduler_proc.stop_table import StopTable

NOT_FINITE = "the model produced non-finite logits"
WATERMARK_SHARE = 8
# Waiting requests that one plan leaves for the next because of what it computes; the queue behind them waits too.
MAX_PASSED_OVER = 256


class Scheduler:
    """State of every request, row and block.

    `config` and `model` as every process has them, `num_blocks` KV blocks as the workers hold them, `secret` (16 to 64 random bytes) keys
    the prefix tree. Times are CLOCK_MONOTONIC nanoseconds given by the caller. `emissions` must be collected after every call of
    `plan`, `abort`, `answer` and `workers_lost`, which may end requests; `apply` returns them itself. `orders` must be given to the grammar
    desk after every `add` and `apply`; its answers come back through `answer`. Any call may complete the masks of a step in flight;
    `masked` says which.
    """

    def __init__(self, config: Config, model: ModelInfo, num_blocks: int, secret: bytes) -> None:
        self._model = model
        self._settings = config.scheduler
        self._structured = config.structured_outputs
        self._max_logprobs = config.model.max_logprobs
        self._dimensions = Dimensions.of(config, model)
        self._block_size = config.cache.block_size
        self._secret = secret
        self._caching = config.cache.enable_prefix_caching
        self.kv = KVManager(num_blocks, self._block_size, secret, self._caching)
        self.rows = Rows(self._dimensions.rows, model.max_model_len, self._dimensions.blocks_per_row)
        self.waiting = WaitingQueue()
        self.counters = Counters()
        self._policy = Policy(self._settings.scheduling_policy)
        self._stops = StopTable(model.vocab_size)
        self._frontends: dict[str, Frontend] = {}
        self._by_number: dict[int, Frontend] = {}
        self._next_frontend = 0
        self._next_request = 0
        self._emitter = Emitter(self.rows, self._by_number)
        self._quarantine = Quarantine()
        self._prefilling: list[Request] = []
        self._held: dict[Request, None] = {}  # without a row, and not in the queue, because they wait on something
        self._orders: list[Order] = []
        self._num_constrained = 0  # rows under a grammar
        self._flights: deque[Flight] = deque()
        self._max_flights = 2 if self._settings.overlap else 1
        self._decodes = DecodeSet.of(self.rows)
        # Grows whenever a row starts or stops decoding; _decodes is of _decodes_version.
        self._version = 0
        self._decodes_version = 0
        self._blocked: tuple[Request, int, int] | None = None
        self._draining = False

    # What is going on

    @property
    def num_running(self) -> int:
        return self.rows.num_rows - self.rows.num_free

    @property
    def num_requests(self) -> int:
        return self.num_running + self.num_waiting

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self._held)

    @property
    def may_plan(self) -> bool:
        """Whether another plan may be out, and there is anybody to plan for."""
        return len(self._flights) < self._max_flights and self.num_requests > 0

    @property
    def num_in_flight(self) -> int:
        return len(self._flights)

    def running(self) -> Iterator[Request]:
        return (request for request in self.rows.requests if request is not None)

    # Events

    def drain(self) -> None:
        """Take no new requests from now on."""
        self._draining = True

    def add(self, submit: Submit, identity: str, now_ns: int) -> Refused | None:
        """Take a request of the frontend `identity`, or say why not (then nothing of it is kept)."""
        frontend = self._frontend(identity)
        if self._draining:
            return Refused(submit.handle, RefuseCode.DRAINING, "the engine is shutting down")
        if self.num_waiting >= self._settings.max_queued_requests and not submit.emitted:
            wait = self.counters.seconds_per_admission(now_ns)
            return Refused(submit.handle, RefuseCode.QUEUE_FULL, f"{self.num_waiting} requests are waiting already", "", wait)
        try:
            admission.check(submit, frontend, self._model.vocab_size, self._model.max_model_len, self._max_logprobs)
            admission.check_grammar(submit.grammar, self._structured)
            end = len(submit.prompt) // 4 + admission.num_output(submit, self._model.max_model_len)
            order = self._policy.order(submit.priority, submit.arrival_ns, self._next_request)
            request = Request(submit, frontend, order, end, self._model.eos_token_ids, self._model.pooling if submit.embed else "")
            self._check_size(request)
        except InvalidRequestError as error:
            return Refused(submit.handle, RefuseCode.INVALID, error.message, error.param or "")
        self._next_request += 1
        frontend.requests[request.handle] = request
        frontend.request_ids.add(request.request_id)
        self._stops.add(request.stop_set)
        if request.constraint is not None:
            request.waiting_on.add(GRAMMAR)
            self._orders.append(Order(request.constraint, request.tokens[request.num_prompt :].tolist(), True))
        self._wait(request)
        self.counters.arrived(request)
        return None

    def abort(self, identity: str, handle: int) -> None:
        """End a request, if it is still known."""
        frontend = self._frontends.get(identity)
        request = frontend.requests.get(handle) if frontend else None
        if request is not None:
            self._finish(request, Ending(FinishReason.ABORT))

    def frontend_gone(self, identity: str) -> None:
        """End all requests of a frontend that died; nobody is told."""
        frontend = self._frontends.pop(identity, None)
        if frontend is None:
            return
        for request in list(frontend.requests.values()):
            self._finish(request, Ending(FinishReason.ABORT))
        self._emitter.forget(frontend)
        del self._by_number[frontend.number]

    def workers_lost(self) -> None:
        """All that the workers computed is gone: every running request waits again, to be computed from its known tokens."""
        doomed = self._quarantine.workers_died(list({id(request): request for request in self._requests_in_flight()}.values()))
        self._flights.clear()
        self._prefilling.clear()
        self._num_constrained = 0
        for request in list(self.running()):
            self.rows.free(request.row)
            request.become(Status.PREEMPTED)
            self._wait(request)
        self._reset_blocks(self.kv.pool.num_blocks)
        for request in doomed:
            self._finish(request, Ending(FinishReason.ERROR, error=self._quarantine.MESSAGE))

    def resize(self, num_blocks: int) -> None:
        """New workers hold another number of blocks. Only while nothing runs; what cannot fit any more is failed."""
        if self.num_running:
            raise ProtocolError("the number of KV blocks changed while requests run")
        self._reset_blocks(num_blocks)
        for request in [*self.waiting, *self._held]:
            if self.kv.blocks_for(len(request.tokens)) > num_blocks:
                self._finish(request, Ending(FinishReason.ERROR, error=f"the restarted workers hold only {num_blocks} KV blocks"))

    def orders(self) -> list[Order]:
        """What the grammar desk is to do, since the last call."""
        orders, self._orders = self._orders, []
        return orders

    def answer(self, answers: list[Answer]) -> list[tuple[str, Refused]]:
        """Take over the desk's answers: masks go where they are awaited, requests end. The refusals, with the frontends to tell."""
        refused: list[tuple[str, Refused]] = []
        for answer in answers:
            request = answer.constraint.request
            if request.status is Status.FINISHED:
                continue
            match answer.outcome:
                case Outcome.READY:
                    self._resume(request)
                case Outcome.COMPLETE:
                    self._finish(request, Ending(FinishReason.STOP, self._closing_token(request)))
                case Outcome.FAILED:
                    self._finish(request, Ending(FinishReason.ERROR, error=answer.message))
                case Outcome.INVALID | Outcome.BUSY:
                    code = RefuseCode.INVALID if answer.outcome is Outcome.INVALID else RefuseCode.QUEUE_FULL
                    refused.append(
                        (request.frontend.identity, Refused(request.handle, code, answer.message, answer.constraint.grammar.param))
                    )
                    self._finish(request, None)
        return refused

    def _closing_token(self, request: Request) -> int:
        """The request's last token if that is one that closes a text, else -1."""
        tokens = request.tokens if request.row < 0 else self.rows.history[request.row, : self.rows.num_known[request.row]]
        last = int(tokens[-1])
        return last if len(tokens) > request.num_prompt and last in self._model.eos_token_ids else -1

    def _resume(self, request: Request) -> None:
        """The mask of the request's next token is there."""
        request.waiting_on.discard(GRAMMAR)
        if request.status is Status.RUNNING:
            assert request.constraint is not None
            # Steps are applied in order, so the first that awaits a mask of this row samples the next token.
            for flight in self._flights:
                if flight.give(request.constraint):
                    break
        else:
            del self._held[request]
            self._wait(request)

    def masked(self) -> list[int]:
        """Steps whose awaited masks are all there since the last call, in order: the workers may sample."""
        steps = []
        for flight in self._flights:
            if flight.awaited:
                break
            if flight.follow:
                flight.follow = False
                steps.append(flight.step)
        return steps

    def emissions(self, now_ns: int, step: int = 0) -> list[Emission]:
        """Messages about what ended since the last call outside `apply`."""
        return self._emitter.emit(step, now_ns, None, None) if self._emitter.pending else []

    # Planning

    def plan(self, now_ns: int, out: PlanColumns, step: int) -> int:
        """Fill `out` with the work of `step`; the number of tokens in it, 0 if there is nothing to do (then no step is used)."""
        preempted = self.counters.preemptions
        if len(self.waiting):
            self._displace(step)
        writer = PlanWriter(out)
        decodes = self._plan_decodes(writer)
        flight = Flight(step, decodes, [], self._version, False, 0, out.masks, [], {})
        if decodes is not None:
            flight.bound += decodes.bound
            decodes.steps_left -= 1
            if not decodes.steps_left:
                self._retire(flight, decodes)
        if self._prefilling or len(self.waiting):
            for request in self._prefilling:
                self._plan_prefill(request, writer, flight)
            # What was just preempted would take its blocks back at once.
            if len(self.waiting) and preempted == self.counters.preemptions:
                self._admit(writer, flight, now_ns)
            self._prefilling = [each for each in self._prefilling if self.rows.num_scheduled[each.row] < each.target]
        if not writer.num_rows:
            return 0
        if flight.bound:
            self._give_masks(flight)
        writer.finish(step, len(flight.bound), flight.follow)
        flight.num_tokens = writer.num_tokens
        self._flights.append(flight)
        return writer.num_tokens

    def _plan_decodes(self, writer: PlanWriter) -> DecodeSet | None:
        """One more token for every decoding row, after making sure of its block; None if there is no such row."""
        columns, pool = self.rows, self.kv.pool
        while True:
            if self._decodes_version != self._version:
                self._decodes, self._decodes_version = DecodeSet.of(columns), self._version
            decodes = self._decodes
            rows = decodes.rows
            if not len(rows):
                return None
            starts = columns.num_scheduled[rows]
            full = starts == columns.capacity[rows]
            count = int(np.count_nonzero(full))
            if count <= pool.num_free or self.kv.make_free(count):
                break
            if not self._give_way():
                return None
        if count:
            growing = rows[full]
            index = starts[full] // self._block_size
            blocks = pool.take(count)
            columns.block_table[growing, index] = blocks
            columns.capacity[growing] += self._block_size
            writer.blocks(growing, index, blocks)
        writer.decodes(decodes.narrow, starts, decodes.flags)
        starts += 1
        columns.num_scheduled[rows] = starts
        return decodes

    def _give_way(self) -> bool:
        """Blocks have run out: preempt somebody. False: the one running request must wait for its own step in flight."""
        victim = self._policy.victim(self.running())
        if self.num_running > 1:
            self._preempt(victim)
            return True
        row = victim.row
        if self.rows.num_known[row] <= self.rows.num_scheduled[row]:
            return False
        self._finish(victim, Ending(FinishReason.LENGTH))
        return True

    def _retire(self, flight: Flight, decodes: DecodeSet) -> None:
        """Some rows got their last token planned: they decode no more."""
        rows = decodes.rows
        self.rows.decoding[rows[self.rows.num_scheduled[rows] >= self.rows.limit[rows]]] = False
        self._version += 1
        flight.has_last = True

    def _give_masks(self, flight: Flight) -> None:
        """The masks that are there, which are those of rows whose tokens are all known; the others are awaited."""
        rows = [each.row for each in flight.bound]
        known = self.rows.num_known[rows] == self.rows.num_scheduled[rows]
        for at, (each, is_known) in enumerate(zip(flight.bound, known.tolist())):
            constraint = each.constraint
            flight.awaited[constraint] = at
            if is_known and GRAMMAR not in constraint.request.waiting_on:
                flight.give(constraint)
        flight.follow = bool(flight.awaited)

    def _plan_prefill(self, request: Request, writer: PlanWriter, flight: Flight) -> None:
        """The next chunk of a row's known tokens, as far as the budget goes."""
        columns, row = self.rows, request.row
        start = int(columns.num_scheduled[row])
        end = min(request.target, start + self._settings.max_num_batched_tokens - writer.num_tokens)
        if end < request.target and end // self._block_size * self._block_size > start:
            # Whole blocks can be shared at once.
            end = end // self._block_size * self._block_size
        if request.pooling and end == request.target and flight.num_vectors == self._dimensions.vectors:
            end -= 1  # the result has no room for another vector; the last token waits for the next step
        if end <= start:
            return
        done = end == request.target
        first, num_report = request.prompt_reported, 0
        if request.params.prompt_logprobs is not None:
            # Entry t tells of the token after the t-th: tokens start+1 .. end.
            first = max(start + 1, request.prompt_reported)
            num_report = max(min(end + 1, request.num_prompt) - first, 0)
        flags = RowFlag.PROMPT_LOGPROBS if num_report else RowFlag(0)
        vector = NO_VECTOR
        if request.pooling:
            flags |= RowFlag.MEAN if request.pooling == "mean" else 0
            if done:
                flags |= RowFlag.EMBED
                vector, flight.num_vectors = flight.num_vectors, flight.num_vectors + 1
        elif done:
            flags |= RowFlag.SAMPLE
            if request.constraint is not None:
                flags |= RowFlag.GRAMMAR
                flight.bound.append(bound_of(columns, row))
        generation = int(columns.generation[row])
        place = writer.num_tokens + first - start - 1
        samples = bool(flags & RowFlag.SAMPLE)
        flight.prefills.append(
            Prefill(request, row, generation, writer.num_rows, start, end - start, samples, place, first, num_report, vector)
        )
        writer.prefill(row, start, columns.history[row, start:end], int(flags))
        columns.num_scheduled[row] = end
        self.kv.publish(request, columns.block_table[row], columns.tokens(row), end, flight.step)
        if done:
            flight.has_last |= end >= columns.limit[row]
            columns.decoding[row] = end < columns.limit[row]
            self._version += 1

    # Admission

    def _admit(self, writer: PlanWriter, flight: Flight, now_ns: int) -> None:
        """Start waiting requests, in order, while tokens, rows, blocks and the plan's columns last."""
        later: list[Request] = []
        computing: list[tuple[int, bytes]] = []  # blocks of this very step for which somebody waits: place in the prefix, key
        while writer.num_tokens < self._settings.max_num_batched_tokens and self.rows.num_free and len(later) < MAX_PASSED_OVER:
            request = self.waiting.first()
            if request is None or not self._quarantine.admits(request, self.num_running) or self._still_blocked(request):
                break
            if request.constraint is not None and self._num_constrained >= self._dimensions.masks:
                later.append(self.waiting.pop())
                continue
            # What this very step computes is there for the next one: better than to compute it twice.
            if self.kv.needs_any(request, computing):
                later.append(self.waiting.pop())
                continue
            match = self.kv.match(request, flight.step)
            if match.cut_at:
                computing.append((match.cut_at, request.keys[match.cut_at]))
                later.append(self.waiting.pop())
                continue
            if not self._start(request, match, writer, now_ns):
                break
            self._plan_prefill(request, writer, flight)
        for request in later:
            self.waiting.push(request)

    def _start(self, request: Request, match: PrefixMatch, writer: PlanWriter, now_ns: int) -> bool:
        """Give a waiting request its row and blocks; False if blocks or the plan's columns do not suffice now."""
        num_known = len(request.tokens)
        num_blocks = self.kv.blocks_for(num_known)
        # Some blocks stay for the growth of running rows, or the newcomer would soon be preempted for them.
        spare = min(self.num_running, self.kv.pool.num_blocks // WATERMARK_SHARE)
        if not self.kv.fits(match, num_blocks, spare):
            self._blocked = (request, self.kv.pool.num_available, len(self.kv.cache))
            return False
        if not writer.takes(num_blocks, row_setup.size(request, num_known)):
            return False
        num_cached = len(match.blocks) * self._block_size
        row = self.rows.occupy(request, num_cached, num_blocks, self._block_size)
        table = self.rows.block_table[row, :num_blocks]
        self.kv.start(request, match, table)
        writer.blocks(row, np.arange(num_blocks), table)
        writer.setup(row_setup.encode(request))
        self.waiting.pop()
        request.become(Status.RUNNING)
        self._prefilling.append(request)
        self._num_constrained += request.constraint is not None
        self._quarantine.started(request)
        self.counters.admitted(request, num_cached, now_ns)
        return True

    def _still_blocked(self, request: Request) -> bool:
        """Whether nothing got better since this request did not fit: then looking up its prefix again is wasted."""
        blocked = self._blocked
        if blocked is None or blocked[0] is not request:
            return False
        return self.kv.pool.num_available <= blocked[1] and len(self.kv.cache) == blocked[2]

    def _displace(self, step: int) -> None:
        """Preempt running requests that must give way to the first waiting one, which lacks a row or blocks."""
        while (request := self.waiting.first()) is not None and self.num_running:
            victim = self._policy.victim(self.running()) if self._policy.displacing else None
            if victim is None or not self._policy.displaces(request, victim) or not self._quarantine.admits(request, 0):
                return
            if request.constraint is not None and self._num_constrained >= self._dimensions.masks:
                return  # what it lacks is not the victim's
            if self.rows.num_free:
                spare = min(self.num_running, self.kv.pool.num_blocks // WATERMARK_SHARE)
                if self.kv.fits(self.kv.match(request, step), self.kv.blocks_for(len(request.tokens)), spare):
                    return
            self._preempt(victim)

    # Results

    def apply(self, result: ResultColumns, now_ns: int) -> list[Emission]:
        """Take over the result of the oldest step in flight; what the frontends are to be told.

        Raises ProtocolError when no step is in flight or the columns hold another one's result.
        """
        if not self._flights or result.header[ResultHeader.STEP] != self._flights[0].step:
            raise ProtocolError(f"a result of step {result.header[ResultHeader.STEP]} is not the one that is due")
        flight = self._flights.popleft()
        sampled = self._sampled(flight, result)
        hits = self._stops.hits(sampled.tokens)
        num_rows = (len(flight.decodes.rows) if flight.decodes is not None else 0) + len(flight.prefills)
        if np.count_nonzero(hits) or np.count_nonzero(result.flags[:num_rows]):
            sampled = self._drop_failed(sampled, result)
            hits = self._stops.hits(sampled.tokens)
        ends = self._advance(flight, sampled, hits)
        if ends is not None:
            self._end(sampled, ends)
        if flight.bound:
            self._ask(flight)
        self.counters.applied(flight, len(sampled.rows), now_ns, int(result.header[ResultHeader.FORWARD_NS]))
        if self._quarantine.alone is not None:
            self._clear_suspect(self._quarantine.alone)
        return self._emitter.emit(flight.step, now_ns, sampled, result)

    def _sampled(self, flight: Flight, result: ResultColumns) -> Sampled:
        """Which rows got a token that still counts."""
        columns, decodes = self.rows, flight.decodes
        positions: I64 | None = None
        segments: list[Segment] | None = None
        if decodes is None:
            rows, segments = np.empty(0, np.int64), []
            tokens = result.tokens[:0]
        else:
            rows, segments = decodes.rows, decodes.segments
            tokens = result.tokens[: len(rows)]
            if flight.version != self._version:
                fresh = columns.generation[rows] == decodes.generations
                if not fresh.all():
                    positions = np.flatnonzero(fresh)
                    rows, tokens, segments = rows[positions], tokens[positions], None
        if flight.prefills:
            more = [prefill for prefill in flight.prefills if self._prefilled(prefill, result)]
            if more:
                if positions is None:
                    positions = np.arange(len(rows))
                rows = np.append(rows, [prefill.row for prefill in more])
                positions = np.append(positions, [prefill.position for prefill in more])
                order = np.argsort(columns.frontend[rows], kind="stable")
                rows, positions = rows[order], positions[order]
                tokens, segments = result.tokens[positions], None
        wanted = columns.logprobs[rows] if columns.num_logprobs_rows else None
        return Sampled(rows, tokens, rows, positions, segments, wanted)

    def _prefilled(self, prefill: Prefill, result: ResultColumns) -> bool:
        """Take over what a row's prefill gave besides its token; whether it has one that counts."""
        row, request = prefill.row, prefill.request
        if self.rows.generation[row] != prefill.generation:
            return False
        self.rows.num_computed[row] = prefill.start + prefill.count
        if result.flags[prefill.position] & ResultFlag.NAN:
            self._fail(request)
            return False
        if prefill.num_report:
            self._emitter.prompt_logprobs(request, prefill.first_report, prefill.token_place, prefill.num_report, result)
            request.prompt_reported = prefill.first_report + prefill.num_report
        if prefill.vector != NO_VECTOR:
            self._emitter.vector(request, result.vectors[prefill.vector])
            self.counters.embeddings += 1
            self._finish(request, Ending(FinishReason.STOP))
        return prefill.sample

    def _drop_failed(self, sampled: Sampled, result: ResultColumns) -> Sampled:
        """Fail the requests whose token means nothing; the sampled rows without them."""
        places = np.arange(len(sampled.rows)) if sampled.positions is None else sampled.positions
        tokens = sampled.tokens.view(np.uint32)
        good = ((result.flags[places] & ResultFlag.NAN) == 0) & (tokens < self._model.vocab_size)
        if good.all():
            return sampled
        for row in sampled.rows[~good].tolist():
            request = self.rows.requests[row]
            assert request is not None
            self._fail(request)
        rows = sampled.rows[good]
        wanted = None if sampled.wanted is None else sampled.wanted[good]
        return Sampled(rows, sampled.tokens[good], rows, places[good], None, wanted)

    def _advance(self, flight: Flight, sampled: Sampled, hits: npt.NDArray[np.bool_]) -> list[int] | None:
        """Append the tokens to their rows' histories; places of the rows that may end now."""
        columns, rows = self.rows, sampled.rows
        known = columns.num_known[rows]
        columns.history_flat[columns.history_base[rows] + known] = sampled.tokens
        columns.num_computed[rows] = known
        sampled.index = known - columns.num_prompt[rows]
        known += 1
        columns.num_known[rows] = known
        if flight.has_last:
            hits |= known >= columns.end[rows]
        return np.flatnonzero(hits).tolist() if np.count_nonzero(hits) else None

    def _end(self, sampled: Sampled, places: list[int]) -> None:
        """End those of the rows at these places that reached a stop token or their length."""
        columns = self.rows
        for place in places:
            row, token = int(sampled.rows[place]), int(sampled.tokens[place])
            request = columns.requests[row]
            assert request is not None
            if token in request.stop_set and sampled.index[place] + 1 >= request.params.min_tokens:
                self._finish(request, Ending(FinishReason.STOP, token))
            elif columns.num_known[row] >= columns.end[row]:
                self._finish(request, Ending(FinishReason.LENGTH))

    def _ask(self, flight: Flight) -> None:
        """Order the next masks of the rows under a grammar that got a token and go on.

        Steps in flight wait for them. Nobody's step shall wait for a slow one, so such a row gives its place back until the mask is there.
        """
        columns, rows = self.rows, np.array([each.row for each in flight.bound])
        last = columns.history_flat[columns.history_base[rows] + columns.num_known[rows] - 1].tolist()
        slow: list[Request] = []
        for each, generation, token in zip(flight.bound, columns.generation[rows].tolist(), last):
            if generation == each.generation:
                request = each.constraint.request
                request.waiting_on.add(GRAMMAR)
                self._orders.append(Order(each.constraint, [token], False))
                if each.constraint.slow:
                    slow.append(request)
        if slow and self.num_running > len(slow):
            for request in slow:
                self._preempt(request)

    def _requests_in_flight(self) -> Iterator[Request]:
        for flight in self._flights:
            for prefill in flight.prefills:
                if self.rows.generation[prefill.row] == prefill.generation:
                    yield prefill.request
            if flight.decodes is not None:
                for row, generation in zip(flight.decodes.rows.tolist(), flight.decodes.generations.tolist()):
                    request = self.rows.requests[row]
                    if request is not None and self.rows.generation[row] == generation:
                        yield request

    def _clear_suspect(self, request: Request) -> None:
        """A request that ran alone after workers had died: harmless after all? Then it gives way to the next suspect."""
        order = self._policy.order(request.priority, *request.order[1:])
        if self._quarantine.cleared(self.rows, order) and self._quarantine.any_left:
            self._preempt(request)

    # Ends

    def _preempt(self, request: Request) -> None:
        """Take row and blocks; it waits again, before all that come after it in the policy's order."""
        self._leave_row(request, keep=True)
        request.become(Status.PREEMPTED)
        request.num_preemptions += 1
        self.counters.preemptions += 1
        self._wait(request)

    def _wait(self, request: Request) -> None:
        """Into the queue, or beside it while the request could not start if it were first."""
        if request.waiting_on:
            self._held[request] = None
        else:
            self.waiting.push(request)

    def _fail(self, request: Request) -> None:
        """The request's numbers are wrong: nobody may read its blocks."""
        self._finish(request, Ending(FinishReason.ERROR, error=NOT_FINITE), keep=False)

    def _finish(self, request: Request, ending: Ending | None, keep: bool = True) -> None:
        """End a request and tell of it, unless there is no `ending` to tell."""
        running = request.status is Status.RUNNING
        if running:
            self._leave_row(request, keep)
        request.become(Status.FINISHED)
        if request in self._held:
            del self._held[request]
        elif not running:
            self.waiting.forget_finished()
        del request.frontend.requests[request.handle]
        request.frontend.request_ids.discard(request.request_id)
        self._stops.remove(request.stop_set)
        self._quarantine.ended(request)
        if ending is not None:
            self._emitter.finished(request, ending, len(request.tokens))

    def _leave_row(self, request: Request, keep: bool) -> None:
        """Row and blocks become free; keep: others may go on reading what was computed for it."""
        columns, row = self.rows, request.row
        table = columns.block_table[row, : columns.capacity[row] // self._block_size]
        if keep:
            # Scheduled is enough: workers run steps in order, so it is computed before anybody reads it.
            valid = int(min(columns.num_known[row], columns.num_scheduled[row]))
            self.kv.finish(request, table, columns.tokens(row), valid)
        else:
            self.kv.discard(request, table)
        if not columns.decoding[row] and request in self._prefilling:
            self._prefilling.remove(request)
        if request.constraint is not None:
            self._num_constrained -= 1
            for flight in self._flights:
                flight.forget(request.constraint)
        columns.free(row)
        self._version += 1

    def _reset_blocks(self, num_blocks: int) -> None:
        """Start with empty blocks. Only while no request runs."""
        self.counters.evicted_before += self.kv.cache.num_evicted
        self.kv = KVManager(num_blocks, self._block_size, self._secret, self._caching)
        for request in [*self.waiting, *self._held]:
            request.node, request.path_len, request.path_open = None, 0, False
        self._blocked = None
        self._version += 1

    def _frontend(self, identity: str) -> Frontend:
        frontend = self._frontends.get(identity)
        if frontend is None:
            frontend = self._frontends[identity] = self._by_number[self._next_frontend] = Frontend(identity, self._next_frontend)
            self._next_frontend += 1
        return frontend

    def _check_size(self, request: Request) -> None:
        """Raise InvalidRequestError if the request could never be started."""
        least = request.num_prompt + (not request.pooling)
        needed, total = self.kv.blocks_for(max(len(request.tokens), least)), self.kv.pool.num_blocks
        if needed > total:
            raise InvalidRequestError(
                f"the prompt has {request.num_prompt} tokens and needs {needed} KV blocks of {self._block_size}, the engine has {total}",
                "prompt",
            )
        request.setup_bytes = row_setup.size_without_history(request)
        if row_setup.size(request, request.end) > row_setup.room(self._dimensions.setup_bytes):
            raise InvalidRequestError("the sampling parameters are too large together (bad_words, logit_bias)", "bad_words")

    def validate(self) -> None:
        """Check every invariant. Raises AssertionError naming the broken one."""
        from scheduler_proc.invariants import check

        check(self)
