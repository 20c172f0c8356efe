"""What a model's files say about it: sizes, number of parameters, an identity. Reads headers, never weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass

MAX_HEADER = 100 * 1024 * 1024
NAMES = {"BF16": "BF16", "F16": "F16", "F32": "F32", "F8_E4M3": "F8", "F8_E5M2": "F8", "I8": "I8", "U8": "U8", "I32": "I32"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """digest: SHA-256 over the configuration and each weight file's name, size and header. dtype: of most stored values."""

    digest: str
    size: int  # bytes of weights
    parameters: int  # stored values
    dtype: str
    modified: float  # Unix seconds

    @property
    def parameter_size(self) -> str:
        """As people write it: 7.6B, 494M."""
        for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
            if self.parameters >= size:
                return f"{self.parameters / size:.3g}{unit}"
        return str(self.parameters)


def read(path: str) -> ModelFiles:
    """Of the model directory `path`; files that cannot be read count for nothing."""
    digest, size, kinds, modified = hashlib.sha256(), 0, Counter[str](), 0.0
    for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
        file = os.path.join(path, name)
        if name == "config.json" or name.endswith(".safetensors"):
            try:
                found = os.stat(file)
                head = _header(file) if name != "config.json" else open_bytes(file)
            except (OSError, ValueError):
                continue
            modified = max(modified, found.st_mtime)
            digest.update(f"{name}\0{found.st_size}\0".encode() + head)
            if name != "config.json":
                size += found.st_size
                kinds += _count(head)
    most = max(kinds, key=lambda kind: kinds[kind]) if kinds else ""
    return ModelFiles(digest.hexdigest(), size, kinds.total(), NAMES.get(most, most), modified)


def open_bytes(file: str) -> bytes:
    with open(file, "rb") as handle:
        return handle.read(MAX_HEADER)


def _header(file: str) -> bytes:
    """A safetensors file's JSON header. Raises ValueError if there is none."""
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= MAX_HEADER:
            raise ValueError("no header")
        return handle.read(length)


def _count(head: bytes) -> Counter[str]:
    """Number of values by dtype."""
    tensors = json.loads(head)
    kinds = Counter[str]()
    for name, tensor in tensors.items():
        if name != "__metadata__":
            kinds[str(tensor["dtype"])] += math.prod(tensor["shape"])
    return kinds
