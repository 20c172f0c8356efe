"""Launchers of src/sampler.cu: one token for each entry of a batch, by what its row asks for, in two launches.

Rows are places: a row's wishes stand in columns on the device from its setup until it ends, entries of a step name rows. Features
that nobody has are None and cost nothing. Which token a row gets does not depend on the batch nor on `partial`'s parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels_cuda.kernel import Kernel, Source, defines, require
from kernels_cuda.launch import Scalar, launch

THREADS, EDIT_THREADS = 512, 256
TILE = 2048  # logits that a part takes at once
PARTIAL = 4  # words of a part's result
GREEDY_BELOW = 1e-5  # equals ipc.sampling_params.GREEDY_BELOW, which a test holds
MAX_VOCAB = 1 << 24
VARIANTS = {"torch.float32": defines(LOGITS_FP32=1), "torch.bfloat16": defines(DTYPE_BF16=1)}
# 48 registers: five blocks of edit_logits per SM; 64: two blocks of draw_tokens, all that 64 k registers hold.
SOURCE = Source("sampler.cu", tuple(VARIANTS.values()), {"edit_logits": 48, "draw_tokens": 64, "tally_history": 32})


@dataclass(frozen=True)
class Wishes:
    """By row [rows]: temperature float32 (below 1e-5: greedy), min_p float32 (0 off), top_k int32 (0 off), top_p float64 (1 off),
    seed int64 (its 64 bits are the key)."""

    temperature: Any
    min_p: Any
    top_k: Any
    top_p: Any
    seed: Any


@dataclass(frozen=True)
class Masks:
    """words int32[masks, ceil(vocab / 32)], a bit per id, lowest first; only ids whose bit is set may be chosen.

    mask_of int32[entries]: which one is the entry's grammar mask of this step. allowed_of int32[rows]: which one holds the row's
    allowed ids. -1 for none; None for nobody.
    """

    words: Any
    mask_of: Any | None = None
    allowed_of: Any | None = None


@dataclass(frozen=True)
class Edits:
    """Added to logits: ids int32[room], values float32[room], spans int32[rows, 2], a row's (start, count) of them.

    A span's ids are ascending and different. Logit bias; -inf forbids (bad words of one token).
    """

    ids: Any
    values: Any
    spans: Any


@dataclass(frozen=True)
class Stops:
    """Not to be chosen while the sampled token's position is below min_position int64[rows]: ids and spans as for Edits."""

    ids: Any
    spans: Any
    min_position: Any


@dataclass(frozen=True)
class Tallies:
    """tally int32[slots, vocab]: 2 * (times in the row's output) + (1 if in its prompt). slot_of int32[rows], -1 none, no slot twice.
    repetition, presence, frequency float32[rows]."""

    tally: Any
    slot_of: Any
    repetition: Any
    presence: Any
    frequency: Any


@dataclass(frozen=True)
class Workspace:
    """edited float32[at least entries, vocab]; partial int64[at least entries, parts, PARTIAL] (see parts_for).

    Contents mean nothing between calls.
    """

    edited: Any
    partial: Any


def parts_for(entries: int, vocab: int, blocks: int = 528) -> int:
    """Over how many blocks edit_logits splits an entry, so that there are about `blocks` (four for each SM of an H200)."""
    return max(1, min(-(-vocab // TILE), blocks // max(1, entries)))


def quantum_bits(vocab: int) -> int:
    """Weights are multiples of 2**-bits, of which `vocab` still add up exactly in 53 bits (as in gpu_workers.sampling.exact)."""
    return 53 - max(1, (vocab - 1).bit_length())


def sample(
    logits: Any,
    rows: Any,
    positions: Any,
    wishes: Wishes,
    work: Workspace,
    tokens: Any,
    nan: Any,
    *,
    masks: Masks | None = None,
    edits: Edits | None = None,
    stops: Stops | None = None,
    tallies: Tallies | None = None,
) -> None:
    """tokens int32[n] and nan int32[n] for logits [n, vocab], float32 or bfloat16, rows any stride apart; logits stay as they are.

    rows int32[n], all different; positions int64[n]: the absolute position of the token being sampled. nan is 1, and the token 0,
    where logits hold NaN or +inf or are all -inf, or where the row does not exist. Tallies get the tokens. Raises UnsupportedShape.
    """
    entries, vocab = logits.shape
    num_rows = len(wishes.temperature)
    require(0 < vocab <= MAX_VOCAB and logits.stride(1) == 1, f"sampler: logits {tuple(logits.shape)} with strides {logits.stride()}")
    _check("int32", entries, rows=rows, tokens=tokens, nan=nan)
    _check("int64", entries, positions=positions)
    _check("float32", num_rows, temperature=wishes.temperature, min_p=wishes.min_p)
    _check("int32", num_rows, top_k=wishes.top_k)
    _check("float64", num_rows, top_p=wishes.top_p)
    _check("int64", num_rows, seed=wishes.seed)
    _check("float32", None, edited=work.edited)
    _check("int64", None, partial=work.partial)
    require(len(work.edited) >= entries and work.edited.shape[1] == vocab, f"sampler: workspace {tuple(work.edited.shape)}")
    require(len(work.partial) >= entries and work.partial.shape[2] == PARTIAL, f"sampler: workspace {tuple(work.partial.shape)}")
    if not entries:
        return
    parts = work.partial.shape[1]
    masked, mask_of, num_masks = _masks(masks, entries, num_rows, vocab)
    tallied, num_slots = _tallies(tallies, num_rows, vocab)
    entry = (rows.data_ptr(), positions.data_ptr(), np.int32(num_rows))
    launch(
        _kernel("edit_logits", logits), (entries, parts), (EDIT_THREADS,), 0,
        logits.data_ptr(), np.int64(logits.stride(0)), np.int32(vocab), *entry, wishes.temperature.data_ptr(),
        *masked, *_edits(edits, num_rows), *_stops(stops, num_rows), *tallied, work.edited.data_ptr(), work.partial.data_ptr(),
    )  # fmt: skip
    columns = (wishes.temperature, wishes.min_p, wishes.top_k, wishes.top_p, wishes.seed)
    launch(
        _kernel("draw_tokens", logits), (entries,), (THREADS,), 0,
        work.edited.data_ptr(), work.partial.data_ptr(), np.int32(parts), np.int32(vocab), np.float32(2.0 ** quantum_bits(vocab)), *entry,
        *(column.data_ptr() for column in columns), tallied[0], num_slots, tallied[2], num_masks, mask_of,
        tokens.data_ptr(), nan.data_ptr(),
    )  # fmt: skip


def tally_history(tally: Any, slots: Any, tokens: Any, starts: Any, num_prompt: Any) -> None:
    """Start tally int32[slots, vocab] again at `slots` int32[m], all different, from histories.

    History i is tokens[starts[i] : starts[i + 1]], int32 and int64[m + 1], its first num_prompt[i] (int32) the prompt. Ids outside
    the vocabulary are left out. Raises UnsupportedShape.
    """
    count = len(slots)
    _check("int32", None, tally=tally, tokens=tokens)
    _check("int32", count, slots=slots, num_prompt=num_prompt)
    _check("int64", count + 1, starts=starts)
    if count:
        pointers = (slots.data_ptr(), tokens.data_ptr(), starts.data_ptr(), num_prompt.data_ptr())
        size = (np.int32(tally.shape[0]), np.int32(tally.shape[1]))
        launch(SOURCE.kernel("tally_history", SOURCE.variants[0]), (count,), (THREADS,), 0, tally.data_ptr(), *size, *pointers)


def _kernel(entry: str, logits: Any) -> Kernel:
    variant = VARIANTS.get(str(logits.dtype))
    require(variant is not None, f"sampler: logits are {_name(logits.dtype)}; float32 and bfloat16 are known")
    return SOURCE.kernel(entry, variant or ())


def _masks(masks: Masks | None, entries: int, num_rows: int, vocab: int) -> tuple[tuple[Scalar, ...], int, np.int32]:
    """Arguments of edit_logits; the address of mask_of; how many masks there are."""
    if masks is None:
        return (0, np.int32(0), 0, 0), 0, np.int32(0)
    _check("int32", None, masks=masks.words)
    require(masks.words.shape[1] == -(-vocab // 32), f"sampler: masks of {masks.words.shape[1]} words for {vocab} ids")
    addresses = []
    for column, length in ((masks.mask_of, entries), (masks.allowed_of, num_rows)):
        if column is not None:
            _check("int32", length, masks=column)
        addresses.append(0 if column is None else column.data_ptr())
    count = np.int32(masks.words.shape[0])
    return (masks.words.data_ptr(), count, *addresses), addresses[0], count


def _edits(edits: Edits | None, num_rows: int) -> tuple[Scalar, ...]:
    if edits is None:
        return 0, 0, 0, np.int32(0)
    _check("int32", None, edit_ids=edits.ids)
    _check("float32", len(edits.ids), edit_values=edits.values)
    _check("int32", num_rows, edit_spans=edits.spans)
    return edits.ids.data_ptr(), edits.values.data_ptr(), edits.spans.data_ptr(), np.int32(len(edits.ids))


def _stops(stops: Stops | None, num_rows: int) -> tuple[Scalar, ...]:
    if stops is None:
        return 0, 0, np.int32(0), 0
    _check("int32", None, stop_ids=stops.ids)
    _check("int32", num_rows, stop_spans=stops.spans)
    _check("int64", num_rows, min_position=stops.min_position)
    return stops.ids.data_ptr(), stops.spans.data_ptr(), np.int32(len(stops.ids)), stops.min_position.data_ptr()


def _tallies(tallies: Tallies | None, num_rows: int, vocab: int) -> tuple[tuple[Scalar, ...], np.int32]:
    if tallies is None:
        return (0, np.int32(0), 0, 0, 0, 0), np.int32(0)
    _check("int32", None, tally=tallies.tally)
    require(tallies.tally.shape[1] == vocab, f"sampler: tallies of {tallies.tally.shape[1]} ids for {vocab}")
    _check("int32", num_rows, slot_of=tallies.slot_of)
    columns = (tallies.repetition, tallies.presence, tallies.frequency)
    _check("float32", num_rows, repetition=columns[0], presence=columns[1], frequency=columns[2])
    slots = np.int32(tallies.tally.shape[0])
    return (tallies.tally.data_ptr(), slots, tallies.slot_of.data_ptr(), *(column.data_ptr() for column in columns)), slots


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _check(dtype: str, length: int | None, **tensors: Any) -> None:
    for name, tensor in tensors.items():
        require(
            str(tensor.dtype) == f"torch.{dtype}" and tensor.is_contiguous(),
            f"sampler: {name} must be contiguous {dtype}, is {_name(tensor.dtype)}",
        )
        require(length is None or len(tensor) == length, f"sampler: {name} has {len(tensor)} entries, not {length}")
