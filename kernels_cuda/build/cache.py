"""Where compiled kernels lie: shipped with the package, or in the user's cache, under a name that covers all they were made from.

{stem}-sm_{architecture}-{key}.cubin, beside it .json with what ptxas said. The key is a SHA-256 of the source, every header of ours it
includes, the options and the compiler's version, so a file is never stale and never needs to be deleted for being so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels_cuda.build import nvrtc
from kernels_cuda.build.resources import parse_log
from kernels_cuda.errors import KernelError
from kernels_cuda.kernel import Defines

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = PACKAGE / "src"
SHIPPED = PACKAGE / "_cubin"
COMPILER_FILE = "compiler.txt"  # in a folder of cubins: the version that made them, for machines without the compiler
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v", "-lineinfo")


@dataclass(frozen=True)
class Target:
    """One file to compile: a source's variant for one architecture, such as '80' or '90a'."""

    source: str
    defines: Defines
    architecture: str

    def options(self) -> tuple[str, ...]:
        """What the compiler is told."""
        return (f"-arch=sm_{self.architecture}", *OPTIONS, *(f"-D{name}={value}" for name, value in self.defines))

    def file_name(self, compiler: str) -> str:
        """The cubin's name for this version of the compiler."""
        digest = hashlib.sha256()
        texts = [_text(self.source), *(text for pair in headers(self.source).items() for text in pair)]
        for part in (*texts, *self.options(), compiler):
            digest.update(f"{len(part)}:".encode() + part.encode())
        return f"{Path(self.source).stem}-sm_{self.architecture}-{digest.hexdigest()[:32]}.cubin"


@cache
def headers(source: str) -> dict[str, str]:
    """Headers of ours that the source includes, also through others: their names and texts."""
    found: dict[str, str] = {}
    unread = [source]
    while unread:
        for name in INCLUDE.findall(_text(unread.pop())):
            if name not in found:
                found[name] = _text(name)
                unread.append(name)
    return dict(sorted(found.items()))


def user_cache() -> Path:
    """$XDG_CACHE_HOME/quire/cubin, or ~/.cache/quire/cubin."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "cubin"


def find(target: Target, folders: Sequence[Path]) -> Path | None:
    """The compiled file, if a folder has it for the present source: from this machine's compiler, or from the one the folder names."""
    for folder in folders:
        for compiler in _compilers_of(folder):
            path = folder / target.file_name(compiler)
            if path.is_file():
                return path
    return None


def compile_into(target: Target, folder: Path) -> Path:
    """Compile and put cubin and resource usage into `folder`; safe with several writers. Raises KernelError."""
    compiler = nvrtc.version()
    cubin, log = nvrtc.compile_cubin(target.source, _text(target.source), headers(target.source), target.options())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / target.file_name(compiler)
    usage = {entry: resources.__dict__ for entry, resources in parse_log(log).items()}
    _write(path.with_suffix(".json"), json.dumps(usage, indent=1).encode())
    _write(folder / COMPILER_FILE, compiler.encode())
    _write(path, cubin)  # last: whoever finds it finds the rest
    return path


def find_or_compile(source: str, defines: Defines, architectures: Sequence[str]) -> Path:
    """The cubin for the first of these architectures that there is one for, compiled now if none was shipped.

    Raises KernelError when it can be neither found nor compiled.
    """
    from kernels_cuda.catalogue import SOURCES as CATALOGUE  # its launchers import this package

    made_for = {known.file: known.architectures for known in CATALOGUE}.get(source, tuple(architectures))
    targets = [Target(source, defines, architecture) for architecture in architectures if architecture in made_for]
    if not targets:
        raise KernelError(f"{source} is made for sm_{', sm_'.join(made_for)}; this GPU runs sm_{', sm_'.join(architectures)}")
    for target in targets:
        path = find(target, (SHIPPED, user_cache()))
        if path is not None:
            return path
    if not nvrtc.available():
        raise KernelError(
            f"no compiled {source} for sm_{architectures[0]} {dict(defines)}, and no compiler to make it: {nvrtc.HOW_TO_INSTALL}"
        )
    return compile_into(targets[0], user_cache())


def _compilers_of(folder: Path) -> list[str]:
    versions = [nvrtc.version()] if nvrtc.available() else []
    named = folder / COMPILER_FILE
    if named.is_file() and (version := named.read_text()) not in versions:
        versions.append(version)
    return versions


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@cache
def _text(name: str) -> str:
    return (SOURCES / name).read_text()
