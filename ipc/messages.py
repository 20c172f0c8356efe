"""Every message two quire processes exchange. Bulk arrays of a step live in the arena (ipc/arena.py); these are the rest.

All are tagged, array-like msgspec structs: adding a field at the end is compatible, an unknown tag is refused. Times are
integer nanoseconds of CLOCK_MONOTONIC, which all processes of one machine share. Token arrays travel as little-endian int32 bytes.
"""

from __future__ import annotations

import enum

import msgspec

from ipc.grammar import Grammar
from ipc.sampling_params import SamplingParams, ThinkingLimit


class FinishReason(enum.IntEnum):
    """Why a request ended."""

    STOP = 0  # end-of-sequence, a stop token or (found by the frontend) a stop string
    LENGTH = 1  # max_tokens or the model's context
    ABORT = 2  # the client left or asked for it
    ERROR = 3  # this request failed; Finished.error says how


# Added to the priority of what no client waits for: it sorts behind all that clients ask for, whatever the policy.
BEHIND_CLIENTS = 1 << 62


class RefuseCode(enum.IntEnum):
    """Why the scheduler did not take a request."""

    INVALID = 0
    QUEUE_FULL = 1
    DRAINING = 2


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


# frontend -> scheduler


class Submit(_Message, frozen=True, tag=1):
    """Run this request. `handle` is the sending frontend's integer name for it, unique in that frontend's life.

    emitted: output tokens the client already has, when a frontend resubmits after a scheduler's death.
    priority: lower goes first under the policy of that name, BEHIND_CLIENTS last under all. bad_words: token sequences that may not be
    completed. seed: always given, so that a replay draws the same numbers.
    grammar: what the output must follow; params.structured_outputs, which it was made from, is not looked at. thinking: how long the
    model may reason; made from params.thinking_token_budget. embed: compute the prompt, sample nothing, and give its vector. scores: see
    RowSetup; for a search, which chooses among what is reported.
    """

    handle: int
    request_id: str
    prompt: bytes
    params: SamplingParams
    seed: int
    arrival_ns: int
    priority: int = 0
    cache_salt: str = ""
    bad_words: list[list[int]] = []
    emitted: bytes = b""
    grammar: Grammar | None = None
    thinking: ThinkingLimit | None = None
    embed: bool = False
    scores: bool = False


class Abort(_Message, frozen=True, tag=2):
    """Stop these requests. Each gets one Finished if it was still known; an unknown handle is ignored."""

    handles: list[int]


# scheduler -> frontend


class Started(_Message, frozen=True):
    """A request runs for the first time; comes before its first token or in the same message, and before its end if it has no token.

    num_cached: prompt tokens that came from the prefix cache. queued_ns: from arrival to its first time in a plan.
    """

    handle: int
    num_cached: int
    queued_ns: int


class Finished(_Message, frozen=True):
    """The end of one request; comes in the same message as its last token, if it has one.

    stop_token: the token that ended it, -1 if none did. It is emitted and counted like any token; a frontend leaves it out of the
    text.
    """

    handle: int
    reason: FinishReason
    stop_token: int = -1
    num_prompt: int = 0
    num_output: int = 0
    num_preemptions: int = 0
    error: str = ""


class Logprobs(_Message, frozen=True):
    """Log-probabilities of some of a message's tokens, as columns over n reported tokens.

    at: uint32[n], index into Tokens.tokens. logprob: float32[n]. rank: int32[n], 1 = most likely.
    top_ids int32[n, width] and top_logprobs float32[n, width], most likely first, id -1 where a request asked for fewer.
    """

    at: bytes
    logprob: bytes
    rank: bytes
    width: int
    top_ids: bytes
    top_logprobs: bytes


class PromptLogprobs(_Message, frozen=True):
    """Log-probabilities of prompt tokens start .. start+n of one request, columns as in Logprobs. Token 0 has none."""

    handle: int
    start: int
    logprob: bytes
    rank: bytes
    width: int
    top_ids: bytes
    top_logprobs: bytes


class Embedding(_Message, frozen=True):
    """The vector of one request with `embed`, float32[hidden], neither cut nor normalised; its Finished is in the same message."""

    handle: int
    vector: bytes


class Tokens(_Message, frozen=True, tag=3):
    """What one step produced for one frontend's requests.

    handles uint32[n], index uint32[n] (position of the token in its request's output, counted from 0: a reader drops what it
    has and treats a gap as an error), tokens int32[n]. sampled_ns: when the scheduler saw the result.
    """

    step: int
    sampled_ns: int
    handles: bytes
    index: bytes
    tokens: bytes
    finished: list[Finished] = []
    logprobs: Logprobs | None = None
    prompt_logprobs: list[PromptLogprobs] = []
    embeddings: list[Embedding] = []
    started: list[Started] = []


class Refused(_Message, frozen=True, tag=4):
    """The request was not taken; nothing of it is kept. retry_after_s: when to try again, if that may help."""

    handle: int
    code: RefuseCode
    message: str
    param: str = ""
    retry_after_s: float = 0.0


# scheduler <-> worker


class StepPlan(_Message, frozen=True, tag=5):
    """Doorbell: the plan of `step` is complete in arena slot `slot`."""

    step: int
    slot: int


class StepResult(_Message, frozen=True, tag=6):
    """Doorbell: the results of `step` are complete in arena slot `slot`."""

    step: int
    slot: int


class Masks(_Message, frozen=True, tag=10):
    """Doorbell: the masks of `step`, whose plan said that they follow, are complete in its slot. Comes after the plan's doorbell."""

    step: int


class WorkerReady(_Message, frozen=True, tag=7):
    """A worker has loaded its weights and can hold `num_blocks` KV blocks."""

    rank: int
    num_blocks: int
    kv_bytes_per_block: int


class KVSize(_Message, frozen=True, tag=8):
    """The scheduler's answer: allocate this many KV blocks, then answer KVReady."""

    num_blocks: int


class KVReady(_Message, frozen=True, tag=9):
    """A worker's KV cache stands; plans may come."""

    rank: int


# any <-> supervisor


class Hello(_Message, frozen=True, tag=20):
    """A child's first words. `role` is frontend, scheduler or worker."""

    role: str
    index: int
    pid: int


class Ready(_Message, frozen=True, tag=21):
    """The child does its work from now on. detail: one line for the log."""

    role: str
    index: int
    detail: str = ""


class Loading(_Message, frozen=True, tag=22):
    """Start-up progress for the user: `what`, and done/total in bytes or items."""

    role: str
    index: int
    what: str
    done: int = 0
    total: int = 0


class Fatal(_Message, frozen=True, tag=23):
    """The child cannot go on; it ends right after. user_error: the cause is the configuration or the model, not a bug."""

    role: str
    index: int
    message: str
    user_error: bool = False


class Drain(_Message, frozen=True, tag=24):
    """Take no new requests; finish what runs until `deadline_ns` (CLOCK_MONOTONIC), then end."""

    deadline_ns: int


class Drained(_Message, frozen=True, tag=25):
    """Nothing is in flight here any more."""

    role: str
    index: int


class Stop(_Message, frozen=True, tag=26):
    """End now."""


class Peers(_Message, frozen=True, tag=27):
    """Where the scheduler is reached in its present life; a new epoch means the old one is dead."""

    scheduler_epoch: int


class PeerGone(_Message, frozen=True, tag=28):
    """A process died; its requests or steps will never be asked for again."""

    role: str
    index: int
    epoch: int


class SetLogLevel(_Message, frozen=True, tag=29):
    """Log from this severity on; one of ipc.logs.LEVELS."""

    level: str


class ResetPrefixCache(_Message, frozen=True, tag=30):
    """Forget all KV blocks that no request uses. The scheduler answers PrefixCacheReset."""


class PrefixCacheReset(_Message, frozen=True, tag=31):
    """So many blocks were forgotten."""

    num_blocks: int


FrontendToScheduler = Submit | Abort
SchedulerToFrontend = Tokens | Refused
SchedulerToWorker = StepPlan | Masks | KVSize
WorkerToScheduler = StepResult | WorkerReady | KVReady
ChildToSupervisor = Hello | Ready | Loading | Fatal | Drained | PrefixCacheReset
SupervisorToChild = Drain | Stop | Peers | PeerGone | SetLogLevel | ResetPrefixCache
