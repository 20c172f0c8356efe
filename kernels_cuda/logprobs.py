"""Launcher of src/logprobs.cu: log-probabilities of raw logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels_cuda.kernel import Source, require
from kernels_cuda.launch import launch
from kernels_cuda.sampler import MAX_VOCAB, THREADS, VARIANTS, quantum_bits

MAX_WIDTH = 32
SOURCE = Source("logprobs.cu", tuple(VARIANTS.values()), {"report_logprobs": 64})


def report_logprobs(logits: Any, at: Any, tokens: Any, widths: Any, logprob: Any, rank: Any, top_ids: Any, top_logprobs: Any) -> None:
    """For each i: log-probability float32[m] and rank int32[m] of tokens[i] under logits[at[i]], and the widths[i] most likely tokens.

    logits [rows, vocab], float32 or bfloat16, rows any stride apart; at, tokens, widths int32[m]. top_ids int32 and top_logprobs
    float32, [m, columns]: most likely first, equal ones by ascending id, beyond a width -1 and 0; at most MAX_WIDTH columns. A token
    outside the vocabulary has -inf and rank vocab; a row of logits that does not exist or has no finite maximum gives NaN, rank 0
    and no list.
    Raises UnsupportedShape.
    """
    num_rows, vocab = logits.shape
    count, columns = len(at), top_ids.shape[1]
    require(0 < vocab <= MAX_VOCAB and logits.stride(1) == 1, f"logprobs: logits {tuple(logits.shape)} with strides {logits.stride()}")
    require(columns <= MAX_WIDTH, f"logprobs: {columns} alternatives; at most {MAX_WIDTH}")
    ints, floats = (at, tokens, widths, rank, top_ids), (logprob, top_logprobs)
    for tensors, dtype in ((ints, "torch.int32"), (floats, "torch.float32")):
        for tensor in tensors:
            require(str(tensor.dtype) == dtype and tensor.is_contiguous() and len(tensor) == count, "logprobs: a column's dtype or length")
    require(tuple(top_logprobs.shape) == (count, columns), "logprobs: top_ids and top_logprobs differ in shape")
    variant = VARIANTS.get(str(logits.dtype))
    require(variant is not None, f"logprobs: logits are {str(logits.dtype).removeprefix('torch.')}; float32 and bfloat16 are known")
    if not count:
        return
    bits = quantum_bits(vocab)
    launch(
        SOURCE.kernel("report_logprobs", variant or ()), (count,), (THREADS,), 0,
        logits.data_ptr(), np.int64(logits.stride(0)), np.int32(num_rows), np.int32(vocab), np.float32(2.0**bits),
        at.data_ptr(), tokens.data_ptr(), widths.data_ptr(), np.int32(columns),
        *(t.data_ptr() for t in (logprob, rank, top_ids, top_logprobs)),
    )  # fmt: skip
