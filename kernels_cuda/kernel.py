"""Which kernels exist: a source file, its variants by macro, and what each entry may use of the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels_cuda.errors import UnsupportedShape

Defines = tuple[tuple[str, str], ...]

# sm_80 cubins run on 8.x, sm_89 on 8.9, sm_90 on 9.0, sm_100 on 10.x, sm_120 on 12.x; nothing else of quire's is needed for those.
ARCHITECTURES = ("80", "89", "90", "100", "120")
# For sources with wgmma or setmaxnreg, which exist on that one architecture only. Of all others the compiler makes the same code as for 90
# (`python -m kernels_cuda.build --check` compares), so a second copy of them is not shipped.
ARCHITECTURES_90A = ("90a",)
KNOWN = (*ARCHITECTURES, *ARCHITECTURES_90A)


def defines(**macros: object) -> Defines:
    """Macros of one variant, in a fixed order: defines(HEAD_DIM=128, DTYPE_BF16=1)."""
    return tuple(sorted((name, str(value)) for name, value in macros.items()))


@dataclass(frozen=True)
class Kernel:
    """One entry point of one variant: what `launch` takes."""

    source: str
    entry: str
    defines: Defines = ()

    def __str__(self) -> str:
        return f"{self.entry}<{', '.join(f'{name}={value}' for name, value in self.defines)}>"


@dataclass(frozen=True)
class Source:
    """One file of src/, with every variant that is shipped.

    registers: for each entry the most registers per thread it may use on any architecture, so that the blocks per SM its launcher
    counts on stay true; `python -m kernels_cuda.build --check` fails above it, and on any spill or stack frame. A variant may have its own
    budget through `variant_registers` (defines -> budget by entry).
    """

    file: str
    variants: tuple[Defines, ...]
    registers: Mapping[str, int]
    variant_registers: Mapping[Defines, Mapping[str, int]] = field(default_factory=dict)
    architectures: tuple[str, ...] = ARCHITECTURES
    _kernels: dict[tuple[str, Defines], Kernel] = field(default_factory=dict, repr=False, compare=False)

    def budget(self, entry: str, variant: Defines) -> int:
        """Registers per thread that `entry` may use in this variant."""
        return self.variant_registers.get(variant, {}).get(entry, self.registers[entry])

    def can_be_made_for(self, architecture: str) -> bool:
        """Whether it compiles for this one of KNOWN, shipped or not: what is for sm_90 does for sm_90a."""
        return architecture in self.architectures or (architecture in ARCHITECTURES_90A and "90" in self.architectures)

    def kernel(self, entry: str, variant: Defines) -> Kernel:
        """The handle of an entry. Raises UnsupportedShape for a variant that is not shipped."""
        kernel = self._kernels.get((entry, variant))
        if kernel is None:
            require(variant in self.variants, f"{self.file} has no variant {dict(variant)}")
            kernel = self._kernels[(entry, variant)] = Kernel(self.file, entry, variant)
        return kernel


# The dtypes of activations and weights, by torch's name, and the macro that selects each in src/common.cuh.
ACTIVATION_DTYPES = {"torch.bfloat16": "BF16", "torch.float16": "FP16"}


def dtype_macro(dtype: Any, what: str) -> str:
    """BF16 or FP16 for a torch dtype. Raises UnsupportedShape, naming `what`, for any other."""
    macro = ACTIVATION_DTYPES.get(str(dtype))
    if macro is None:
        raise UnsupportedShape(f"{what} is {str(dtype).removeprefix('torch.')}; quire's CUDA kernels compute in bfloat16 or float16")
    return macro


def require(condition: bool, message: str) -> None:
    """Raise UnsupportedShape(message) unless the condition holds."""
    if not condition:
        raise UnsupportedShape(message)


def product(base: Mapping[str, Iterable[object]]) -> tuple[Defines, ...]:
    """Every combination of the macros' values."""
    variants: list[dict[str, object]] = [{}]
    for name, values in base.items():
        variants = [{**variant, name: value} for variant in variants for value in values]
    return tuple(defines(**variant) for variant in variants)
