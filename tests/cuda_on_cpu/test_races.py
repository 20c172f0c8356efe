"""A race check like compute-sanitizer's: two accesses to memory by threads of one block with no barrier between them, by ThreadSanitizer.

It finds missing __syncwarp, too, which values cannot show here because the model's tensor-core operations make a warp meet. What threads
share without a barrier by design, the emulator's own bookkeeping, it is told not to look at (include/emu/sanitizer.h).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_on_cpu.emulator import COMPILER, SOURCES
from tests.cuda_on_cpu.race_run import CASES

ROOT = Path(__file__).resolve().parents[2]

# A barrier that is taken away. In one case a store that has none: a copy that does not wait at its mbarrier is the emulator's own to find.
MISSING = [
    ("paged_decode.cu", "    __syncwarp();                                  // the other lanes'", "    //", "decode"),
    ("paged_decode.cu", "    __syncwarp();                                  // every lane", "    //", "decode"),
    ("paged_decode.cu", "  __syncthreads();                                 // the rings", "//", "decode"),
    ("paged_decode.cu", "  __syncthreads();\n  for (int head", "  for (int head", "decode"),
    ("paged_prefill.cu", "    __syncthreads();                                 // the others'", "    //", "prefilled"),
    ("paged_prefill_wgmma.cu", "  __syncthreads();\n\n", "\n", "warpgroups"),
    ("paged_prefill_wgmma.cu", "  give_back(keys_free, seen_first);", "  keys[lane] = 0; give_back(keys_free, seen_first);", "warpgroups"),
    ("mla_decode.cu", "    __syncthreads();                                 // the tile", "    //", "latent"),
    ("mla_decode.cu", "    __syncthreads();                                 // the maxima", "    //", "latent"),
    ("mla_decode.cu", "    __syncthreads();                                 // so are", "    //", "latent"),
    ("mla_decode.cu", "  __syncthreads();                                   // the sums", "  //", "latent"),
    ("common.cuh", "scratch[lane] : 0.f);\n  __syncthreads();", "scratch[lane] : 0.f);", "normed"),
    ("qkv.cu", "  __syncwarp();\n", "", "rotated"),
    ("rows.cu", "    __syncthreads();   // the sums", "    //", "gathered"),
    ("sampler.cu", "    __syncthreads();   // the segment is known", "", "sampled"),
    ("sampler.cu", "      __syncthreads();   // an id may be in both lists", "", "sampled"),
    ("select.cuh", "    __syncthreads();   // all bins are empty", "", "reported"),
    ("select.cuh", "    __syncthreads();   // what was found is there", "", "sampled"),
    ("logprobs.cu", "  __syncthreads();   // the list is full, in some order", "", "reported"),
]


def races(sources: Path, case: str) -> list[str]:
    """Where races were reported: file:line of the kernels' sources."""
    library = subprocess.run([COMPILER, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("libtsan is not installed")
    options = "report_signal_unsafe=0 history_size=4 exitcode=0"
    environment = {**os.environ, "LD_PRELOAD": library, "TSAN_OPTIONS": options, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.cuda_on_cpu.race_run", str(sources), case]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "done", done.stderr[-3000:]
    reports = done.stderr.split("WARNING: ThreadSanitizer: data race")[1:]
    return [place for report in reports if (place := next(iter(re.findall(r"\b(\w+\.cuh?:\d+)", report)), ""))]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_no_races(case: str) -> None:
    assert races(SOURCES, case) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file,barrier,instead,case", MISSING, ids=[f"{m[0]}-{at}" for at, m in enumerate(MISSING)])
def test_a_missing_barrier_is_a_race(file: str, barrier: str, instead: str, case: str, tmp_path: Path) -> None:
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    text = (tmp_path / file).read_text()
    assert text.count(barrier) == 1
    (tmp_path / file).write_text(text.replace(barrier, instead))
    assert races(tmp_path, case)
