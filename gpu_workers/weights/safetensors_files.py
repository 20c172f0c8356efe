"""Fills a model's parts from memory-mapped safetensors files; each rank reads only its slices."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gpu_workers.weights.part import Part
from ipc.errors import ConfigError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = {"F32", "F16", "BF16"}
_OLD_FORMATS = (".bin", ".pt", ".pth", ".ckpt")

Progress = Callable[[int, int], None]


class Checkpoint:
    """The safetensors files of a model directory, and which of them holds each tensor.

    Raises ConfigError naming the missing, unreadable or damaged file.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._open: dict[str, Any] = {}
        self._held: dict[str, set[str]] = {}
        listed = _index(directory)
        self._file_of = listed if listed is not None else {name: file for file in _files(directory) for name in self._names(file)}
        if listed is not None:
            for name, file in listed.items():
                if name not in self._names(file):
                    raise ConfigError(f"{directory}/{INDEX} says that {name} is in {file}, but it is not")

    def names(self) -> set[str]:
        return set(self._file_of)

    def read(self, name: str, part: Part) -> torch.Tensor:
        """This rank's slice of tensor `name`, still in the checkpoint's dtype."""
        file = self._file_of[name]
        try:
            whole = self._handle(file).get_slice(name)
            shape, dtype = tuple(whole.get_shape()), whole.get_dtype()
            if shape != part.shape:
                raise ConfigError(f"{self._directory}/{file}: {name} has shape {list(shape)}, the config asks for {list(part.shape)}")
            if dtype not in _FLOATS:
                raise ConfigError(f"{self._directory}/{file}: {name} has dtype {dtype}; F32, F16 and BF16 are supported")
            if part.dim is None:
                return whole[:] if shape else self._handle(file).get_tensor(name)
            window = slice(part.start, part.start + part.target.shape[part.dim])
            return whole[(slice(None),) * part.dim + (window,)]
        except SafetensorError as error:
            raise ConfigError(f"{self._directory}/{file}: cannot read {name}: {error}") from None

    def _names(self, file: str) -> set[str]:
        if file not in self._held:
            self._held[file] = set(self._handle(file).keys())
        return self._held[file]

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            path = os.path.join(self._directory, file)
            if not os.path.isfile(path):
                raise ConfigError(f"the weight file {path} does not exist")
            try:
                self._open[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path} is not a readable safetensors file: {error}") from None
        return self._open[file]


def load(checkpoint: Checkpoint, parts: Sequence[Part], names: Mapping[str, str], ignored: Sequence[str], progress: Progress) -> None:
    """Copy every part's slice into its target, converting the dtype. progress(done, total) counts bytes of parameters.

    Raises ConfigError naming a missing tensor, one nobody asked for, or one of the wrong shape or dtype.
    """
    wanted = {_checkpoint_name(part.name, names): part for part in parts}
    held = checkpoint.names()
    missing = sorted(set(wanted) - held)
    if missing:
        raise ConfigError(f"the checkpoint lacks {_some(missing)}")
    unknown = sorted(name for name in held - set(wanted) if not any(re.fullmatch(pattern, name) for pattern in ignored))
    if unknown:
        raise ConfigError(f"the checkpoint holds {_some(unknown)}, for which this model has no place")
    total, done = sum(part.target.nbytes for part in parts), 0
    bar = _bar(total)
    for name, part in wanted.items():
        part.target.copy_(checkpoint.read(name, part))
        done += part.target.nbytes
        progress(done, total)
        if bar is not None:
            bar.update(part.target.nbytes)
    if bar is not None:
        bar.close()


def _bar(total: int) -> Any:
    """A progress bar where a person watches stderr; elsewhere the supervisor shows the Loading messages."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, desc="weights", leave=False)


def _checkpoint_name(name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    assert match is not None, name
    return names[f"layers.{{}}.{match[2]}"].replace("{}", match[1])


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _index(directory: str) -> dict[str, str] | None:
    """Tensor name to file of a sharded checkpoint; None if it is not sharded."""
    path = os.path.join(directory, INDEX)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            listed = json.load(file)["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a readable safetensors index: {error!r}") from None
    if not isinstance(listed, dict) or not all(isinstance(file, str) and os.path.basename(file) == file for file in listed.values()):
        raise ConfigError(f"{path}: weight_map must map tensor names to names of files beside it")
    return listed


def _files(directory: str) -> list[str]:
    """The safetensors files of a directory without an index. Consolidated copies (Mistral's second layout) are left out."""
    present = sorted(os.listdir(directory))
    if SINGLE in present:
        return [SINGLE]
    files = [name for name in present if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if not files:
        old = [name for name in present if name.endswith(_OLD_FORMATS)]
        hint = f"; {old[0]} is a pickle, which quire does not open: convert it to safetensors" if old else ""
        raise ConfigError(f"{directory} has no .safetensors weight file{hint}")
    return files
