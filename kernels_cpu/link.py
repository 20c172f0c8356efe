"""A relocatable ELF object made into a flat image: code and constants in one run of bytes that is right wherever it is mapped.

Only what position-independent kernels need: code and read-only data, distances between them, and calls of a few C functions by way
of a table at the image's end, which is filled in where it is loaded (image.py). For x86-64 and AArch64. References: the System V ABI's
supplements for both (x86-64 psABI 4.4, ELF for the Arm 64-bit Architecture 5.7).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kernels_cpu.image import IMPORTS, Image

_X86, _ARM = 62, 183
_SYMBOLS, _STRINGS, _RELOCATIONS = 2, 3, 4  # kinds of sections
_FUNCTION_OR_DATA, _SECTION = (0, 1, 2), 3  # kinds of symbols
_PAGE = 4096
# jmp *slot(%rip); and adrp x16, slot; ldr x17, [x16, slot]; br x17.
_X86_JUMP, _ARM_JUMP = bytes.fromhex("ff2500000000"), bytes.fromhex("10000090 110240f9 20021fd6")


class LinkError(Exception):
    """The object has something that an image cannot: it names what."""


@dataclass
class _Section:
    name: str
    kind: int
    content: bytes
    link: int
    info: int
    align: int
    place: int = -1  # in the image


def link(content: bytes, names: Sequence[str]) -> Image:
    """The image of the object's functions `names` and all they refer to. Raises LinkError."""
    return _Linker(content).image(names)


class _Linker:
    def __init__(self, content: bytes) -> None:
        self.machine = struct.unpack_from("<H", content, 18)[0]
        if content[:6] != b"\x7fELF\x02\x01" or self.machine not in (_X86, _ARM):
            raise LinkError(f"objects of machine {self.machine} are not known")
        self._sections = _sections(content)
        table = next(section for section in self._sections if section.kind == _SYMBOLS)
        strings = self._sections[table.link].content
        # (name, section, value) of each symbol.
        self._symbols = [
            (_text(strings, name), section, value) for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", table.content)
        ]
        self._slots: dict[str, int] = {}
        self._jumps: dict[str, int] = {}
        self._code = bytearray()

    def image(self, names: Sequence[str]) -> Image:
        homes = {name: (section, value) for name, section, value in self._symbols if section}
        missing = [name for name in names if name not in homes]
        if missing:
            raise LinkError(f"no function {', '.join(missing)}")
        relocations: list[tuple[int, int, int, int]] = []  # place in the image, kind, symbol, addend
        waiting = [homes[name][0] for name in names]
        while waiting:
            number = waiting.pop()
            section = self._sections[number]
            if section.place >= 0:
                continue
            if not section.name.startswith((".text", ".rodata")):
                raise LinkError(f"it needs {section.name}, which is neither code nor constants: a kernel may raise or allocate")
            self._code += bytes(-len(self._code) % max(1, section.align))
            section.place = len(self._code)
            self._code += section.content
            for about in self._sections:
                if about.kind == _RELOCATIONS and about.info == number:
                    for offset, info, addend in struct.iter_unpack("<QQq", about.content):
                        relocations.append((section.place + offset, info & 0xFFFFFFFF, info >> 32, addend))
                        if self._symbols[info >> 32][1]:
                            waiting.append(self._symbols[info >> 32][1])
        self._add_imports(sorted({self._symbols[symbol][0] for _, _, symbol, _ in relocations if not self._symbols[symbol][1]}))
        for place, kind, symbol, addend in relocations:
            name, section_of, value = self._symbols[symbol]
            target = self._sections[section_of].place + value if section_of else self._jumps[name]
            if self.machine == _X86:
                self._relocate_x86(place, kind, target, addend, name)
            else:
                self._relocate_arm(place, kind, target, addend, name)
        symbols = {name: self._sections[homes[name][0]].place + homes[name][1] for name in names}
        return Image(bytes(self._code), symbols, dict(self._slots))

    def _add_imports(self, names: Sequence[str]) -> None:
        """For each a jump through a slot, the slots together at the end."""
        unknown = [name for name in names if name not in IMPORTS]
        if unknown:
            raise LinkError(f"it calls {', '.join(unknown)}")
        jump = _X86_JUMP if self.machine == _X86 else _ARM_JUMP
        for name in names:
            self._code += bytes(-len(self._code) % 16)
            self._jumps[name] = len(self._code)
            self._code += jump
        self._code += bytes(-len(self._code) % 8)
        for name in names:
            self._slots[name] = len(self._code)
            self._code += bytes(8)
            if self.machine == _X86:
                self._put(self._jumps[name] + 2, self._slots[name] - self._jumps[name] - 6)
            else:
                self._relocate_arm(self._jumps[name], 275, self._slots[name], 0, name)
                self._relocate_arm(self._jumps[name] + 4, 286, self._slots[name], 0, name)

    def _put(self, place: int, value: int, form: str = "<i") -> None:
        try:
            struct.pack_into(form, self._code, place, value)
        except struct.error:
            raise LinkError("parts of it lie too far apart") from None

    def _relocate_x86(self, place: int, kind: int, target: int, addend: int, name: str) -> None:
        if kind in (2, 4):  # PC32, PLT32
            self._put(place, target + addend - place)
        elif kind in (9, 41, 42) and name in self._slots:  # GOTPCREL, GOTPCRELX, REX_GOTPCRELX
            self._put(place, self._slots[name] + addend - place)
        elif kind == 24:  # PC64
            self._put(place, target + addend - place, "<q")
        else:
            raise LinkError(f"relocation {kind} of x86-64, to {name or 'constants'}")

    def _relocate_arm(self, place: int, kind: int, target: int, addend: int, name: str) -> None:
        if kind in (311, 312):  # ADR_GOT_PAGE, LD64_GOT_LO12_NC
            if name not in self._slots:
                raise LinkError(f"relocation {kind} of AArch64, to {name}")
            target, kind = self._slots[name], {311: 275, 312: 286}[kind]
        value = target + addend
        if kind == 261:  # PREL32
            self._put(place, value - place)
        elif kind == 260:  # PREL64
            self._put(place, value - place, "<q")
        elif kind in (282, 283):  # JUMP26, CALL26
            self._set_bits(place, (value - place) >> 2, 26, 0)
        elif kind == 275:  # ADR_PREL_PG_HI21
            pages = value // _PAGE - place // _PAGE
            self._set_bits(place, pages & 3, 2, 29, signed=False)
            self._set_bits(place, pages >> 2, 19, 5)
        elif kind == 277:  # ADD_ABS_LO12_NC
            self._set_bits(place, value % _PAGE, 12, 10, signed=False)
        elif kind in (278, 284, 285, 286, 299):  # LDST8, 16, 32, 64, 128_ABS_LO12_NC
            shift = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}[kind]
            self._set_bits(place, value % _PAGE >> shift, 12, 10, signed=False)
        else:
            raise LinkError(f"relocation {kind} of AArch64, to {name or 'constants'}")

    def _set_bits(self, place: int, value: int, width: int, first: int, signed: bool = True) -> None:
        """Put `value` into the bits from `first` on of the instruction there, which are zero."""
        if signed and not -(1 << (width - 1)) <= value < 1 << (width - 1):
            raise LinkError("parts of it lie too far apart")
        mask = (1 << width) - 1
        word = struct.unpack_from("<I", self._code, place)[0] & ~(mask << first) & 0xFFFFFFFF
        struct.pack_into("<I", self._code, place, word | (value & mask) << first)


def _sections(content: bytes) -> list[_Section]:
    (begin,) = struct.unpack_from("<Q", content, 40)
    size, count, names = struct.unpack_from("<HHH", content, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", content, begin + size * number) for number in range(count)]
    strings = content[rows[names][4] : rows[names][4] + rows[names][5]]
    return [
        _Section(_text(strings, name), kind, content[offset : offset + length], of, info, align)
        for name, kind, _, _, offset, length, of, info, align, _ in rows
    ]


def _text(strings: bytes, begin: int) -> str:
    return strings[begin : strings.index(b"\0", begin)].decode()
