"""Compiling the kernels for GPUs, on a machine that has none: resources, cache, command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels_cuda.build import __main__ as command
from kernels_cuda.build import ahead, cache, nvrtc
from kernels_cuda.build.cache import Target
from kernels_cuda.build.machine_code import machine_code
from kernels_cuda.build.resources import Resources, parse_log
from kernels_cuda.catalogue import SOURCES
from kernels_cuda.errors import KernelError
from kernels_cuda.kernel import KNOWN, Source, defines

compiles = pytest.mark.skipif(not nvrtc.available(), reason=f"NVRTC is not installed: {nvrtc.HOW_TO_INSTALL}")
LOG = """\
ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to a reason in the function 'bad'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'good' for 'sm_90'
ptxas info    : Function properties for good
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function 'bad' for 'sm_90'
ptxas info    : Function properties for bad
    256 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_what_ptxas_says() -> None:
    found = parse_log(LOG)
    assert found == {"good": Resources(168, 0, 0, 0, 512), "bad": Resources(255, 256, 8, 16, 0, "a reason")}
    assert found["good"].faults(168) == []
    assert found["good"].faults(167) == ["uses 168 registers, its budget is 167"]
    assert [fault.split()[0] for fault in found["bad"].faults(255)] == ["spills", "has", "has"]
    assert found["bad"].faults(255)[2] == "has its wgmma serialized by the compiler: a reason"


@compiles
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.file)
def test_each_source_compiles_within_its_budget(source: Source, tmp_path: Path) -> None:
    """One variant for the oldest and the newest architecture it is for; `python -m kernels_cuda.build --check` does all (slow, below)."""
    variant = source.variants[len(source.variants) // 2]
    for architecture in {source.architectures[0], source.architectures[-1]}:
        path = cache.compile_into(Target(source.file, variant, architecture), tmp_path)
        usage = json.loads(path.with_suffix(".json").read_text())
        assert set(usage) == set(source.registers)
        for entry, numbers in usage.items():
            assert Resources(**numbers).faults(source.budget(entry, variant)) == []
        assert path.read_bytes()[:4] == b"\x7fELF"


@compiles
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_variant_for_every_architecture(tmp_path: Path) -> None:
    assert command.main(["--check", "--out", str(tmp_path)]) == 0


@compiles
def test_other_code_for_sm_90a_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "same.cu").write_text('extern "C" __global__ void f(int* x) { x[threadIdx.x] += 1; }\n')
    (tmp_path / "other.cu").write_text("""
extern "C" __global__ void f(int* x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
  x[threadIdx.x] += 1;
}
""")
    monkeypatch.setattr(cache, "SOURCES", tmp_path)
    cache._text.cache_clear()
    variants = ((), (("OTHER", "1"),))
    twins = [twins for file in ("same.cu", "other.cu") for twins in command._twins(Source(file, variants, {"f": 32}))]
    assert len(twins) == 4
    for shipped, compared in twins:
        cache.compile_into(shipped, tmp_path)
        cache.compile_into(compared, tmp_path / command.COMPARED)
    (fault,) = command._differing(twins, tmp_path)
    assert fault.startswith("other.cu: sm_90a gets other code than sm_90 now")
    assert command._twins(Source("same.cu", ((),), {"f": 32}, architectures=("90a",))) == []
    cache._text.cache_clear()


def test_what_is_no_cubin_has_no_code() -> None:
    with pytest.raises(ValueError, match="not a cubin"):
        machine_code(b"PK\3\4")


@compiles
def test_a_spill_a_stack_frame_and_a_budget_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "wasteful.cu"
    source.write_text("""
extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {
  float a[64];
  for (int i = 0; i < 64; i++) a[i] = x[i * 1024 + threadIdx.x];
  for (int j = 0; j < n; j++)
    for (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 7) % 64] + x[j];
  for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = a[i];
}
extern "C" __global__ void indexes(float* x, const int* at) {
  float a[64];
  for (int i = 0; i < 64; i++) a[i] = x[i];
  for (int i = 0; i < 64; i++) a[at[i]] += a[at[i + 64]];
  x[threadIdx.x] = a[at[threadIdx.x]];
}
""")
    monkeypatch.setattr(cache, "SOURCES", tmp_path)
    cache._text.cache_clear()
    wasteful = Source("wasteful.cu", ((),), {"spills": 8, "indexes": 64})
    target = Target("wasteful.cu", (), "90")
    cache.compile_into(target, tmp_path)
    faults = "\n".join(command._report([(wasteful, target)], tmp_path, show=True))
    assert re.search(r"spills .* sm_90: spills \d+ \+ \d+ bytes", faults)
    assert re.search(r"spills .* uses \d+ registers, its budget is 8", faults)
    assert re.search(r"indexes .* has a stack frame of 256 bytes", faults)
    assert "registers, stack, spilled bytes" in capsys.readouterr().out
    cache._text.cache_clear()


@compiles
def test_every_instruction_of_ptx_cuh_assembles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's probes use them all, also those that no kernel uses yet."""
    for path in (*cache.SOURCES.glob("*.cuh"), Path(__file__).parent / "probes" / "probes.cu"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(cache, "SOURCES", tmp_path)
    for architecture in ("90", "120"):
        path = cache.compile_into(Target("probes.cu", (), architecture), tmp_path)
        assert {"ring_sum", "tensor_core"} <= set(json.loads(path.with_suffix(".json").read_text()))


@compiles
def test_a_source_that_does_not_compile_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.cu").write_text("\n\nint x = nothing;\n")
    monkeypatch.setattr(cache, "SOURCES", tmp_path)
    with pytest.raises(KernelError, match=r'wrong\.cu does not compile(.|\n)*wrong\.cu\(3\): error: identifier "nothing"'):
        cache.compile_into(Target("wrong.cu", (), "80"), tmp_path)


def test_the_key_covers_all_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SOURCES", tmp_path)

    def name(compiler: str = "13.0", architecture: str = "80", header: str = "// a", source: str = "", **macros: int) -> str:
        (tmp_path / "k.cu").write_text(f'#include "outer.cuh"\n{source}')
        (tmp_path / "outer.cuh").write_text('#include "inner.cuh"')
        (tmp_path / "inner.cuh").write_text(header)
        cache._text.cache_clear()
        cache.headers.cache_clear()
        return Target("k.cu", defines(**macros), architecture).file_name(compiler)

    names = [name(), name("13.1"), name(architecture="90"), name(header="// b"), name(source="// c"), name(A=1), name(A=2)]
    assert len(set(names)) == len(names) and name() == names[0]
    cache._text.cache_clear()
    cache.headers.cache_clear()


@compiles
def test_found_or_compiled_once_and_without_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "shipped")
    path = cache.find_or_compile("rows.cu", (), ("90a", "90"))
    assert path.parent == tmp_path / "quire" / "cubin" and "sm_90-" in path.name
    monkeypatch.setattr(cache, "compile_into", lambda *_: pytest.fail("compiled again"))
    assert cache.find_or_compile("rows.cu", (), ("90a", "90")) == path
    assert not [left for left in path.parent.iterdir() if left.name.startswith(".")]
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    assert cache.find_or_compile("rows.cu", (), ("90a", "90")) == path
    with pytest.raises(KernelError, match=r"no compiled rows\.cu for sm_80.*no compiler to make it: pip install"):
        cache.find_or_compile("rows.cu", (), ("80",))


def test_without_the_compiler_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    assert command.main(["--report"]) == 2
    assert "pip install 'quire[kernels]'" in capsys.readouterr().err


@compiles
def test_the_command(tmp_path: Path) -> None:
    """Two processes, each with its share, which they share with the comparison of 90 and 90a; only shipped cubins count."""
    arguments = "-m kernels_cuda.build --report --check --only rows --jobs 2 --out".split()
    done = subprocess.run([sys.executable, *arguments, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in ("gather_inputs", "the same code as 90 (1 compared)", "5 cubins, compiler 13.", "0 faults"):
        assert said in done.stdout
    assert [path.name[:11] for path in (tmp_path / command.COMPARED).glob("*.cubin")] == ["rows-sm_90a"]


@compiles
def test_a_source_for_one_architecture_is_left_out_for_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that is no Hopper compiles and loads nothing of the kernels with wgmma."""
    assert command.main(["--check", "--only", "rows", "paged_prefill_wgmma", "--arch", "90", "--out", str(tmp_path)]) == 0
    assert "1 cubins" in capsys.readouterr().out
    with pytest.raises(KernelError, match=r"paged_prefill_wgmma\.cu is made for sm_90a; this GPU runs sm_100"):
        cache.find_or_compile("paged_prefill_wgmma.cu", (), ("100",))


def test_an_architecture_that_no_kernel_is_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--arch", "91"])
    assert "--arch: invalid choice: '91'" in capsys.readouterr().err


def test_every_source_is_in_the_catalogue() -> None:
    assert {source.file for source in SOURCES} == {path.name for path in cache.SOURCES.glob("*.cu")}
    for source in SOURCES:
        text = (cache.SOURCES / source.file).read_text()
        entries = re.findall(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(', text)
        assert set(entries) == set(source.registers) and len(set(source.variants)) == len(source.variants)
        assert set(source.architectures) <= set(KNOWN)
        # What the emulator relies on: PTX in ptx.cuh alone.
        assert "asm" not in re.sub(r"//.*", "", text)


def test_a_model_gets_the_variants_it_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each source, and the sampler's for its logits; one that cannot be had is the error."""
    kernels = list(ahead.needed(128, "BF16"))
    sources = [source for source, _ in kernels]
    names = "activations logprobs norms paged_decode paged_prefill qkv rows sampler"
    assert sorted(set(sources)) == [f"{name}.cu" for name in names.split()]
    assert len(sources) == 10  # sampler and logprobs know two kinds of logits
    assert all(dict(variant).get("HEAD_DIM", "128") == "128" and "DTYPE_FP16" not in dict(variant) for _, variant in kernels)
    hopper = list(ahead.needed(128, "BF16", wgmma=True))
    assert {source for source, _ in hopper} - set(sources) == {"paged_prefill_wgmma.cu"} and len(hopper) == len(kernels)
    looked: list[str] = []

    def find(source: str, variant: object, architectures: object) -> Path:
        looked.append(source)
        if source == "qkv.cu":
            raise KernelError("no compiler")
        return Path(source)

    monkeypatch.setattr(ahead, "find_or_compile", find)
    with pytest.raises(KernelError, match="no compiler"):
        ahead.Ahead(kernels, ("90",)).wait()
    assert "qkv.cu" in looked
    ahead.Ahead([kernel for kernel in kernels if kernel[0] != "qkv.cu"], ("90",)).wait()
