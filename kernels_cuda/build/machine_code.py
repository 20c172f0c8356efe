"""The machine code in a cubin, which is an ELF file (elf(5)): what of two of them must be equal for a GPU to do the same."""

from __future__ import annotations

import struct

# Instructions, and what a launch reads of them: registers, parameters, constants, shared memory. The rest names the target and the source.
KEPT = (".text.", ".nv.info", ".nv.constant", ".nv.shared", ".nv.global")
_NO_BYTES = 8  # a section's type when it only has a size


def machine_code(cubin: bytes) -> dict[str, bytes]:
    """The sections that decide what runs, by name. Raises ValueError for a file that is no 64-bit ELF."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a cubin: no 64-bit ELF file")
    (start,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + at * size) for at in range(count)]
    names = headers[names_at][4]
    found: dict[str, bytes] = {}
    for name, kind, _, _, offset, length in headers:
        title = cubin[names + name : cubin.index(b"\0", names + name)].decode()
        if title.startswith(KEPT):
            found[title] = length.to_bytes(8, "little") if kind == _NO_BYTES else cubin[offset : offset + length]
    return found
