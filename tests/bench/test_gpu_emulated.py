"""The emulator's saved outputs, which a GPU is compared with: they are of every case and of today's kernels, and other outputs differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from bench.gpu import emulated, kernels
from bench.gpu.case import Case
from bench.gpu.part import Part
from tests.cuda_on_cpu import emulator
from tests.cuda_on_cpu.emulator import missing_compiler

SOME = (
    "decode 80 bfloat16 window cap sinks", "decode 64 float16 fp8 cache", "prefill group 1", "prefill wgmma 64 float16",
    "latent 8 heads bfloat16", "add_rms_norm 896 bfloat16", "layer_norm 896 float16", "gelu_tanh float16",
    "qkv 96 bfloat16 fp8 cache norms", "gather_inputs 33", "block updates and remembered tokens", "sample top_p 4099", "sample greedy 33",
)  # fmt: skip
needs_compiler = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


def builders() -> dict[str, partial[Case]]:
    return {builder.args[1]: builder for builder in emulated.cases()}


def apart(name: str) -> float:
    case = builders()[name]()
    with emulator.emulated(seed=3):
        case.run()
    return emulated.difference(case, emulated.saved()[name])


def test_every_case_is_there_and_no_other() -> None:
    assert set(emulated.saved()) == set(builders())


@needs_compiler
@pytest.mark.parametrize("name", SOME)
def test_the_emulator_gives_them(name: str) -> None:
    """Another cause of a difference than a changed kernel is a changed case: python -m bench.gpu.emulated NAME then saves it anew."""
    assert apart(name) <= 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_emulator_gives_all_of_them() -> None:
    assert {name: off for name in builders() if not (off := apart(name)) <= 1} == {}


def case(output: torch.Tensor, tolerance: float) -> Case:
    return Case("a case", lambda: None, lambda: 0.0, tolerance, (output,))


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 4e-3), (torch.float16, 6e-4), (torch.int32, 0.0)])
def test_other_outputs_differ(dtype: torch.dtype, tolerance: float) -> None:
    output = (100 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))).to(dtype)
    saved = emulated.excerpt(case(output, tolerance))
    assert emulated.difference(case(output, tolerance), saved) == 0
    last_bit = output if dtype == torch.int32 else output * (1 + torch.finfo(dtype).eps / 2)
    assert emulated.difference(case(last_bit, tolerance), saved) <= 1
    for wrong in (output + 10, output.roll(1, 0), output.flatten().roll(1).view_as(output)):
        assert emulated.difference(case(wrong, tolerance), saved) > 1
    if output.is_floating_point():
        assert emulated.difference(case(torch.full_like(output, torch.nan), tolerance), saved) > 1


def test_a_gpu_that_gives_something_else_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = torch.arange(1.0, 301.0)
    monkeypatch.setattr(emulated, "saved", lambda: {"a case": emulated.excerpt(case(output, 4e-3))})
    part = Part(tmp_path / "r.json")
    kernels._compare(part, case(output * 1.001, 4e-3))
    assert part.wrong == []
    kernels._compare(part, case(output * 1.1, 4e-3))
    kernels._compare(part, Case("another", lambda: None, lambda: 0.0, 4e-3, (output,)))
    first, second = part.wrong
    assert "a case: differs from the emulator's output, by 8" in first
    assert "another: not among the emulator's saved outputs; run python -m bench.gpu.emulated" in second
