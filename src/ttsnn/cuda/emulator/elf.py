"""Other names for the libraries that an ELF file needs (64 bits, little endian)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ttsnn.errors import TargetError

__all__ = ["rename_needed"]

_DYNAMIC, _VERSIONS = 6, 0x6FFFFFFE  # section types
_NEEDED = 1  # tag of a dynamic entry


def rename_needed(data: bytes, names: Mapping[str, str]) -> bytes:
    """A copy of an ELF file that needs other libraries.

    The new name is written over the longest old one that has its length; further old ones refer
    to that place. Symbol versions named as the old library take the new name.

    Args:
        data: the file.
        names: old name → new name. One old name of each new one must be as long as it is.

    Raises:
        TargetError: no such file, or an old name is not needed by it.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise TargetError("TVM's CUDA runtime is no 64-bit little-endian ELF file")
    out = bytearray(data)
    sections = _sections(data)
    dynamic = next(s for s in sections if s["type"] == _DYNAMIC)
    strings = sections[dynamic["link"]]["offset"]

    def text(at: int) -> str:
        return data[strings + at : data.index(b"\0", strings + at)].decode()

    place: dict[str, int] = {}  # new name → offset of its string
    needed = {}
    for at in range(dynamic["offset"], dynamic["offset"] + dynamic["size"], 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == _NEEDED and text(value) in names:
            needed[text(value)] = at
            new = names[text(value)]
            if len(new) == len(text(value)):
                place[new] = value
    for old, new in names.items():
        if old not in needed or new not in place:
            raise TargetError(f"TVM's CUDA runtime does not need {old}: an unknown version of TVM")
        struct.pack_into("<Q", out, needed[old] + 8, place[new])
    for section in sections:
        if section["type"] == _VERSIONS:
            _rename_versions(out, data, section, text, names, place)
    for new, at in place.items():
        out[strings + at : strings + at + len(new)] = new.encode()
    return bytes(out)


def _rename_versions(out, data, section, text, names, place) -> None:
    """Entries of .gnu.version_r: file names, and versions with their hashes."""
    at = section["offset"]
    while True:
        _, count, file, first, following = struct.unpack_from("<HHIII", data, at)
        if text(file) in names:
            struct.pack_into("<I", out, at + 4, place[names[text(file)]])
            entry = at + first
            for _ in range(count):
                _, flags, other, name, step = struct.unpack_from("<IHHII", data, entry)
                if text(name) in names:
                    new = names[text(name)]
                    struct.pack_into("<IHHI", out, entry, _elf_hash(new), flags, other, place[new])
                entry += step
        if not following:
            return
        at += following


def _elf_hash(name: str) -> int:
    """The hash of the System V ABI."""
    h = 0
    for byte in name.encode():
        h = (h << 4) + byte
        high = h & 0xF0000000
        h = (h ^ high >> 24) & ~high & 0xFFFFFFFF
    return h


def _sections(data: bytes) -> list[dict[str, int]]:
    start = struct.unpack_from("<Q", data, 40)[0]
    size, count = struct.unpack_from("<HH", data, 58)
    out = []
    for i in range(count):
        _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", data, start + i * size)
        out.append({"type": kind, "offset": offset, "size": length, "link": link})
    return out
