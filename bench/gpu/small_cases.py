"""Cases of everything between the matrix products: norms, activations, rotary embedding and cache write, row columns, sampler, logprobs."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import torch

from bench.gpu.case import TOLERANCE, Builders, Case, Inputs, different, relative
from bench.gpu.kernels import check_and_time
from bench.gpu.part import run
from gpu_workers.sampling.draw import Drawer, Wishes
from gpu_workers.sampling.philox import uniform
from kernels_cuda import activations, logprobs, norms, qkv, reference, rows, sampler

BF16, FP16, FP8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
FP8_ERROR = 0.03  # relative, of numbers rounded to three bits of mantissa: 0.027


def rms(make: Inputs, name: str, count: int, hidden: int, dtype: torch.dtype = BF16) -> Case:
    start, delta, weight = (
        make.normal(*shape, dtype=dtype, seed=s) for s, shape in enumerate([(count, hidden), (count, hidden), (hidden,)])
    )
    residual, out = start.clone(), make.unwritten(count, hidden, dtype=dtype)

    def error() -> float:  # after one run, which adds in place
        added = (start.float() + delta.float()).to(dtype)
        return max(relative(residual, added), relative(out, reference.rms_norm(added, weight, 1e-5)))

    moved = 4 * start.numel() * start.element_size()
    return Case(name, lambda: norms.add_rms_norm(residual, delta, weight, out, 1e-5), error, TOLERANCE[dtype], (out,), moved)


def layer(make: Inputs, name: str, count: int, hidden: int, dtype: torch.dtype = BF16) -> Case:
    x, weight, bias = (make.normal(*shape, dtype=dtype, seed=s) for s, shape in enumerate([(count, hidden), (hidden,), (hidden,)]))
    out = make.unwritten(count, hidden, dtype=dtype)

    def error() -> float:
        return relative(out, reference.layer_norm(x, weight, bias, 1e-5))

    moved = 2 * x.numel() * x.element_size()
    return Case(name, lambda: norms.layer_norm(x, weight, bias, out, 1e-5), error, TOLERANCE[dtype], (out,), moved)


def gated(make: Inputs, name: str, count: int, width: int, activation: str, dtype: torch.dtype = BF16) -> Case:
    gate_up, out = make.normal(count, 2 * width, dtype=dtype), make.unwritten(count, width, dtype=dtype)

    def error() -> float:
        return relative(out, reference.gated(gate_up, activation))

    moved = 3 * out.numel() * out.element_size()
    return Case(name, lambda: activations.gated(gate_up, out, activation), error, TOLERANCE[dtype], (out,), moved)


def rotated(
    make: Inputs, name: str, count: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype = BF16, cache: torch.dtype | None = None,
    with_norms: bool = False,
) -> Case:  # fmt: skip
    values = make.normal(count, heads + 2 * kv_heads, dim, dtype=dtype)
    angles = torch.outer(torch.arange(float(count)), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
    rotary = qkv.RotaryTable(torch.stack((angles.cos(), angles.sin()), 1).to(make.device), dim)
    blocks = -(-count // 16) + 1
    slots = make.ints(np.random.default_rng(0).permutation(blocks * 16)[:count], torch.int64)
    positions = make.ints(np.arange(count))
    q_out = make.unwritten(count, heads, dim, dtype=dtype)
    k, v = (make.unwritten(blocks, kv_heads, 16, dim, dtype=dtype).to(cache or dtype) for _ in range(2))
    weights = [make.normal(dim, dtype=dtype, seed=seed) for seed in (5, 6)]
    head_norms = qkv.HeadNorms(*weights, 1e-6) if with_norms else None

    def error() -> float:
        wanted = list(values.double().split((heads, kv_heads, kv_heads), 1))
        for at in (0, 1):
            if with_norms:
                wanted[at] = reference.rms_norm(wanted[at], weights[at], 1e-6)
            wanted[at] = reference.rotate(wanted[at], positions.long(), rotary.cos_sin, dim, False)
        stored = [each.float().transpose(1, 2).flatten(0, 1)[slots] for each in (k, v)]
        if cache:
            stored_error = max(relative(a, b) for a, b in zip(stored, wanted[1:]))
            return max(relative(q_out, wanted[0]), stored_error * TOLERANCE[dtype] / FP8_ERROR)
        return max(relative(a, b) for a, b in zip([q_out, *stored], wanted))

    moved = (values.numel() + q_out.numel()) * values.element_size() + 2 * count * kv_heads * dim * k.element_size()
    return Case(
        name, lambda: qkv.norm_rotate_write(values, q_out, k, v, slots, positions, rotary, head_norms), error, TOLERANCE[dtype], (q_out,),
        moved,
    )  # fmt: skip


def gathered(make: Inputs, name: str, count: int) -> Case:
    """A step in which most rows decode and every seventh is a chunk of a prompt."""
    numbers = np.random.default_rng(0)
    row, start = numbers.permutation(count), numbers.integers(0, 1000, count)
    remembered = np.arange(count) % 7 > 0
    num_new = np.where(remembered, 1, 9)
    given = numbers.integers(0, 5000, int(num_new[~remembered].sum()))
    tables = make.ints(numbers.integers(0, 9000, (count, 64)))
    last, header = make.ints(numbers.integers(0, 5000, count)), make.ints([count], torch.int64)
    total = int(num_new.sum())
    plan = rows.StepColumns(*map(make.ints, (row, num_new, start, remembered * rows.DEVICE_TOKEN, given)), header.data_ptr())
    lengths = ((total, torch.int32), (total, torch.int32), (total, torch.int64), (total, torch.int32), (count + 1, torch.int32))
    out = rows.StepTensors(*(make.unwritten(n, dtype=dtype) for n, dtype in (*lengths, (count, torch.int32), (count, torch.int32))))

    def run() -> None:  # the header is named, so that its memory lives as long as the case
        assert len(header)
        rows.gather_inputs(plan, tables, last, 16, out)

    def error() -> float:
        lists = (column.tolist() for column in (row, num_new, start, remembered))
        wanted = map(torch.tensor, reference.gather_inputs(*lists, given.tolist(), tables.cpu(), last.cpu(), 16))
        return different(*zip((out.token_ids, out.positions, out.slots, out.row_of_token), wanted))

    return Case(name, run, error, 0.0, (out.token_ids, out.positions, out.slots), 20 * total + 24 * count, comparable=3)


def block_updates(make: Inputs, name: str, count: int) -> Case:
    numbers = np.random.default_rng(0)
    places = numbers.permutation(256 * 64)[:count]
    row, index = (make.ints(each) for each in np.divmod(places, 64))
    ids, header = make.ints(numbers.integers(0, 9000, count)), make.ints([count], torch.int64)
    tables = make.unwritten(256, 64, dtype=torch.int32)
    last, token = make.unwritten(256 * 64, dtype=torch.int32), make.ints(places)

    def run() -> None:
        assert len(header)
        rows.apply_block_updates(tables, row, index, ids, header.data_ptr())
        rows.remember_tokens(last, token, ids, header.data_ptr())

    def error() -> float:
        written, flat = torch.full((256, 64), -7, dtype=torch.int32), torch.full((256 * 64,), -7, dtype=torch.int32)
        written[row.cpu().long(), index.cpu().long()] = ids.cpu()
        flat[token.cpu().long()] = ids.cpu()
        return different((tables, written), (last, flat))

    return Case(name, run, error, 0.0, (tables, last), comparable=2)


def sampled(make: Inputs, name: str, count: int, vocab: int, kind: str) -> Case:
    """kind: greedy, top_k, top_p, min_p or plain. Tokens must be the CPU sampler's; exp's last bit may move one to its neighbour."""
    logits = make.normal(count, vocab, dtype=torch.float32, seed=1) * 3
    host = {
        "temperature": np.full(count, 0.0 if kind == "greedy" else 0.8, np.float32),
        "min_p": np.full(count, 0.01 if kind == "min_p" else 0.0, np.float32),
        "top_k": np.full(count, 50 if kind == "top_k" else 0, np.int64),
        "top_p": np.full(count, 0.9 if kind == "top_p" else 1.0),
        "seed": np.arange(count, dtype=np.int64) + 12345,
    }
    wishes = sampler.Wishes(*(torch.from_numpy(column.astype(np.int32) if key == "top_k" else column).to(make.device)
                              for key, column in host.items()))  # fmt: skip
    parts = sampler.parts_for(count, vocab)
    work = sampler.Workspace(
        make.unwritten(count, vocab, dtype=torch.float32), make.unwritten(count, parts, sampler.PARTIAL, dtype=torch.int64)
    )
    at = np.arange(count)
    entries, positions = make.ints(at), make.ints(at + 7, torch.int64)
    tokens, nan = (make.unwritten(count, dtype=torch.int32) for _ in range(2))

    def error() -> float:
        few = slice(0, min(count, 64))
        if kind == "greedy":
            wanted = logits[few].argmax(-1)
        else:
            columns = [host[key][few] for key in ("temperature", "min_p", "top_k", "top_p")]
            u = uniform(host["seed"][few].view(np.uint64), at[few] + 7)
            drawn = Drawer(vocab).draw(logits[few].cpu(), host["top_k"][few], Wishes.of(torch.device("cpu"), *columns, u))
            wanted = torch.from_numpy(drawn)
        return different((tokens[few], wanted)) / len(wanted) + float(nan.any())

    tolerance = 0.0 if kind == "greedy" or count < 4 else 1.01 / min(count, 64)
    # Logits are read once and their edited copy written once; how often draw_tokens reads the copy depends on what is asked for.
    return Case(
        name, lambda: sampler.sample(logits, entries, positions, wishes, work, tokens, nan), error, tolerance,
        (tokens, nan), 8 * logits.numel(), comparable=2,
    )  # fmt: skip


def reported(make: Inputs, name: str, count: int, vocab: int) -> Case:
    logits, width = make.normal(count, vocab, dtype=torch.float32, seed=2), 20
    at, tokens, widths = make.ints(np.arange(count)), make.ints(np.arange(count) * 3 % vocab), make.ints(np.full(count, width))
    logprob, top = make.unwritten(count, dtype=torch.float32), make.unwritten(count, width, dtype=torch.float32)
    rank, ids = make.unwritten(count, dtype=torch.int32), make.unwritten(count, width, dtype=torch.int32)

    def error() -> float:
        wanted = logits.double().log_softmax(-1)
        mine = wanted.gather(1, tokens.long()[:, None])
        best = wanted.topk(width, -1)
        wrong = different((ids, best.indices.int()), (rank, 1 + (logits > logits.gather(1, tokens.long()[:, None])).sum(-1)))
        return wrong + float((logprob.double() - mine[:, 0]).abs().max()) + float((top.double() - best.values).abs().max())

    return Case(
        name, lambda: logprobs.report_logprobs(logits, at, tokens, widths, logprob, rank, ids, top), error, 2e-5, (logprob, rank, ids, top),
        4 * logits.numel(), comparable=4,
    )  # fmt: skip


def checks(make: Inputs, few: bool) -> Builders:
    """Every variant that is shipped, or only a handful."""
    for dtype in (BF16,) if few else (BF16, FP16):
        for hidden in (64,) if few else (8, 896, 4096, 4104, 8192, 16384, 32768):
            yield partial(rms, make, f"add_rms_norm {hidden} {str(dtype)[6:]}", 3, hidden, dtype)
            yield partial(layer, make, f"layer_norm {hidden} {str(dtype)[6:]}", 3, hidden, dtype)
        for activation in activations.ENTRIES:
            yield partial(gated, make, f"{activation} {str(dtype)[6:]}", 3, 264, activation, dtype)
        for dim in (128,) if few else qkv.HEAD_DIMS:
            for cache in (None,) if few else (None, FP8):
                for with_norms in (False, True):
                    label = f"qkv {dim} {str(dtype)[6:]}{' fp8 cache' if cache else ''}{' norms' if with_norms else ''}"
                    yield partial(rotated, make, label, 19, 6, 2, dim, dtype, cache, with_norms)
    for count in (5,) if few else (1, 33, 1024, 1500):
        yield partial(gathered, make, f"gather_inputs {count}", count)
    yield partial(block_updates, make, "block updates and remembered tokens", 40 if few else 900)
    for kind in ("greedy", "plain", "top_k", "top_p", "min_p"):
        for vocab in (500,) if few else (33, 4099, 128256):
            yield partial(sampled, make, f"sample {kind} {vocab}", 3 if few else 16, vocab, kind)
    yield partial(reported, make, "logprobs", 2 if few else 16, 300 if few else 128256)


def timed(make: Inputs, few: bool) -> Builders:
    """Llama-3.1-8B's shapes at the batches that are measured."""
    for count in (2,) if few else (1, 64, 256, 2048, 8192):
        yield partial(rms, make, f"add_rms_norm {count} x 4096", count, 64 if few else 4096)
        yield partial(gated, make, f"silu_mul {count} x 14336", count, 264 if few else 14336, "silu")
        yield partial(rotated, make, f"qkv {count} tokens", count, 4 if few else 32, 1 if few else 8, 128)
    yield partial(layer, make, "layer_norm 2048 x 4096", 2 if few else 2048, 64 if few else 4096)
    for count in (2,) if few else (1, 64, 256):
        yield partial(gathered, make, f"gather_inputs {count} rows", count)
        for kind in ("greedy", "plain", "top_k", "top_p"):
            yield partial(sampled, make, f"sample {kind} {count} x 128k", count, 300 if few else 128256, kind)
    yield partial(reported, make, "logprobs 64 x 128k", 2 if few else 64, 300 if few else 128256)


if __name__ == "__main__":
    run(lambda part: check_and_time(part, sys.modules[__name__]))
