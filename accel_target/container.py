"""Programs as bytes.

Layout, little endian: magic ``TTSNNACC``; version of the instruction set (u32); fingerprint of the
architecture (16 characters); number of instructions (u32); number of segments (u32); for each
segment its name (8 characters), offset (u64), length (u64) and CRC-32 (u32); CRC-32 of all before
(u32); the segments. Tables are records, ``meta`` is JSON. No pickle.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict

import numpy as np

from ttsnn.accel_target import isa
from ttsnn.accel_target.events import PHASES, Tag, Unit
from ttsnn.accel_target.program import DramTensor, Program
from ttsnn.errors import ArtifactError

__all__ = ["MAGIC", "pack", "unpack"]

MAGIC = b"TTSNNACC"
_HEADER = struct.Struct("<8sI16sII")
_SEGMENT = struct.Struct("<8sQQI")
_CRC = struct.Struct("<I")
_TABLES = {
    "instr": ("instructions", isa.INSTRUCTION),
    "operand": ("descriptors", isa.DESCRIPTOR),
    "geometry": ("geometry", isa.GEOMETRY),
    "taps": ("taps", isa.TAP),
    "scalars": ("scalars", np.dtype("<f8")),
}
_MAX_SEGMENTS = 64


def pack(program: Program) -> bytes:
    """A program as bytes."""
    segments = {name: getattr(program, attr).tobytes() for name, (attr, _) in _TABLES.items()}
    meta = {
        "arch": program.arch,
        "tags": [asdict(t) for t in program.tags],
        "units": [asdict(u) for u in program.units],
        "tensors": [t.to_json() for t in program.tensors],
        "info": program.info,
    }
    segments["meta"] = json.dumps(meta, separators=(",", ":"), sort_keys=True).encode()
    start = _HEADER.size + _SEGMENT.size * len(segments) + _CRC.size
    head = _HEADER.pack(
        MAGIC, isa.VERSION, program.fingerprint.encode(), len(program), len(segments)
    )
    for name, data in segments.items():
        head += _SEGMENT.pack(name.encode(), start, len(data), zlib.crc32(data))
        start += len(data)
    return head + _CRC.pack(zlib.crc32(head)) + b"".join(segments.values())


def unpack(data: bytes) -> Program:
    """Inverse of :func:`pack`.

    Raises:
        ArtifactError: no program, damaged, or of another version of the instruction set.
    """
    segments, fingerprint, count = _segments(bytes(data))
    try:
        tables = {}
        for name, (attr, dtype) in _TABLES.items():
            tables[attr] = np.frombuffer(segments[name], dtype).copy()
        tables["scalars"] = tables["scalars"].reshape(-1, 8)
        meta = json.loads(segments["meta"])
        tags = tuple(Tag(**t) for t in meta["tags"])
        if any(t.phase not in PHASES for t in tags):
            raise ValueError("unknown phase")
        program = Program(
            arch=str(meta["arch"]),
            fingerprint=fingerprint,
            tags=tags,
            units=tuple(Unit(**u) for u in meta["units"]),
            tensors=tuple(DramTensor.from_json(t) for t in meta["tensors"]),
            info=dict(meta["info"]),
            **tables,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"accelerator program: a segment makes no sense ({error}); compile the network again"
        ) from error
    if len(program) != count:
        raise ArtifactError(
            f"accelerator program: {len(program)} instructions where the header says {count}; "
            "compile the network again"
        )
    return program


def _segments(data: bytes) -> tuple[dict[str, bytes], str, int]:
    def bad(what: str) -> ArtifactError:
        return ArtifactError(f"accelerator program: {what}; compile the network again")

    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise bad("not a program (the first bytes are not TTSNNACC)")
    _, version, fingerprint, count, segments = _HEADER.unpack_from(data)
    if version != isa.VERSION:
        raise bad(f"instruction set {version}, this ttsnn executes {isa.VERSION}")
    end = _HEADER.size + _SEGMENT.size * segments
    if segments > _MAX_SEGMENTS or len(data) < end + _CRC.size:
        raise bad("truncated in the header")
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise bad("the header is damaged (CRC differs)")
    out = {}
    for i in range(segments):
        name, offset, length, crc = _SEGMENT.unpack_from(data, _HEADER.size + i * _SEGMENT.size)
        text = name.rstrip(b"\0").decode("ascii", "replace")
        content = data[offset : offset + length]
        if len(content) != length:
            raise bad(f"truncated in segment {text!r}")
        if zlib.crc32(content) != crc:
            raise bad(f"segment {text!r} is damaged (CRC differs)")
        out[text] = content
    return out, fingerprint.decode("ascii", "replace"), count
