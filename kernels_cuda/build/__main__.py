"""python -m kernels_cuda.build: compile every shipped kernel, and report or check what each uses."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels_cuda.build import cache, nvrtc
from kernels_cuda.build.cache import Target
from kernels_cuda.build.machine_code import machine_code
from kernels_cuda.build.resources import Resources
from kernels_cuda.catalogue import SOURCES
from kernels_cuda.errors import KernelError
from kernels_cuda.kernel import KNOWN, Source

COMPARED = "compared"  # folder, in that of the cubins, of those that are made to be compared and not shipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when --check found a fault or a source does not compile, 2 without a compiler."""
    options = _parser().parse_args(arguments)
    if not nvrtc.available():
        print(f"kernels_cuda.build: the CUDA compiler is not installed. {nvrtc.HOW_TO_INSTALL}", file=sys.stderr)
        return 2
    sources = _chosen(options.only)
    targets = [(source, target) for source in sources for target in _targets(source, options.arch)]
    twins = [twins for source in sources for twins in _twins(source)] if options.check and not options.arch else []
    if options.shard:
        index, count = map(int, options.shard.split("/"))
        status = _compile_all([target for _, target in targets[index::count]], options.out)
        return max(status, _compile_all([twin for _, twin in twins[index::count]], options.out / COMPARED))
    failed = _spread(len(targets), options)
    if failed:
        return 1
    differing = _differing(twins, options.out)
    faults = _report(targets, options.out, show=options.report) + differing
    if options.report and twins and not differing:
        print(f"90a, where it is not listed: the same code as 90 ({len(twins)} compared)")
    for fault in faults:
        print(fault, file=sys.stderr)
    total = f"{len(targets)} cubins, compiler {nvrtc.version()}, in {options.out}"
    print(f"{total}; {len(faults)} faults" if options.report or options.check else total)
    return 1 if faults and options.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels_cuda.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=cache.SHIPPED, help="folder of the cubins (default: shipped with the package)")
    parser.add_argument("--only", nargs="*", default=[], metavar="SOURCE", help="names of sources, e.g. norms")
    parser.add_argument(
        "--arch", nargs="*", default=[], choices=KNOWN, metavar="ARCH", help=f"of {', '.join(KNOWN)} (default: all that are shipped)"
    )
    parser.add_argument("--report", action="store_true", help="print registers, stack and spills of each kernel")
    parser.add_argument("--check", action="store_true", help="fail on spills, stack frames, registers above budgets; on other code for 90a")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile (default: one per core)")
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    return parser


def _chosen(names: Sequence[str]) -> list[Source]:
    known = {Path(source.file).stem: source for source in SOURCES}
    for name in names:
        if name not in known:
            raise SystemExit(f"kernels_cuda.build: no source {name!r}; there are {', '.join(known)}")
    return [source for stem, source in known.items() if not names or stem in names]


def _targets(source: Source, architectures: Sequence[str]) -> list[Target]:
    wanted = [a for a in architectures or source.architectures if source.can_be_made_for(a)]
    return [Target(source.file, variant, a) for variant in source.variants for a in wanted]


def _twins(source: Source) -> list[tuple[Target, Target]]:
    """Each variant for sm_90, which is shipped, and for sm_90a, which is not as long as it has the same code."""
    if "90" not in source.architectures or "90a" in source.architectures:
        return []
    return [(Target(source.file, variant, "90"), Target(source.file, variant, "90a")) for variant in source.variants]


def _compile_all(targets: Sequence[Target], folder: Path) -> int:
    status = 0
    for target in targets:
        if cache.find(target, (folder,)) is None:
            try:
                cache.compile_into(target, folder)
            except KernelError as error:
                print(error, file=sys.stderr)
                status = 1
    return status


def _spread(count: int, options: argparse.Namespace) -> bool:
    """Compile in several processes, each taking every n-th target: NVRTC works on one thing at a time. Returns whether one failed."""
    jobs = max(1, min(options.jobs, count))
    same = ["--out", str(options.out)]
    for name in ("only", "arch"):
        if getattr(options, name):
            same += [f"--{name}", *getattr(options, name)]
    if options.check:
        same.append("--check")
    command = [sys.executable, "-m", "kernels_cuda.build", *same]
    children = [subprocess.Popen([*command, "--shard", f"{index}/{jobs}"]) for index in range(jobs)]
    return max([child.wait() for child in children]) != 0  # every one is waited for


def _report(targets: Sequence[tuple[Source, Target]], folder: Path, show: bool) -> list[str]:
    """Every fault found; with `show`, a line per kernel with its registers by architecture."""
    faults = []
    rows: dict[tuple[str, str, int], dict[str, Resources]] = {}
    for source, target in targets:
        variant = " ".join(f"{name}={value}" for name, value in target.defines)
        usage = json.loads((folder / target.file_name(nvrtc.version())).with_suffix(".json").read_text())
        for entry, numbers in usage.items():
            resources, budget = Resources(**numbers), source.budget(entry, target.defines)
            rows.setdefault((entry, variant, budget), {})[target.architecture] = resources
            faults += [f"{entry} [{variant}] sm_{target.architecture}: {fault}" for fault in resources.faults(budget)]
    if show:
        print("registers, stack, spilled bytes, by architecture")
        for (entry, variant, budget), by_architecture in rows.items():
            cells = "  ".join(f"{a}: {r.registers:3d} {r.stack} {r.spill_stores + r.spill_loads}" for a, r in by_architecture.items())
            print(f"{entry:22s} {variant:44s} budget {budget:3d}   {cells}")
    return faults


def _differing(twins: Sequence[tuple[Target, Target]], folder: Path) -> list[str]:
    """The sources from which sm_90a gets other code than sm_90."""
    compiler, faults = nvrtc.version(), dict[str, str]()
    for shipped, twin in twins:
        ours, theirs = folder / shipped.file_name(compiler), folder / COMPARED / twin.file_name(compiler)
        if machine_code(ours.read_bytes()) != machine_code(theirs.read_bytes()):
            faults[shipped.source] = f"{shipped.source}: sm_90a gets other code than sm_90 now: ship it, by the source's architectures"
    return list(faults.values())


if __name__ == "__main__":
    sys.exit(main())
