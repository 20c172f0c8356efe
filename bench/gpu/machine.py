"""What this machine is: GPU, driver, versions. Only questions are asked; no setting of the card is touched."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess

from bench.gpu.part import Part, run
from quire.benchmarks.machine import cpu_name

QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,pcie.link.gen.current"
PACKAGES = "torch numpy cupy-cuda13x nvidia-cuda-nvrtc nvidia-nccl-cu13 triton transformers tokenizers safetensors numba".split()
OF_QUIRE = "aiohttp huggingface_hub jinja2 llguidance msgspec numba zmq safetensors tokenizers torch tqdm uvloop".split()
OF_TESTS = "pytest pytest_timeout hypothesis".split()


def main(part: Part) -> None:
    part.record("host", cpu=cpu_name(), cores=os.cpu_count(), kernel=platform.release(), python=platform.python_version())
    part.record("packages", **{name: _version(name) for name in PACKAGES})
    for what, names in (("quire", OF_QUIRE), ("tests", OF_TESTS)):
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        part.record(f"missing for {what}", modules=" ".join(missing) or "none")
    part.record("tools", **{name: bool(shutil.which(name)) for name in ("nvidia-smi", "nvcc", "ncu", "nsys", "compute-sanitizer", "g++")})
    if part.dry:
        part.skip("gpu", "dry run")
        return
    import torch

    if not torch.cuda.is_available():
        part.fault("torch sees no CUDA device")
        return
    about = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    part.record(
        "gpu", name=about.name, capability=f"{about.major}.{about.minor}", multiprocessors=about.multi_processor_count,
        l2_mib=about.L2_cache_size >> 20, memory_gib=total / 2**30, free_gib=free / 2**30, cuda=torch.version.cuda,
    )  # fmt: skip
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
        part.record("nvidia-smi", **dict(zip(QUERY.split(","), asked.stdout.strip().split(", "))))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    run(main)
