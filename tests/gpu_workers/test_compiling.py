"""Kernels that are built in threads: all become ready, also where several begin in a process that has not imported numba yet."""

from __future__ import annotations

import subprocess
import sys

BEGIN_TOGETHER = """
import sys
sys.setswitchinterval(1e-6)
import torch
from gpu_workers.layers.cpu_linear import PanelProducts
from gpu_workers.layers.cpu_ops import CPUOps
assert "numba" not in sys.modules
kernels = [kind for dtype in (torch.float32, torch.bfloat16) for kind in (CPUOps(dtype, 1), PanelProducts({"int8"}, dtype, 1))]
assert [each.wait(100) for each in kernels] == [True] * 4
"""


def test_kernels_that_begin_together_are_all_built() -> None:
    ended = subprocess.run([sys.executable, "-c", BEGIN_TOGETHER], capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "stay with torch" not in ended.stderr
