"""The grammar desk: compiles grammars and computes masks beside the scheduler's loop, which only sends orders and gets answers.

Two kinds of work, measured with llguidance 1.9 (docs/structured_output.md has the numbers):
- Compiling takes milliseconds, but what a client sends may be made to hang, to eat memory or to crash. So a process tries it first,
  under limits, and is killed when it exceeds them (grammar_compiler.py, one thread for each process). What has passed is built once more
  here, in the same thread, because a matcher cannot travel between processes; llguidance releases the interpreter's lock for that.
- Masks take 5 to 150 microseconds, on a bad day 20 milliseconds. One thread computes those that steps wait for, all rows of a step in
  one go, also with the lock released, so the loop never waits for a grammar. Another one computes what no step waits for: each
  request's first mask, and the masks of requests that have shown to be slow (Constraint.slow), so that they hold up nobody else.

Compiled grammars are kept by content. A request gets a copy of the matcher (5 microseconds): copies share the lexer's tables.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ipc.arena import I32
from ipc.config import StructuredOutputsConfig
from ipc.grammar import Grammar
from scheduler_proc.constraint import Answer, Order, Outcome
from scheduler_proc.grammar_cache import GrammarCache, estimated_bytes, key_of
from scheduler_proc.grammar_facts import TokenizerFacts

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger(__name__)

MAX_COMPILING = 256
SLOW_MASK_NS = 2_000_000  # processor time
# What a slow mask weighs after each further one: after 20 ms, a request is trusted again in 73 masks.
DECAY = 31 / 32
_MIB = 2**20


class _State:
    """A request's matcher, and the buffer its masks are computed into. Only one thread touches it at a time: that which has its order.

    cost_ns: processor time that its masks took, the slowest weighing most.
    """

    __slots__ = ("address", "cost_ns", "mask", "matcher", "size")

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        self.matcher = matcher
        self.mask: I32 = np.zeros(words, np.int32)
        self.address, self.size = self.mask.ctypes.data, self.mask.nbytes
        self.cost_ns = 0.0


class _Step(msgspec.Struct, gc=False, eq=False):
    """Orders that a mask thread answers together. prototype: for first orders, the compiled grammar."""

    orders: Sequence[Order]
    prototype: Any = None


class GrammarDesk:
    """deliver(answers) is called from the desk's threads; everything else is called by the loop's thread."""

    def __init__(self, facts: TokenizerFacts, settings: StructuredOutputsConfig, deliver: Callable[[list[Answer]], None]) -> None:
        self._facts, self._settings, self._deliver = facts, settings, deliver
        self._words = -(-facts.vocab_size // 32)
        self._lock = threading.Lock()  # for _cache and _compiling
        self._cache: GrammarCache[LLMatcher] = GrammarCache(settings.grammar_cache_memory * _MIB)
        self._compiling: dict[bytes, list[Order]] = {}
        self._jobs: SimpleQueue[tuple[bytes, Grammar] | None] = SimpleQueue()
        self._urgent: SimpleQueue[_Step | None] = SimpleQueue()  # a step waits
        self._patient: SimpleQueue[_Step | None] = SimpleQueue()
        self._tokenizer: LLTokenizer | None = None
        self._loaded = threading.Event()
        self._unusable = ""

    def start(self) -> None:
        """Start the threads. The tokenizer is read at once, while the workers load: it holds the interpreter's lock for that long."""
        threading.Thread(target=self._load, name="grammar-load", daemon=True).start()
        threading.Thread(target=self._mask_loop, args=(self._urgent,), name="grammar-masks", daemon=True).start()
        threading.Thread(target=self._mask_loop, args=(self._patient,), name="grammar-others", daemon=True).start()
        for number in range(self._settings.grammar_processes):
            threading.Thread(target=self._compile_loop, name=f"grammar-compile-{number}", daemon=True).start()

    def close(self) -> None:
        """Let the threads end when they can; their processes end with this one at the latest."""
        self._urgent.put(None)
        self._patient.put(None)
        for _ in range(self._settings.grammar_processes):
            self._jobs.put(None)

    def take(self, orders: list[Order]) -> None:
        """Work on these; each gets one answer."""
        urgent: list[Order] = []
        patient: list[Order] = []
        for order in orders:
            if not order.first:
                # Read once: from the moment an order is given away, its thread may change it.
                (patient if order.constraint.slow else urgent).append(order)
        for queue, step in ((self._urgent, urgent), (self._patient, patient)):
            if step:
                queue.put(_Step(step))
        for order in orders:
            if order.first:
                self._open(order)

    def _open(self, order: Order) -> None:
        """Find the order's compiled grammar, or have it compiled, once for all who wait for the same."""
        grammar = order.constraint.grammar
        key = key_of(grammar)
        with self._lock:
            error = self._cache.error(key, time.monotonic())
            waiting = self._compiling.get(key)
            compiled = self._cache.get(key) if error is None and waiting is None else None
            busy = waiting is None and len(self._compiling) >= MAX_COMPILING
            if waiting is not None:
                waiting.append(order)
            elif error is None and compiled is None and not busy:
                self._compiling[key] = [order]
        if error is not None:
            self._deliver([_invalid(order, error)])
        elif compiled is not None:
            self._patient.put(_Step([order], compiled))
        elif waiting is None and busy:
            self._deliver([Answer(order.constraint, Outcome.BUSY, f"{MAX_COMPILING} grammars are waiting to be compiled already")])
        elif waiting is None:
            self._jobs.put((key, grammar))

    # The threads

    def _load(self) -> None:
        try:
            from scheduler_proc import grammar_text

            self._tokenizer = grammar_text.load_tokenizer(self._facts)
        except Exception as error:
            self._unusable = f"structured output is not available with this model: {type(error).__name__}"
            if not _stops_the_start(self._facts.file):
                log.warning("structured output is not available: %s cannot be read: %s", self._facts.file, error)
        self._loaded.set()

    def _compile_loop(self) -> None:
        self._loaded.wait()
        if self._unusable:
            while (job := self._jobs.get()) is not None:
                self._compiled(job[0], None, self._unusable)
            return
        from scheduler_proc.grammar_child import ChildTask
        from scheduler_proc.grammar_compiler import GrammarCompiler

        settings = self._settings
        compiler = GrammarCompiler(ChildTask(self._facts, settings.grammar_compile_timeout, settings.grammar_compile_memory))
        while (job := self._jobs.get()) is not None:
            self._compile(compiler, *job)
        compiler.close()

    def _compile(self, compiler: Any, key: bytes, grammar: Grammar) -> None:
        from scheduler_proc import grammar_text
        from scheduler_proc.grammar_compiler import CompilerDownError, GrammarError

        try:
            text = compiler.check(grammar)
            assert self._tokenizer is not None
            matcher = grammar_text.build(self._tokenizer, text)
        except (GrammarError, ValueError) as error:
            with self._lock:
                self._cache.put_error(key, str(error), time.monotonic(), getattr(error, "passing", False))
            self._compiled(key, None, str(error))
        except CompilerDownError as error:
            log.error("%s", error)
            self._compiled(key, None, str(error), broken=True)
        except BaseException as error:  # llguidance's panics are no Exceptions
            log.exception("a grammar could not be compiled")
            self._compiled(key, None, f"the grammar compiler failed ({type(error).__name__})", broken=True)
        else:
            with self._lock:
                self._cache.put(key, matcher, estimated_bytes(text))
            self._compiled(key, matcher, "")

    def _compiled(self, key: bytes, matcher: LLMatcher | None, error: str, broken: bool = False) -> None:
        """Serve all who wait for this grammar. broken: it is our fault that there is none."""
        with self._lock:
            orders = self._compiling.pop(key)
        if matcher is not None:
            self._patient.put(_Step(orders, matcher))
        elif broken:
            self._deliver([Answer(order.constraint, Outcome.FAILED, error) for order in orders])
        else:
            self._deliver([_invalid(order, error) for order in orders])

    def _mask_loop(self, steps: SimpleQueue[_Step | None]) -> None:
        while (step := steps.get()) is not None:
            self._deliver([self._timed(order, step.prototype) for order in step.orders])

    def _timed(self, order: Order, prototype: LLMatcher | None) -> Answer:
        began = time.thread_time_ns()
        answer = self._answer(order, prototype)
        state: _State | None = order.constraint.state
        if state is not None:
            state.cost_ns = max(DECAY * state.cost_ns, time.thread_time_ns() - began)
            order.constraint.slow = state.cost_ns > SLOW_MASK_NS
        return answer

    def _answer(self, order: Order, prototype: LLMatcher | None) -> Answer:
        """Advance one matcher and compute what may come next."""
        constraint = order.constraint
        try:
            if prototype is not None:
                constraint.state = _State(prototype.deep_copy(), self._words)
                constraint.mask = constraint.state.mask
            state: _State = constraint.state
            matcher = state.matcher
            if order.tokens and not matcher.consume_tokens(order.tokens):
                return Answer(constraint, Outcome.FAILED, f"the output left its grammar: {_reason(matcher)}")
            # An end that only the mask's computation notices counts as well.
            if not matcher.is_stopped():
                matcher.unsafe_compute_mask_ptr(state.address, state.size)
            if matcher.is_error():
                return Answer(constraint, Outcome.FAILED, f"the grammar cannot be followed any further: {_reason(matcher)}")
            if matcher.is_stopped():
                return Answer(constraint, Outcome.COMPLETE)
            if not state.mask.any():
                return Answer(constraint, Outcome.FAILED, "the grammar allows no token at all")
            return Answer(constraint, Outcome.READY)
        except BaseException as error:  # llguidance's panics are no Exceptions, and one request's must not stop the others'
            log.exception("a mask could not be computed")
            return Answer(constraint, Outcome.FAILED, f"the grammar engine failed ({type(error).__name__})")


def _stops_the_start(file: str) -> bool:
    """Whether the frontends cannot read this tokenizer.json either: then the engine ends with their message, and needs none of ours."""
    from tokenizers import Tokenizer

    if not os.path.exists(file):
        return False  # they have another one
    try:
        Tokenizer.from_file(file)
    except Exception:  # the library raises bare Exception
        return True
    return False


def _reason(matcher: LLMatcher) -> str:
    from scheduler_proc import grammar_text

    return grammar_text.message_of(matcher)


def _invalid(order: Order, error: str) -> Answer:
    return Answer(order.constraint, Outcome.INVALID, f"{order.constraint.grammar.param} cannot be used: {error}")
