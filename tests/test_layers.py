"""Holds the floors of the house (docs/architecture.md): who may import whom, and what no process may ever use.

It reads the source with `ast` and runs none of it, so an import hidden inside a function counts as well. What it cannot see is an import
whose name is computed while running.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Which of our packages each of our packages may import, itself aside.
MAY_IMPORT: dict[str, set[str]] = {
    "quire": {"frontend", "ipc"},
    "frontend": {"ipc"},
    "scheduler_proc": {"ipc"},
    "gpu_workers": {"ipc", "kernels_cpu", "kernels_cuda"},
    "ipc": set(),
    "kernels_cpu": set(),
    "kernels_cuda": set(),
}
# tests and bench may import everything, and nothing of the product may import them: they are not in the wheel.
OURS = {*MAY_IMPORT, "tests", "bench"}

# The supervisor's child turns into the process it was started for: the one place where floor 3 reaches down to these.
CHILD = "quire/child.py"
CHILD_ENTRIES = {"frontend.run", "scheduler_proc.run", "gpu_workers.run"}

# Slow to import and large in memory; a frontend that pulled one in would take seconds to start.
HEAVY = ("torch", "cupy", "transformers", "safetensors.torch")
# The compilers of CPU kernels are never loaded where requests are served.
COMPILERS = ("numba", "llvmlite")
MAY_COMPILE = {"kernels_cpu"}
MAY_BE_HEAVY = {"gpu_workers", "kernels_cuda"}
FALLBACK_TOKENIZER = "frontend/fallback_tokenizer.py"

# All of these run code that the bytes they read can choose, or open a door to such bytes.
BANNED_MODULES = ("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing.shared_memory")
BANNED_NAMES = {"eval", "exec", "builtins.eval", "builtins.exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load"}
BANNED_ATTRIBUTES = {
    "recv_pyobj",
    "send_pyobj",
    "TCPStore",
    # torch.distributed's object collectives unpickle what a peer sends
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
}


@dataclass(frozen=True)
class Import:
    module: str  # dotted; for `from a import b` it is "a.b", since b may be a module
    line: int
    in_function: bool


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def walk(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, with whether a function's body encloses it: only then does importing the file not run it."""
    for child in ast.iter_child_nodes(node):
        yield child, in_function
        yield from walk(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def absolute(path: str, node: ast.ImportFrom) -> str:
    """The dotted module that a `from` statement in the file at `path` names."""
    if not node.level:
        return node.module or ""
    folders = Path(path).parent.parts
    base = folders[: len(folders) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def literal_import(node: ast.AST) -> str | None:
    """The module in `importlib.import_module("x")` or `__import__("x")`."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)):
        return None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
    return node.args[0].value if called in ("import_module", "__import__") else None


def imports(path: str, tree: ast.AST) -> Iterator[Import]:
    for node, in_function in walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(f"{absolute(path, node)}.{alias.name}", node.lineno, in_function) for alias in node.names)
        elif (module := literal_import(node)) is not None:
            yield Import(module, node.lineno, in_function)  # type: ignore[attr-defined]


def floor_violation(path: str, found: Import) -> str | None:
    package, target = path.split("/")[0], found.module.split(".")[0]
    if target not in OURS or target == package or target in MAY_IMPORT[package]:
        return None
    entry = ".".join(found.module.split(".")[:2])
    if path == CHILD and entry in CHILD_ENTRIES:
        return None if found.in_function else f"{entry} is imported when {CHILD} is; only inside a function, in the child, may it be"
    return f"{package} may not import {found.module}"


def heavy_violation(path: str, found: Import) -> str | None:
    if path.split("/")[0] in MAY_BE_HEAVY or not within(found.module, HEAVY):
        return None
    if path == FALLBACK_TOKENIZER and within(found.module, ("transformers",)):
        return None if found.in_function else "transformers may be imported only inside a function here"
    return f"{found.module} belongs in gpu_workers or kernels_cuda"


def compiler_violation(path: str, found: Import) -> str | None:
    if path.split("/")[0] in MAY_COMPILE or not within(found.module, COMPILERS):
        return None
    return f"{found.module} belongs in kernels_cpu"


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """`t.distributed.x` as "torch.distributed.x" after `import torch as t`; None for what is not a chain of plain names."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def bound_names(tree: ast.AST) -> dict[str, str]:
    """What each name that an import binds stands for."""
    names: dict[str, str] = {}
    for node, _ in walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def banned_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    names = bound_names(tree)
    for node, _ in walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            full = dotted(node, names)
            last = node.attr if isinstance(node, ast.Attribute) else (full or "").rpartition(".")[2]
            if full in BANNED_NAMES or last in BANNED_ATTRIBUTES:
                yield node.lineno, f"{full or last} is banned"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full_names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, f"{full} is banned") for full in full_names if full in BANNED_NAMES)
        elif isinstance(node, ast.Call):
            yield from banned_call(node, dotted(node.func, names))


def banned_call(node: ast.Call, called: str | None) -> Iterator[tuple[int, str]]:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    allow_pickle = keywords.get("allow_pickle")
    if allow_pickle is not None and not (isinstance(allow_pickle, ast.Constant) and allow_pickle.value is False):
        yield node.lineno, "allow_pickle is banned"
    if called == "torch.distributed.init_process_group" and "store" not in keywords:
        yield node.lineno, "init_process_group without store= opens a TCPStore"
    if called == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and node.args[1].value in BANNED_ATTRIBUTES:
        yield node.lineno, f"{node.args[1].value} is banned"


def violations(path: str, source: str) -> list[str]:
    """What breaks the rules in one file; `path` is relative to the repository, with forward slashes."""
    tree = ast.parse(source, path)
    found: set[tuple[int, str]] = set(banned_uses(tree))
    for each in imports(path, tree):
        if within(each.module, BANNED_MODULES):
            found.add((each.line, f"{each.module} is banned"))
        found.update(
            (each.line, message)
            for check in (floor_violation, heavy_violation, compiler_violation)
            if (message := check(path, each)) is not None
        )
    return [f"{path}:{line}: {message}" for line, message in sorted(found)]


def product_files() -> list[Path]:
    return sorted(file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py"))


def test_the_tree_keeps_the_rules() -> None:
    broken = [line for file in product_files() for line in violations(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize("package", ["quire", "frontend", "scheduler_proc", "gpu_workers", "ipc"])
def test_the_scan_reads_every_package(package: str) -> None:
    assert any(file.is_relative_to(ROOT / package) for file in product_files())


@pytest.mark.parametrize(
    "path, source",
    [
        # floors
        ("frontend/app.py", "import scheduler_proc"),
        ("frontend/app.py", "from scheduler_proc.loop import Loop"),
        ("frontend/app.py", "def f():\n    import gpu_workers.run"),
        ("frontend/app.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from quire import LLM"),
        ("frontend/app.py", "import importlib\nimportlib.import_module('gpu_workers.worker')"),
        ("frontend/app.py", "__import__('gpu_workers')"),
        ("scheduler_proc/loop.py", "from frontend import stream"),
        ("scheduler_proc/loop.py", "import kernels_cuda.build"),
        ("gpu_workers/worker.py", "import ipc.arena, scheduler_proc.rows"),
        ("ipc/channels.py", "from quire.version import __version__"),
        ("ipc/channels.py", "import frontend"),
        ("kernels_cuda/build.py", "from ipc import config"),
        ("quire/llm.py", "import scheduler_proc.run"),
        ("quire/llm.py", "def f():\n    from kernels_cuda import build"),
        ("quire/child.py", "from scheduler_proc.run import run"),
        ("quire/child.py", "class A:\n    from gpu_workers import run"),
        ("quire/child.py", "def f():\n    from scheduler_proc.scheduler import Scheduler"),
        ("quire/child.py", "def f():\n    import scheduler_proc"),
        ("ipc/actor.py", "import tests.fakes"),
        ("quire/cli.py", "from bench import workloads"),
        # heavy imports
        ("frontend/app.py", "import torch"),
        ("frontend/app.py", "def f():\n    from transformers import AutoTokenizer"),
        ("frontend/fallback_tokenizer.py", "import transformers"),
        ("frontend/fallback_tokenizer.py", "def f():\n    import torch"),
        ("scheduler_proc/rows.py", "from numba import njit"),
        ("gpu_workers/layers/cpu_ops.py", "def f():\n    import llvmlite.binding"),
        ("kernels_cpu/ops.py", "from gpu_workers.device import base"),
        ("kernels_cpu/compiler.py", "import torch"),
        ("ipc/arena.py", "from cupy.cuda import runtime"),
        ("quire/llm.py", "def f():\n    import torch.nn"),
        ("frontend/app.py", "from safetensors.torch import load_file"),
        # what nothing may use
        ("ipc/messages.py", "import pickle"),
        ("gpu_workers/worker.py", "from pickle import loads as read"),
        ("gpu_workers/worker.py", "import cPickle"),
        ("gpu_workers/worker.py", "import marshal, shelve"),
        ("gpu_workers/worker.py", "def f():\n    import dill"),
        ("gpu_workers/worker.py", "from cloudpickle import loads"),
        ("ipc/arena.py", "from multiprocessing import shared_memory"),
        ("ipc/arena.py", "import multiprocessing.shared_memory as shm"),
        ("frontend/app.py", "import yaml\nyaml.load(text)"),
        ("frontend/app.py", "import yaml as y\ny.load(text, Loader=y.SafeLoader)"),
        ("frontend/app.py", "from yaml import load"),
        ("frontend/app.py", "value = eval(text)"),
        ("frontend/app.py", "exec(text, {})"),
        ("frontend/app.py", "run = eval\nrun(text)"),
        ("frontend/app.py", "import builtins\nbuiltins.exec(text)"),
        ("gpu_workers/weights/load.py", "import torch\ntorch.load(path, weights_only=True)"),
        ("gpu_workers/weights/load.py", "import torch as t\nread = t.load"),
        ("gpu_workers/weights/load.py", "from torch import load"),
        ("gpu_workers/weights/load.py", "import numpy as np\nnp.load(path, allow_pickle=True)"),
        ("ipc/channels.py", "def f(self):\n    return self.socket.recv_pyobj()"),
        ("ipc/channels.py", "sockets[0].send_pyobj(1)"),
        ("ipc/channels.py", "getattr(socket, 'recv_pyobj')()"),
        ("gpu_workers/collectives.py", "import torch\ntorch.distributed.TCPStore('host', 1)"),
        ("gpu_workers/collectives.py", "from torch.distributed import TCPStore as Store\nStore('host', 1)"),
        ("gpu_workers/collectives.py", "import torch.distributed as dist\ndist.broadcast_object_list(box)"),
        ("gpu_workers/collectives.py", "import torch.distributed as dist\ndist.init_process_group('gloo')"),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    "path, source",
    [
        ("frontend/app.py", "import aiohttp\nfrom ipc.messages import Submit\nfrom .stream import Stream\nfrom frontend import auth"),
        ("frontend/handlers/chat.py", "from ..schemas import chat\nfrom . import models"),
        ("frontend/fallback_tokenizer.py", "def f():\n    from transformers import AutoTokenizer"),
        ("scheduler_proc/loop.py", "import ipc.channels\nimport numpy"),
        ("gpu_workers/worker.py", "import torch\nfrom kernels_cuda import build\nfrom kernels_cpu import cache\nfrom ipc import arena"),
        ("kernels_cuda/reference.py", "import torch\nimport cupy"),
        ("kernels_cpu/linear.py", "import numpy\nfrom numba import njit"),
        ("quire/llm.py", "from frontend.engine_client import EngineClient\nfrom ipc import config"),
        ("quire/child.py", "def run():\n    from scheduler_proc.run import run\n    from gpu_workers import run as worker"),
        # a module of another owner whose name only begins like ours, or like a heavy one
        ("frontend/app.py", "import ipcalc, torchless, frontend_tools"),
        # evaluation mode of a model, another library's `load`, and a store of our own
        ("gpu_workers/runner.py", "model.eval()\njson.load(f)\nnp.load(path, allow_pickle=False)"),
        ("gpu_workers/collectives.py", "import torch.distributed as dist\ndist.init_process_group('gloo', store=store)"),
        ("frontend/app.py", "import asyncio\nasyncio.create_subprocess_exec('x')\nyaml.safe_load(text)"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize("module", ["quire", "quire.cli", "ipc", "frontend.run", "scheduler_proc.run"])
def test_importing_leaves_the_heavy_libraries_out(module: str) -> None:
    """The scan sees our own imports; only a real import shows what somebody else's package pulls in."""
    target = ROOT / module.replace(".", "/")
    if not (target.with_suffix(".py").exists() or (target / "__init__.py").exists()):
        pytest.skip(f"{module} is not written yet")
    assert loaded(module, {"torch", "cupy", "transformers", "numba"}) == []


@pytest.mark.parametrize("module", ["gpu_workers.worker", "gpu_workers.device.cpu", "kernels_cpu.build"])
def test_importing_leaves_the_compilers_out(module: str) -> None:
    assert loaded(module, {"numba", "llvmlite"}) == []


def loaded(module: str, names: set[str]) -> list[str]:
    """Which of these modules importing this one loads."""
    code = f"import sys, {module}; print(*sorted({names} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
