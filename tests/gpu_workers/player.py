"""Plays the scheduler for a ModelRunner: writes plans by hand, keeps block tables, reads results."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gpu_workers.collectives import Collectives
from gpu_workers.device import Device, open_device
from gpu_workers.device.base import Serving
from gpu_workers.models.load import load
from ipc import config as ipc_config
from ipc import model_info
from ipc.arena import NUM_SLOTS, Arena, Dimensions, PlanHeader, ResultFlag, ResultHeader, RowFlag, RowSetup
from ipc.config import Config


@dataclass
class Row:
    """A request as the player sees it: its tokens so far, how many are computed, its blocks. pooling: last or mean, for one that asks for
    a vector in place of tokens."""

    row: int
    tokens: list[int]
    num_prompt: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, int, list[int], list[float]]] = field(default_factory=list)
    prompt_logprobs: dict[int, tuple[float, int, list[int], list[float]]] = field(default_factory=dict)
    nan: bool = False
    pooling: str = ""
    vector: np.ndarray | None = None

    @property
    def output(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class Player:
    """One model on a device of this process, the CPU by default, and a scheduler that a test moves by hand.

    Blocks are given out in a shuffled order, so that tables are scattered from the first request on.
    """

    def __init__(
        self, path: str, *, ranks: Collectives | None = None, seed: int = 0, num_blocks: int = 256,
        opened: Callable[[Config], Device] = lambda config: open_device("cpu", 0, config), **flags: object,
    ) -> None:  # fmt: skip
        self.config: Config = ipc_config.load({"max_num_seqs": 8, "max_num_batched_tokens": 512, "cpu_threads": 1, **flags}, environ={})
        info = model_info.read(path, self.config.model, "test")
        self.dimensions = Dimensions.of(self.config, info)
        self.device = opened(self.config)
        ranks = ranks or Collectives()
        self.model = load(self.config, info, self.device, ranks, lambda done, total: None)
        self.block_size = self.config.cache.block_size
        self.arena = Arena.create(self.dimensions)
        os.close(self.arena.fd)  # the mapping stays
        self.serving = Serving(self.model, info, ranks, self.arena)
        self.runner = self.device.runner(self.serving, num_blocks, lambda call: call())
        self._free = list(np.random.default_rng(seed).permutation(np.arange(1, num_blocks)))
        self._setups: list[RowSetup] = []
        self._updates: list[tuple[int, int, int]] = []
        self._step = 0
        self._there = False  # whether all kernels are compiled

    def use_compiled(self, wanted: bool) -> None:
        """Compute with the compiled kernels (waits until they are there) or with torch alone."""
        if not self._there:
            assert self.device.kernel_sets
            for kernels in self.device.kernel_sets:
                assert kernels.wait(250)
            self._there = True
        for kernels in self.device.kernel_sets:
            kernels.ready = wanted

    def add(
        self, row: int, prompt: Sequence[int], shared: Row | None = None, num_shared: int = 0, pooling: str = "", **setup: object
    ) -> Row:
        """A new request in `row`; its first num_shared tokens (whole blocks) are read from the blocks of `shared`."""
        added = Row(row, list(prompt), len(prompt), computed=num_shared, pooling=pooling)
        if shared is not None:
            assert num_shared % self.block_size == 0
            assert shared.tokens[:num_shared] == added.tokens[:num_shared]
            for index in range(num_shared // self.block_size):
                self._give(added, shared.blocks[index])
        history = np.asarray(prompt, np.int32).tobytes()
        self._setups.append(RowSetup(row=row, num_prompt=len(prompt), seed=row, history=history, **setup))  # type: ignore[arg-type]
        return added

    def free(self, row: Row) -> None:
        self._free.extend(row.blocks)

    def step(self, work: Sequence[tuple[Row, int]], device_token: bool = True) -> list[int]:
        """Compute so many new tokens of each row; rows whose known tokens end there sample. Returns the tokens sampled, -1 for none."""
        assert self.give(work, device_token).wait(250)
        return self._apply(work)

    def give(self, work: Sequence[tuple[Row, int]], device_token: bool = True) -> threading.Event:
        """Give the runner such a step. Its results are in `result` when the event is set; the rows know nothing of it yet."""
        self._step += 1
        plan, ids = self.arena.plans[self._step % NUM_SLOTS], []
        header = plan.header
        for place, (row, count) in enumerate(work):
            end = row.computed + count
            while len(row.blocks) * self.block_size < end:
                self._give(row, int(self._free.pop()))
            flags = RowFlag(0)
            if end == len(row.tokens):
                flags |= RowFlag.EMBED if row.pooling else RowFlag.SAMPLE
            if row.pooling == "mean":
                flags |= RowFlag.MEAN
            if device_token and count == 1 and row.computed >= row.num_prompt:
                flags |= RowFlag.DEVICE_TOKEN
            else:
                ids += row.tokens[row.computed : end]
            if row.computed < row.num_prompt and row.row in self.wants_prompt_logprobs:
                flags |= RowFlag.PROMPT_LOGPROBS
            plan.row[place], plan.num_new[place], plan.start[place], plan.flags[place] = row.row, count, row.computed, flags
        plan.token_ids[: len(ids)] = ids
        for place, update in enumerate(self._updates):
            plan.block_row[place], plan.block_index[place], plan.block_id[place] = update
        setup = msgspec.msgpack.encode(self._setups) if self._setups else b""
        plan.setup[: len(setup)] = np.frombuffer(setup, np.uint8)
        header[PlanHeader.STEP], header[PlanHeader.NUM_ROWS] = self._step, len(work)
        header[PlanHeader.NUM_TOKENS], header[PlanHeader.NUM_TOKEN_IDS] = sum(count for _, count in work), len(ids)
        header[PlanHeader.NUM_BLOCK_UPDATES], header[PlanHeader.SETUP_BYTES] = len(self._updates), len(setup)
        self._updates, self._setups = [], []
        self.result = self.arena.results[self._step % NUM_SLOTS]
        done = threading.Event()
        self.runner.finish(self.runner.begin(plan), self.result, done.set)
        return done

    wants_prompt_logprobs: frozenset[int] = frozenset()

    def run(self, rows: Sequence[Row], num_output: int, chunk: int = 512) -> None:
        """Prefill in chunks and decode until every row has num_output tokens; all rows are in every step."""
        while any(len(row.output) < num_output for row in rows):
            self.step([(row, min(chunk, len(row.tokens) - row.computed)) for row in rows if len(row.output) < num_output])

    def _apply(self, work: Sequence[tuple[Row, int]]) -> list[int]:
        result, sampled, first, vectors = self.result, [], 0, 0
        assert result.header[ResultHeader.NUM_ROWS] == len(work)
        for place, (row, count) in enumerate(work):
            if row.row in self.wants_prompt_logprobs:
                for offset in range(count):
                    position, at = row.computed + offset + 1, first + offset
                    if position < row.num_prompt:
                        row.prompt_logprobs[position] = (
                            float(result.prompt_logprob[at]), int(result.prompt_rank[at]),
                            result.prompt_top_ids[at].tolist(), result.prompt_top_logprobs[at].tolist(),
                        )  # fmt: skip
            row.computed += count
            token = int(result.tokens[place])
            if row.pooling and row.computed == len(row.tokens):
                row.vector, row.nan = result.vectors[vectors].copy(), bool(result.flags[place] & ResultFlag.NAN)
                vectors += 1
            if token >= 0:
                row.tokens.append(token)
                row.nan |= bool(result.flags[place] & ResultFlag.NAN)
                row.logprobs.append(
                    (
                        float(result.logprob[place]),
                        int(result.rank[place]),
                        result.top_ids[place].tolist(),
                        result.top_logprobs[place].tolist(),
                    )
                )
            sampled.append(token)
            first += count
        return sampled

    def _give(self, row: Row, block: int) -> None:
        self._updates.append((row.row, len(row.blocks), block))
        row.blocks.append(block)
