"""pytest -m gpu: the tests that the default leaves out because they need a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

from bench.gpu.part import Part, run

NEEDED = ("pytest", "pytest_timeout", "hypothesis", "msgspec", "zmq")
NONE_COLLECTED = 5
FOLDERS = ("tests/gpu", "tests/cuda_on_cpu", "tests/gpu_workers", "tests/processes", "tests/quire")


def main(part: Part) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        part.skip("pytest -m gpu", f"missing here: {', '.join(missing)}")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-x" if part.dry else "-ra", "-p", "no:cacheprovider"]
    command += ["--collect-only"] if part.dry else ["--continue-on-collection-errors"]
    done = subprocess.run([*command, *FOLDERS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout[-6000:])
    counted = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)", done.stdout)}
    part.record("pytest -m gpu", exit_status=done.returncode, **counted)
    if done.returncode not in (0, NONE_COLLECTED):
        part.fault(f"pytest -m gpu ended with {done.returncode}")


if __name__ == "__main__":
    run(main)
