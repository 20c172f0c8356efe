"""What a set of kernels is made from, in words that two processes can exchange."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from kernels_cpu import features

_SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Kernel:
    """A function of a module of this package that makes the kernel's Source, and its arguments."""

    module: str
    function: str
    arguments: tuple[int | bool, ...] = ()


Recipe = Mapping[str, Kernel]  # by the kernels' names


def to_json(recipe: Recipe) -> str:
    return json.dumps({name: [kernel.module, kernel.function, kernel.arguments] for name, kernel in sorted(recipe.items())})


def from_json(text: str) -> Recipe:
    return {name: Kernel(module, function, tuple(arguments)) for name, (module, function, arguments) in json.loads(text).items()}


def key(recipe: Recipe) -> str:
    """A SHA-256 over all that decides the machine code: this package's files, the compilers' versions, the CPU, and the recipe."""
    digest = hashlib.sha256(_surroundings())
    digest.update(to_json(recipe).encode())
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    """Without importing it; empty where it is not installed, as the compiling process will say."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def _surroundings() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.glob("*.py")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    for text in (platform.python_version(), _version("numba"), _version("llvmlite"), features.identity()):
        digest.update(f"{len(text)}:{text}".encode())
    return digest.digest()
