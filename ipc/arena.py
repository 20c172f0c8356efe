"""The shared memory of one engine: step slots, through which plans and results pass, and a status page that says who is alive.

One sealed memfd, made by the supervisor and inherited as a descriptor: no name to guess, nothing left behind after a kill -9.
posix_fallocate takes the memory at once, so a full /dev/shm is an error at start and never a SIGBUS later.

Ownership: a slot's plan columns are written by the scheduler alone, its result columns by worker rank 0 alone; each status record by
its own process alone. A slot is handed over by a doorbell that names its step; a reader that finds another step number in the
slot's header knows that its doorbell is stale.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ipc.config import Config, ModelInfo
from ipc.errors import ConfigError, ProtocolError
from ipc.memory import available_memory
from ipc.sampling_params import ThinkingLimit

NUM_SLOTS = 4
MAX_VECTORS = 32  # rows that may get their vectors in one step; a prompt takes longer to compute than the next step is away
HEADER_WORDS = 16
ALIGNMENT = 64
STATUS_WORDS = 64
MAX_FRONTENDS = 64
MAX_WORKERS = 64
STATUS_RECORDS = 1 + MAX_FRONTENDS + MAX_WORKERS

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class PlanHeader(enum.IntEnum):
    """Words of PlanColumns.header."""

    STEP = 0
    NUM_ROWS = 1  # entries used in row, num_new, start, flags
    NUM_TOKENS = 2  # sum of num_new
    NUM_TOKEN_IDS = 3  # entries used in token_ids
    NUM_BLOCK_UPDATES = 4  # entries used in block_row, block_index, block_id
    SETUP_BYTES = 5  # bytes used in setup: a msgpack list[RowSetup], or 0
    NUM_MASKS = 6  # entries used in masks
    MASKS_FOLLOW = 7  # 1: some of them are written while the step computes; the message Masks says when all are there


class RowFlag(enum.IntFlag):
    """Bits of PlanColumns.flags."""

    SAMPLE = 1  # sample a token after the row's last new token
    DEVICE_TOKEN = 2  # the row's one input token is the one last sampled for it, which the worker has; token_ids holds none
    PROMPT_LOGPROBS = 4  # report the log-probabilities of prompt tokens start+1 .. start+num_new
    GRAMMAR = 8  # with SAMPLE: only tokens of the row's mask may be sampled
    EMBED = 16  # never with SAMPLE: report the row's vector, as it is after the row's last new token
    MEAN = 32  # the row's vector is the mean over its tokens, from token 0 on, and the new ones join it; without it, that of the last token


class ResultHeader(enum.IntEnum):
    """Words of ResultColumns.header."""

    STEP = 0
    NUM_ROWS = 1
    FORWARD_NS = 2  # time the worker spent on the step


class ResultFlag(enum.IntFlag):
    """Bits of ResultColumns.flags."""

    NAN = 1  # the row's logits were not finite: its token means nothing


class RowSetup(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """All a worker must know of a request before the first plan that names its row; holds until the row's next RowSetup.

    The token sampled after position p - 1 is token p; its random number is a function of (seed, p). No stop id may be sampled for
    p < min_position. top_k 0, top_p 1, min_p 0, penalties (1, 0, 0) are off; temperature 0 is greedy. logprobs, prompt_logprobs:
    -1 is off.
    allowed: int32 token ids, empty is all. history: int32 ids of every known token (prompt, then output), given when a penalty,
    bad words, prompt_logprobs or thinking need it; num_prompt says where the output begins. logprob_ids: int32 ids to report instead of
    the most likely, as many as `logprobs` says. scores: logprobs are what the row's next token would be chosen by: the log-probabilities,
    changed by grammar, allowed ids, bias, bad words and penalties, and not normalised again; forbidden tokens are not reported. Which
    token the row itself gets is left open.
    """

    row: int
    num_prompt: int
    seed: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_position: int = 0
    stop_ids: list[int] = []
    logprobs: int = -1
    prompt_logprobs: int = -1
    logit_bias: dict[int, float] = {}
    bad_words: list[list[int]] = []
    allowed: bytes = b""
    history: bytes = b""
    thinking: ThinkingLimit | None = None
    logprob_ids: bytes = b""
    scores: bool = False


class Dimensions(msgspec.Struct, frozen=True):
    """What the arena's size follows from."""

    rows: int
    tokens: int
    blocks_per_row: int
    block_updates: int
    setup_bytes: int
    logprobs: int
    masks: int = 1
    mask_words: int = 1
    vectors: int = 1
    hidden: int = 1

    @classmethod
    def of(cls, config: Config, model: ModelInfo) -> Dimensions:
        rows, tokens = config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens
        block_size = config.cache.block_size
        blocks_per_row = -(-model.max_model_len // block_size)
        return cls(
            rows=rows,
            tokens=tokens,
            blocks_per_row=blocks_per_row,
            # Room for each running row to grow, for a full token budget of new blocks, and for two longest prefix hits.
            block_updates=rows + tokens // block_size + 2 * blocks_per_row + 1,
            # Room for several requests with full histories and whole-vocabulary lists; the scheduler spreads what doesn't fit.
            setup_bytes=2**18 + 16 * model.max_model_len + 16 * model.vocab_size,
            logprobs=max(1, config.model.max_logprobs),
            masks=min(rows, config.structured_outputs.max_grammar_rows) if config.structured_outputs.grammar_processes else 1,
            mask_words=-(-model.vocab_size // 32),
            vectors=min(rows, MAX_VECTORS),
            hidden=model.hidden_size,
        )


_PLAN: Mapping[str, tuple[type[Any], tuple[str, ...]]] = {
    "header": (np.int64, ("header",)),
    "row": (np.int32, ("rows",)),
    "num_new": (np.int32, ("rows",)),
    "start": (np.int32, ("rows",)),
    "flags": (np.int32, ("rows",)),
    "token_ids": (np.int32, ("tokens",)),
    "block_row": (np.int32, ("block_updates",)),
    "block_index": (np.int32, ("block_updates",)),
    "block_id": (np.int32, ("block_updates",)),
    "setup": (np.uint8, ("setup_bytes",)),
    "masks": (np.int32, ("masks", "mask_words")),
}
_RESULT: Mapping[str, tuple[type[Any], tuple[str, ...]]] = {
    "header": (np.int64, ("header",)),
    "tokens": (np.int32, ("rows",)),
    "flags": (np.int32, ("rows",)),
    "logprob": (np.float32, ("rows",)),
    "rank": (np.int32, ("rows",)),
    "top_ids": (np.int32, ("rows", "logprobs")),
    "top_logprobs": (np.float32, ("rows", "logprobs")),
    "prompt_logprob": (np.float32, ("tokens",)),
    "prompt_rank": (np.int32, ("tokens",)),
    "prompt_top_ids": (np.int32, ("tokens", "logprobs")),
    "prompt_top_logprobs": (np.float32, ("tokens", "logprobs")),
    "vectors": (np.float32, ("vectors", "hidden")),
}


class PlanColumns:
    """One step's work, as columns (see PlanHeader for how many entries count).

    row, num_new, start, flags: for each scheduled row its place in the worker's batch, how many tokens it computes, how many it
    had before, and RowFlag bits. token_ids: input tokens of the rows without DEVICE_TOKEN, num_new each, in row order.
    block_row, block_index, block_id: new entries of block tables; applied before the step. setup: msgpack list[RowSetup],
    applied before block updates. masks: for each row with GRAMMAR, in row order, a bit per token id, lowest bit first; they alone may be
    written after the doorbell.
    """

    header: I64
    row: I32
    num_new: I32
    start: I32
    flags: I32
    token_ids: I32
    block_row: I32
    block_index: I32
    block_id: I32
    setup: U8
    masks: I32

    def __init__(self, dimensions: Dimensions, buffer: memoryview | None = None) -> None:
        _map_columns(self, _PLAN, dimensions, buffer)

    def check_step(self, step: int) -> None:
        """Raise ProtocolError if this slot does not hold `step` (any more)."""
        if self.header[PlanHeader.STEP] != step:
            raise ProtocolError(f"arena slot holds the plan of step {self.header[PlanHeader.STEP]}, the doorbell said {step}")


class ResultColumns:
    """What one step gave, by position in the plan's row column.

    tokens: the sampled id, -1 where the plan asked for none. flags: ResultFlag bits. logprob, rank, top_ids, top_logprobs: filled for rows
    whose setup asks for logprobs (unused places: id -1). prompt_*: by position in the plan's new tokens (all rows', in row
    order): entry t tells of the prompt token that follows the t-th new token, filled for rows with PROMPT_LOGPROBS. vectors: for each row
    with EMBED, in row order.
    """

    header: I64
    tokens: I32
    flags: I32
    logprob: F32
    rank: I32
    top_ids: I32
    top_logprobs: F32
    prompt_logprob: F32
    prompt_rank: I32
    prompt_top_ids: I32
    prompt_top_logprobs: F32
    vectors: F32

    def __init__(self, dimensions: Dimensions, buffer: memoryview | None = None) -> None:
        _map_columns(self, _RESULT, dimensions, buffer)

    def check_step(self, step: int) -> None:
        """Raise ProtocolError if this slot does not hold `step` (any more)."""
        if self.header[ResultHeader.STEP] != step:
            raise ProtocolError(f"arena slot holds the result of step {self.header[ResultHeader.STEP]}, the doorbell said {step}")


def _shapes(
    columns: Mapping[str, tuple[type[Any], tuple[str, ...]]], dimensions: Dimensions
) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Offset and shape of each column, and the bytes they take together."""
    places, offset = {}, 0
    for name, (dtype, axes) in columns.items():
        shape = tuple(HEADER_WORDS if axis == "header" else getattr(dimensions, axis) for axis in axes)
        places[name] = (offset, shape)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return places, offset


def _map_columns(
    target: object, columns: Mapping[str, tuple[type[Any], tuple[str, ...]]], dimensions: Dimensions, buffer: memoryview | None
) -> None:
    """Set one numpy view per column; without a buffer over private memory (tests, simulation)."""
    places, size = _shapes(columns, dimensions)
    memory = buffer if buffer is not None else memoryview(bytearray(size))
    for name, (offset, shape) in places.items():
        dtype = columns[name][0]
        count = int(np.prod(shape))
        setattr(target, name, np.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(shape))


class State(enum.IntEnum):
    """Word Stat.STATE of a status record."""

    ABSENT = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


class Stat(enum.IntEnum):
    """Words of a status record. Counters only grow in one process life; times are CLOCK_MONOTONIC nanoseconds."""

    EPOCH = 0
    PID = 1
    STATE = 2
    HEARTBEAT_NS = 3  # written by the process's own loop, so a stuck loop is seen
    STEPS = 4  # steps planned (scheduler), done (worker), token messages handled (frontend)
    DROPPED_FRAMES = 5  # stale, malformed or unknown messages
    # scheduler
    NUM_RUNNING = 8
    NUM_WAITING = 9
    BLOCKS_TOTAL = 10
    BLOCKS_USED = 11  # held by running requests
    BLOCKS_CACHED = 12  # held by the prefix cache alone, evictable
    PREFIX_QUERIES = 13  # prompt tokens looked up
    PREFIX_HITS = 14  # prompt tokens found
    PREEMPTIONS = 15
    PROMPT_TOKENS = 16  # prefill tokens computed
    GENERATION_TOKENS = 17
    OLDEST_RUNNABLE_NS = 18  # arrival of the oldest unfinished request, 0 if none
    LAST_STEP_NS = 19  # when the last result was applied
    PLAN_NS = 20  # time spent in plan(), sum
    APPLY_NS = 21  # time spent in apply(), sum
    FORWARD_NS = 22  # time workers spent, sum
    EVICTED_BLOCKS = 23
    STEP_TOKENS = 24  # tokens computed, prefill and decode, sum
    EMBEDDINGS = 25  # vectors given
    # frontend
    OPEN_STREAMS = 32
    OPEN_CONNECTIONS = 33


class EngineStats(msgspec.Struct, frozen=True):
    """What the scheduler says of itself at one moment; counters count from its start."""

    num_running: int
    num_waiting: int
    blocks_total: int
    blocks_used: int  # held by running requests
    blocks_cached: int  # held by the prefix cache alone
    prefix_queries: int  # prompt tokens looked up
    prefix_hits: int
    preemptions: int
    prompt_tokens: int  # computed by prefill
    generation_tokens: int
    steps: int

    @classmethod
    def of(cls, record: I64) -> EngineStats:
        """From the scheduler's status record."""
        return cls(**{name: int(record[Stat[name.upper()]]) for name in cls.__struct_fields__})


class Arena:
    """A process's mapping of the engine's shared memory.

    plans[slot], results[slot]: the columns of each slot. Create once in the supervisor, attach in children by descriptor.
    """

    def __init__(self, fd: int, dimensions: Dimensions) -> None:
        self.fd = fd
        self.dimensions = dimensions
        size = self.size_of(dimensions)
        actual = os.fstat(fd).st_size
        if actual != size:
            raise ProtocolError(f"the arena has {actual} bytes, this configuration needs {size}")
        self._memory = mmap.mmap(fd, size)
        view = memoryview(self._memory)
        status_size = STATUS_RECORDS * STATUS_WORDS * 8
        self._status: I64 = np.frombuffer(view, dtype=np.int64, count=STATUS_RECORDS * STATUS_WORDS).reshape(STATUS_RECORDS, STATUS_WORDS)
        plan_size, result_size = _shapes(_PLAN, dimensions)[1], _shapes(_RESULT, dimensions)[1]
        self.plans: list[PlanColumns] = []
        self.results: list[ResultColumns] = []
        offset = -(-status_size // ALIGNMENT) * ALIGNMENT
        for _ in range(NUM_SLOTS):
            self.plans.append(PlanColumns(dimensions, view[offset : offset + plan_size]))
            offset += plan_size
            self.results.append(ResultColumns(dimensions, view[offset : offset + result_size]))
            offset += result_size

    @property
    def memory(self) -> U8:
        """All of the mapping, as bytes."""
        return np.frombuffer(self._memory, np.uint8)

    @staticmethod
    def size_of(dimensions: Dimensions) -> int:
        """Bytes of the whole arena."""
        status_size = STATUS_RECORDS * STATUS_WORDS * 8
        slots = NUM_SLOTS * (_shapes(_PLAN, dimensions)[1] + _shapes(_RESULT, dimensions)[1])
        return -(-status_size // ALIGNMENT) * ALIGNMENT + slots

    @classmethod
    def create(cls, dimensions: Dimensions) -> Arena:
        """Make and map a new arena whose size is sealed. Raises ConfigError when memory is short."""
        size = cls.size_of(dimensions)
        lower = "lower max_num_seqs, max_num_batched_tokens, max_model_len, max_logprobs or max_grammar_rows"
        free = available_memory()
        # The kernel would give it all the same, and end other programs for it.
        if size > free:
            raise ConfigError(f"the step arena takes {size / 2**20:,.0f} MiB of shared memory and {free / 2**20:,.0f} are free; {lower}")
        fd = os.memfd_create("quire-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            os.close(fd)
            raise ConfigError(
                f"cannot reserve {size / 2**20:,.0f} MiB of shared memory for the step arena ({error.strerror}); {lower}"
            ) from None
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd, dimensions)

    def status(self, role: str, index: int = 0) -> I64:
        """The status record of one process: int64[STATUS_WORDS], indexed by Stat."""
        first = {"scheduler": 0, "frontend": 1, "worker": 1 + MAX_FRONTENDS}[role]
        record: I64 = self._status[first + index]
        return record
