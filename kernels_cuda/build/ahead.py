"""Finds or compiles the kernels that a model needs while its weights are read, so that no step waits for the compiler."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kernels_cuda import activations, logprobs, norms, paged_decode, paged_prefill, paged_prefill_wgmma, qkv, rows, sampler
from kernels_cuda.build.cache import find_or_compile
from kernels_cuda.kernel import Defines

OF_DECODERS = (activations, logprobs, norms, paged_decode, paged_prefill, qkv, rows, sampler)
COMPILERS = 8  # at once; NVRTC runs outside the interpreter's lock


def needed(head_dim: int, dtype: str, fp8: bool = False, wgmma: bool = False) -> Iterable[tuple[str, Defines]]:
    """Sources and variants for a decoder of this head size, dtype (BF16 or FP16) and kind of KV cache.

    wgmma: for prompts Hopper's kernel instead of the other.
    """
    wanted = {"HEAD_DIM": str(head_dim), "FP8_CACHE": str(int(fp8))}
    other = {"DTYPE_BF16", "DTYPE_FP16"} - {f"DTYPE_{dtype}"}
    prefill = {paged_prefill: paged_prefill_wgmma} if wgmma else {}
    for source in (prefill.get(module, module).SOURCE for module in OF_DECODERS):
        for variant in source.variants:
            macros = dict(variant)
            if not other & macros.keys() and all(macros.get(name, value) == value for name, value in wanted.items()):
                yield source.file, variant


class Ahead:
    """The work, begun when this is made."""

    def __init__(self, kernels: Iterable[tuple[str, Defines]], architectures: Sequence[str]) -> None:
        self._pool = ThreadPoolExecutor(min(COMPILERS, os.cpu_count() or 1), "compile-kernels")
        self._work = [self._pool.submit(find_or_compile, source, variant, architectures) for source, variant in kernels]

    def wait(self) -> None:
        """Return when all are there. Raises KernelError when one cannot be had."""
        for work in self._work:
            work.result()
        self._pool.shutdown()
