"""What the scheduler knows of one request, and which states it may go through."""

from __future__ import annotations

import enum

import numpy as np

from ipc.arena import I32
from ipc.errors import IllegalTransitionError
from ipc.messages import FinishReason, Submit
from scheduler_proc.constraint import Constraint
from scheduler_proc.frontends import Frontend
from scheduler_proc.prefix_cache import RadixNode


class Status(enum.Enum):
    """Where a request is: in the queue, in a row, in the queue again, or nowhere any more."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


_MAY_BECOME = {
    Status.WAITING: {Status.RUNNING, Status.FINISHED},
    Status.RUNNING: {Status.PREEMPTED, Status.FINISHED},
    Status.PREEMPTED: {Status.RUNNING, Status.FINISHED},
    Status.FINISHED: set(),
}


class Request:
    """One accepted request.

    tokens: int32, all known tokens (prompt, then output) while it has no row; in a row its history column is the truth and this one
    is behind. end: absolute position at which it ends by length (its last token is end - 1). target: tokens to prefill in
    its present row. setup_bytes: see row_setup.size. path_len, num_shared, node, path_open, keys: its place in the prefix tree, kept
    by KVManager. waiting_on: what must come before it can be scheduled; see scheduler_proc/constraint.py. pooling: "last" or "mean" for one
    that ends with its prompt's vector and samples nothing, else "".
    """

    __slots__ = (
        "arrival_ns",
        "bad_words",
        "cache_salt",
        "constraint",
        "end",
        "first_planned_ns",
        "frontend",
        "handle",
        "keys",
        "node",
        "num_preemptions",
        "num_prompt",
        "num_shared",
        "order",
        "params",
        "path_len",
        "path_open",
        "pooling",
        "priority",
        "prompt_reported",
        "request_id",
        "row",
        "scores",
        "seed",
        "setup_bytes",
        "status",
        "stop_ids",
        "stop_set",
        "suspect_tokens",
        "target",
        "thinking",
        "tokens",
        "waiting_on",
        "worker_deaths",
    )

    def __init__(
        self, submit: Submit, frontend: Frontend, order: tuple[int, int, int], end: int, eos: list[int], pooling: str = ""
    ) -> None:
        params = submit.params
        self.frontend = frontend
        self.handle = submit.handle
        self.request_id = submit.request_id
        self.params = params
        self.seed = submit.seed
        self.bad_words = submit.bad_words
        self.thinking = submit.thinking
        self.scores = submit.scores
        self.priority = submit.priority
        self.cache_salt = submit.cache_salt
        self.arrival_ns = submit.arrival_ns
        self.order = order
        self.num_prompt = len(submit.prompt) // 4
        self.tokens: I32 = np.frombuffer(submit.prompt + submit.emitted, np.int32)
        self.end = end
        self.pooling = pooling
        self.stop_ids = list(dict.fromkeys([*([] if params.ignore_eos else eos), *params.stop_token_ids]))
        self.stop_set = frozenset(self.stop_ids)
        self.status = Status.WAITING
        self.row = -1
        self.target = 0
        self.waiting_on: set[str] = set()
        self.constraint = None if submit.grammar is None else Constraint(submit.grammar, self)
        self.prompt_reported = 1  # the first prompt token has no log-probability
        self.node: RadixNode | None = None
        self.path_len = 0
        self.num_shared = 0
        self.path_open = False
        self.keys: list[bytes] = []
        self.num_preemptions = 0
        self.first_planned_ns = 0
        self.worker_deaths = 0
        self.suspect_tokens = 0
        self.setup_bytes = 0

    @property
    def skips_cache(self) -> bool:
        """The caller wants the prompt computed, or its log-probabilities or the mean over its tokens, which need that."""
        params = self.params
        wants_logprobs = params.prompt_logprobs is not None and self.prompt_reported < self.num_prompt
        return params.skip_reading_prefix_cache or wants_logprobs or self.pooling == "mean"

    @property
    def wants_history(self) -> bool:
        """Whether the worker must know all tokens, not only compute them."""
        params = self.params
        return (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
            or bool(self.bad_words)
            or params.prompt_logprobs is not None
            or self.thinking is not None
        )

    def become(self, status: Status) -> None:
        """Change the status. Raises IllegalTransitionError if the table has no such change."""
        if status not in _MAY_BECOME[self.status]:
            raise IllegalTransitionError(f"request {self.request_id}: {self.status.value} -> {status.value}")
        self.status = status


class Ending:
    """Why and by which token a request ends."""

    __slots__ = ("error", "reason", "stop_token")

    def __init__(self, reason: FinishReason, stop_token: int = -1, error: str = "") -> None:
        self.reason = reason
        self.stop_token = stop_token
        self.error = error
