"""How much of the GPU's memory the KV cache may have: what is left beside weights, the largest step and recorded graphs.

What the largest step takes is measured once, by running it, and remembered in $XDG_CACHE_HOME/quire/memory by everything that decides it:
model, GPU, settings and versions. A file that says something else, or nothing that makes sense, is as good as none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from gpu_workers.collectives import Collectives
from gpu_workers.cuda.machine import Machine
from gpu_workers.device.base import Serving
from ipc.config import Config
from ipc.errors import ConfigError

log = logging.getLogger(__name__)

GIB = 2**30
# All graphs share one pool, which holds the activations of the largest; the rest is the driver's, for some 50 of them.
GRAPH_BYTES = 512 * 2**20
SETTLE_SECONDS = 10.0
LOOK_SECONDS = 0.1  # between two looks
LESS_MEMORY = "--max-model-len, --max-num-batched-tokens or --max-num-seqs lower"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that decides how much a step takes."""

    model: str  # a hash of its config.json
    dtype: str
    rank: int
    ranks: int
    gpu: str
    gpu_memory: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_cache_dtype: str
    batch_invariant: bool
    max_logprobs: int
    max_grammar_rows: int
    load_format: str
    torch: str
    sources: str  # a hash of this package's files and of the kernels': its version, also in a clone

    @classmethod
    def of(cls, config: Config, serving: Serving, machine: Machine) -> Key:
        info, ranks = serving.info, serving.ranks
        return cls(
            model=hashlib.sha256(Path(info.path, "config.json").read_bytes()).hexdigest(),
            dtype=str(serving.model.dtype),
            rank=ranks.rank,
            ranks=ranks.size,
            gpu=machine.chip.name,
            gpu_memory=machine.chip.memory,
            max_model_len=info.max_model_len,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
            block_size=config.cache.block_size,
            kv_cache_dtype=config.cache.kv_cache_dtype,
            batch_invariant=config.device.batch_invariant,
            max_logprobs=config.model.max_logprobs,
            max_grammar_rows=config.structured_outputs.max_grammar_rows,
            load_format=config.model.load_format,
            torch=str(torch.__version__),
            sources=_hash_of_sources(),
        )


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the largest step took: bytes of tensors, and bytes that libraries took while it ran for the first time."""

    key: Key
    step: int
    libraries: int


class Budget:
    """The memory of one GPU under --gpu-memory-utilization."""

    def __init__(self, machine: Machine, utilization: float) -> None:
        self._machine, self._utilization = machine, utilization
        self._weights = 0

    def expect(self, weight_bytes: int) -> None:
        """So many bytes of weights are about to be loaded. Raises ConfigError when they cannot fit."""
        self._weights = weight_bytes
        if weight_bytes > self._settled():
            raise ConfigError(f"the weights need about {_gib(weight_bytes)} of GPU memory; {self._state()}. {self._advice()}")

    def kv_cache_bytes(self, key: Key, ranks: Collectives, largest_step: Callable[[], None], graphs: bool) -> int:
        """Bytes for KV blocks. Raises ConfigError when there are none left."""
        total, free = self._machine.chip.memory, self._machine.free()
        measured = self._measured(key, ranks, largest_step)
        allowed, used = int(total * self._utilization), total - free
        left = allowed - used - measured.step - measured.libraries - (GRAPH_BYTES if graphs else 0)
        log.info(
            "GPU memory: %s in all, %s of it allowed, %s in use, %s for the largest step, %s for KV blocks",
            *map(_gib, (total, allowed, used, measured.step + measured.libraries, max(0, left))),
        )
        if left <= 0:
            raise ConfigError(
                f"no GPU memory is left for KV blocks: {_gib(allowed)} may be used (--gpu-memory-utilization {self._utilization} of "
                f"{_gib(total)}), {_gib(used)} are in use (weights and other programs), the largest step takes {_gib(measured.step)}. "
                f"{self._advice()}"
            )
        return left

    def _settled(self) -> int:
        """Free memory, once it grows no more: a worker that was killed a moment ago may still be giving its own back."""
        free, deadline = self._machine.free(), time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            before, free = free, self._machine.free()
            if free <= before:
                break
        return free

    def explain(self, error: BaseException) -> BaseException:
        """The error, or what a user can do about it."""
        if not isinstance(error, torch.OutOfMemoryError):
            return error
        return ConfigError(
            f"out of GPU memory while loading (the weights need about {_gib(self._weights)}); {self._state()}. {self._advice()}"
        )

    def _measured(self, key: Key, ranks: Collectives, largest_step: Callable[[], None]) -> Measured:
        path = _path(key)
        known = read(path, key)
        # The step of several ranks needs all of them: one rank that does not know makes all of them run it.
        knowing = torch.tensor([int(known is not None)], dtype=torch.int32, device=self._machine.device)
        all_know = int(ranks.all_reduce(knowing).item()) == ranks.size
        if known is not None and all_know:
            return known
        step, libraries = self._machine.used_by(largest_step)
        measured = Measured(key, step, libraries)
        write(path, measured)
        return measured

    def _state(self) -> str:
        return f"{_gib(self._machine.free())} of {_gib(self._machine.chip.memory)} are free"

    def _advice(self) -> str:
        return (
            f"Stop other programs on this GPU (nvidia-smi shows them), set {LESS_MEMORY}, raise --gpu-memory-utilization, spread the model "
            "with --tensor-parallel-size, or choose a smaller model"
        )


def read(path: Path, key: Key) -> Measured | None:
    """What an earlier start measured, if it was under this key."""
    try:
        measured = msgspec.json.decode(path.read_bytes(), type=Measured)
    except (OSError, msgspec.MsgspecError):
        return None
    return measured if measured.key == key and measured.step >= 0 and measured.libraries >= 0 else None


def write(path: Path, measured: Measured) -> None:
    """Remember it; whole or not at all. A cache that cannot be written is no reason not to start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(measured)))
        os.replace(temporary, path)
    except OSError as error:
        log.warning("the measured memory is not remembered: %s", error)


def _path(key: Key) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "quire" / "memory" / f"{hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:32]}.json"


def _hash_of_sources() -> str:
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for folder, pattern in (("gpu_workers", "*.py"), ("kernels_cuda", "*.py"), ("kernels_cuda/src", "*.cu*")):
        for path in sorted((root / folder).rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
