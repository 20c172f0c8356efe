"""Objects made into images: what runs afterwards, what is refused, and AArch64, whose instructions are read instead of run."""

from __future__ import annotations

import struct

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch  # noqa: F401 - whose libgomp runs them
from numba import carray

from kernels_cpu import build, compiler
from kernels_cpu.image import IMPORTS, Image, run
from kernels_cpu.link import LinkError, link
from kernels_cpu.native import Source, barrier, kernel, thread_number
from kernels_cpu.recipe import Kernel

TABLE = (11, 7, 5, 3)


@kernel()
def numbered(address):  # type: ignore[no-untyped-def]
    """Each thread writes its number, and after all have done so the sum of them."""
    a = carray(address, (16,), np.int64)
    me = thread_number()
    a[me] = me + 1
    barrier()
    total = 0
    for thread in range(4):
        total += a[thread]
    a[8 + me] = total


@kernel()
def looked_up(address):  # type: ignore[no-untyped-def]
    """From a table among the constants."""
    a = carray(address, (4,), np.int64)
    a[0] = TABLE[a[0]]


@kernel()
def allocating(address):  # type: ignore[no-untyped-def]
    a = carray(address, (4,), np.int64)
    a[1] = np.zeros(a[0], np.int64).sum()


@kernel()
def calling(address):  # type: ignore[no-untyped-def]
    a = carray(address, (4,), np.float64)
    a[0] = np.tanh(a[0])


def made(**sources: Source) -> Image:
    return link(compiler.compiled(sources), list(sources))


def test_several_kernels_in_one_image_run_on_threads_with_their_constants() -> None:
    addresses = Image.from_bytes(made(first=numbered, second=looked_up).to_bytes()).load()
    a = np.zeros(16, np.int64)
    run(addresses["first"], a, 4)
    assert a.tolist() == [1, 2, 3, 4, 0, 0, 0, 0, 10, 10, 10, 10, 0, 0, 0, 0]
    for place, wanted in enumerate(TABLE):
        a[0] = place
        run(addresses["second"], a, 1)
        assert a[0] == wanted


@pytest.mark.parametrize("source, why", [(allocating, "NRT_"), (calling, "it calls tanh")], ids=["memory", "a function of libm"])
def test_what_needs_more_than_threads_is_refused(source: Source, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        made(one=source)


def test_a_kernel_that_is_not_there_is_named() -> None:
    with pytest.raises(LinkError, match="no function two"):
        link(compiler.compiled({"one": numbered}), ["one", "two"])


def test_an_object_of_another_machine_is_refused() -> None:
    content = bytearray(compiler.compiled({"one": numbered}))
    content[18] = 22  # IBM S/390
    with pytest.raises(LinkError, match="machine 22"):
        link(bytes(content), ["one"])


def test_a_set_is_built_from_its_recipe() -> None:
    image = build.build({"norm": Kernel("ops", "norm", (False, False)), "most": Kernel("ops", "argmax", (False,))})
    assert set(image.symbols) == {"norm", "most"} and set(image.imports) <= set(IMPORTS)
    addresses = image.load()
    x, a = np.arange(40, dtype=np.float32).reshape(2, 20)[:, ::-1].copy(), np.zeros(16, np.int64)
    places, largest = np.zeros(2, np.int64), np.zeros(2, np.float32)
    a[[0, 1, 3]] = [array.ctypes.data for array in (x, places, largest)]
    a[4:7] = 2, 20, 1
    run(addresses["most"], a, 1)
    assert places.tolist() == [0, 0] and largest.tolist() == [19.0, 39.0]


ARM = """
target triple = "aarch64-unknown-linux-gnu"
@table = private constant [8 x i64] [i64 11, i64 22, i64 33, i64 44, i64 55, i64 66, i64 77, i64 88]
declare ptr @memset(ptr, i32, i64)
declare i32 @omp_get_thread_num()
define internal void @helper(ptr %a, i64 %n) noinline {
  %p = getelementptr [8 x i64], ptr @table, i64 0, i64 %n
  %v = load i64, ptr %p
  store i64 %v, ptr %a
  ret void
}
define void @one(ptr %a) {
  %m = call ptr @memset(ptr %a, i32 0, i64 4096)
  %t = call i32 @omp_get_thread_num()
  %n = zext i32 %t to i64
  call void @helper(ptr %a, i64 %n)
  ret void
}
"""


def test_aarch64_reaches_its_constants_and_calls() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM knows no AArch64")
    machine = target.create_target_machine(opt=2, reloc="pic", codemodel="small")
    image = link(machine.emit_object(llvm.parse_assembly(ARM)), ["one"])
    words = struct.unpack(f"<{len(image.code) // 4}I", image.code)
    # Calls of functions outside: a jump that loads its target from the function's slot.
    for name, slot in image.imports.items():
        (jump,) = [4 * at for at in range(len(words) - 2) if words[at + 2] == 0xD61F0220 and _page_and_offset(words, at, 3) == slot]
        assert [4 * at for at, word in enumerate(words) if word >> 26 == 0b100101 and 4 * at + 4 * _signed(word, 26, 0) == jump], name
    # The table, by page and offset.
    found = [
        _page_and_offset(words, at, 0) for at in range(len(words) - 1) if words[at] >> 24 & 0x9F == 0x90 and words[at + 1] >> 22 == 0x244
    ]
    assert [struct.unpack_from("<8Q", image.code, place) for place in found] == [tuple(range(11, 89, 11))]


def _page_and_offset(words: tuple[int, ...], at: int, shift: int) -> int:
    """Where an ADRP and the instruction behind it point, whose 12 bits count 2**shift bytes."""
    pages = _signed(words[at], 19, 5) << 2 | words[at] >> 29 & 3
    return (4 * at // 4096 + pages) * 4096 + ((words[at + 1] >> 10 & 0xFFF) << shift)


def _signed(word: int, width: int, first: int) -> int:
    value = word >> first & ((1 << width) - 1)
    return value - (1 << width) if value >> (width - 1) else value
