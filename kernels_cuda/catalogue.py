"""Every source that is compiled and shipped. A new kernel is added here, once."""

from __future__ import annotations

from kernels_cuda import activations, logprobs, mla_decode, norms, paged_decode, paged_prefill, paged_prefill_wgmma, qkv, rows, sampler
from kernels_cuda.kernel import Source

SOURCES: tuple[Source, ...] = (
    activations.SOURCE,
    logprobs.SOURCE,
    mla_decode.SOURCE,
    norms.SOURCE,
    paged_decode.SOURCE,
    paged_prefill.SOURCE,
    paged_prefill_wgmma.SOURCE,
    qkv.SOURCE,
    rows.SOURCE,
    sampler.SOURCE,
)
