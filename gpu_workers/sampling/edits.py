"""What changes logits before temperature: grammar masks, allowed ids, logit bias, and tokens that may not come now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from gpu_workers.sampling.row_params import Feature, Ids, RowParams

NOT = float("-inf")


def keep_allowed(logits: torch.Tensor, at: Ids, lists: Sequence[Ids]) -> Ids:
    """Forbid all but lists[i] for entry at[i] of logits float32[m, vocab], in place; returns each entry's best allowed id, -1 if none."""
    which, ids = _pairs(np.arange(len(at)), lists, logits.device)
    target = torch.from_numpy(at).to(logits.device)
    kept = torch.full((len(at), logits.shape[1]), NOT, device=logits.device)
    kept[which, ids] = logits[target[which], ids]
    logits[target] = kept
    best, top = kept.argmax(-1), kept.amax(-1)
    result: Ids = torch.where(top > NOT, best, -1).cpu().numpy()
    return result


def keep_masked(logits: torch.Tensor, at: Ids, masks: npt.NDArray[np.int32]) -> None:
    """Forbid all but the ids whose bits are set in masks int32[k, words] (lowest bit first) for entries at[k] of logits, in place."""
    vocab = logits.shape[1]
    if logits.device.type == "cpu":
        forbidden = torch.from_numpy(unpacked(masks)[:, :vocab] == 0)
    else:
        words = torch.from_numpy(masks.copy()).to(logits.device)
        shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
        forbidden = ((words[:, :, None] >> shifts) & 1 == 0).view(len(at), -1)[:, :vocab]
    if len(at) == len(logits):
        logits.masked_fill_(forbidden, NOT)
    else:
        target = torch.from_numpy(at).to(logits.device)
        logits[target] = logits[target].masked_fill_(forbidden, NOT)


def unpacked(masks: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """uint8[k, 32 * words], 0 or 1 for each token id, on the host."""
    return np.unpackbits(np.ascontiguousarray(masks).view(np.uint8), axis=1, bitorder="little")


def add_bias(logits: torch.Tensor, at: Ids, biases: Sequence[tuple[Ids, npt.NDArray[np.float32]]]) -> None:
    """Add biases[i] (ids, values) to entry at[i], in place."""
    which, ids = _pairs(at, [ids for ids, _ in biases], logits.device)
    values = torch.from_numpy(np.concatenate([values for _, values in biases])).to(logits.device)
    logits[which, ids] += values


def forbid(logits: torch.Tensor, at: Ids, lists: Sequence[Ids]) -> None:
    """No token of lists[i] may be chosen for entry at[i]; in place."""
    which, ids = _pairs(at, lists, logits.device)
    logits[which, ids] = NOT


def forbidden_now(params: RowParams, rows: npt.NDArray[np.integer], positions: npt.NDArray[np.int64]) -> tuple[Ids, list[Ids]]:
    """Which entries may not get which ids at these positions, by bad words and min tokens: (entries, a list of ids for each)."""
    features = params.features[rows]
    late = (features & Feature.MIN_TOKENS != 0) & (positions >= params.min_position[rows])
    if late.any():
        # Positions of a row only grow until its next setup.
        params.drop(rows[late], Feature.MIN_TOKENS)
        features = params.features[rows]
    entries: list[int] = []
    lists: list[Ids] = []
    for entry in np.flatnonzero(features & Feature.MIN_TOKENS).tolist():
        entries.append(entry)
        lists.append(params.stop_ids[int(rows[entry])])
    for entry in np.flatnonzero(features & Feature.BAD_WORDS).tolist():
        row = int(rows[entry])
        entries.append(entry)
        lists.append(params.bad_words[row].forbidden(params.tail(row)))
    return np.array(entries, np.int64), lists


def _pairs(at: Ids, lists: Sequence[Ids], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Index pairs (entry, id), flat and on the device."""
    which = np.repeat(at, [len(each) for each in lists])
    return torch.from_numpy(which).to(device), torch.from_numpy(np.concatenate(lists)).to(device)
