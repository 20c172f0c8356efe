"""llama.cpp through llama-cpp-python's C bindings: a batch of sequences is kept going here, prompts admitted in chunks, one token per
running sequence and step, so that it is llama.cpp's arithmetic that is measured. The model is a GGUF file."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.report.runner import Job, Request, Run, main

SEQUENCES = 64
CHUNK = 512


@dataclass
class Place:
    """A sequence and its request. done: prompt tokens that are computed; last: the newest token."""

    sequence: int
    request: Request
    done: int = 0
    last: int = -1
    stamps: list[float] = field(default_factory=list)


class Llama:
    """One context with room for SEQUENCES sequences."""

    def __init__(self, job: Job) -> None:
        import llama_cpp
        import numpy as np

        self._c, self._np = llama_cpp, np
        self._silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)  # kept: C holds the pointer
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(job.model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {job.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = SEQUENCES * (job.longest + 16)
        params.n_batch = params.n_ubatch = CHUNK
        params.n_seq_max = SEQUENCES
        params.n_threads = params.n_threads_batch = job.threads
        # Sharing a prefix needs one cache for all, which every row then scans whole.
        params.kv_unified = "e" in job.works
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self._free = list(range(SEQUENCES))

    def run(self, requests: Sequence[Request]) -> list[list[float]]:
        """All requests, as many at once as there are sequences."""
        began = time.perf_counter()
        waiting, running, everyone = list(requests), [], []
        while waiting or running:
            while waiting and self._free:
                place = Place(self._free.pop(), waiting.pop(0))
                running.append(place)
                everyone.append(place)
            ended = self._step(running, began)
            for place in ended:
                running.remove(place)
                self._c.llama_memory_seq_rm(self._memory, place.sequence, -1, -1)
                self._free.append(place.sequence)
        return [place.stamps for place in everyone]

    def _step(self, running: Sequence[Place], began: float) -> list[Place]:
        """One token for each running sequence, and prompt tokens for what room is left; the places that have all their tokens."""
        items: list[tuple[int, int, int, bool]] = []  # token, position, sequence, logits wanted
        sampled: list[tuple[Place, int]] = []
        for place in running:
            if place.last >= 0:
                sampled.append((place, len(items)))
                items.append((place.last, len(place.request.prompt) + len(place.stamps) - 1, place.sequence, True))
        for place in running:
            prompt = place.request.prompt
            count = min(CHUNK - len(items), len(prompt) - place.done) if place.last < 0 else 0
            whole = place.done + count == len(prompt)
            for at in range(place.done, place.done + count):
                items.append((prompt[at], at, place.sequence, whole and at == len(prompt) - 1))
            place.done += count
            if count and whole:
                sampled.append((place, len(items) - 1))
        self._decode(items)
        tokens = [self._most_likely(at) for _, at in sampled]
        now = time.perf_counter() - began
        for (place, _), token in zip(sampled, tokens):
            place.last = token
            place.stamps.append(now)
        return [place for place, _ in sampled if len(place.stamps) == place.request.out]

    def _decode(self, items: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(items)
        for at, (token, position, sequence, logits) in enumerate(items):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, logits
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        code = self._c.llama_decode(self._context, batch)
        if code:
            raise SystemExit(f"llama_decode failed with code {code}")

    def _most_likely(self, at: int) -> int:
        return int(self._np.ctypeslib.as_array(self._c.llama_get_logits_ith(self._context, at), shape=(self._vocab,)).argmax())


def start(job: Job) -> Run:
    llama = Llama(job)
    return lambda requests, _stamps: llama.run(requests)


if __name__ == "__main__":
    main(start)
