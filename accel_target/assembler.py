"""Programs as text, and back: ``assemble(disassemble(p))`` is p, bit for bit.

::

    .program {"arch": "sata", "fingerprint": "…", "version": 1}
    .info {…}
    .unit {"name": "load", …}              one line a row of a table, in order
    .tag {…}
    .tensor {…}
    .taps 0,-1 0,0 0,1
    .geometry 1 1 0 3 32 32 32 32
    .scalars 0.25 0.5 0 0 0 0 0 0
    .operand memory=2 format=0 step=1 address=64 size=[4,6,32,64] f=0:4 h=0:4 w=0:32 c=0:64
    LOAD load pop=compute.a push=compute.a tag=3 dst=%0 src0=%1
    GEMM compute.a pop=load push=load tag=3 dst=%2 src0=%0 src1=%3 attr=0 flags=BINARY|ACC

Fields that are zero (for operands: none) are left out; ``#`` starts a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from ttsnn.accel_target import isa
from ttsnn.accel_target.events import Tag, Unit
from ttsnn.accel_target.isa import NONE, Flag, Op, Reduce, Vec
from ttsnn.accel_target.program import DramTensor, Program, records
from ttsnn.errors import ArtifactError

__all__ = ["assemble", "disassemble"]

_OPERANDS = ("dst", "dst1", "src0", "src1", "src2")
_BOX = ("f", "h", "w", "c")
_KINDS: dict[int, type[Vec] | type[Reduce]] = {Op.VEC: Vec, Op.RED: Reduce}


def disassemble(program: Program) -> str:
    """A program as text."""
    return "\n".join(_lines(program)) + "\n"


def _lines(p: Program) -> Iterator[str]:
    head = {"arch": p.arch, "fingerprint": p.fingerprint, "version": isa.VERSION}
    yield f".program {json.dumps(head)}"
    yield f".info {json.dumps(p.info, sort_keys=True)}"
    for word, rows in (("unit", map(asdict, p.units)), ("tag", map(asdict, p.tags))):
        yield from (f".{word} {json.dumps(row)}" for row in rows)
    yield from (f".tensor {json.dumps(t.to_json())}" for t in p.tensors)
    if len(p.taps):
        yield ".taps " + " ".join(f"{y},{x}" for y, x in p.taps.tolist())
    for row in p.geometry.tolist():
        yield ".geometry " + " ".join(map(str, row))
    for row in p.scalars.tolist():
        yield ".scalars " + " ".join(map(repr, row))
    for row in p.descriptors.tolist():
        d = dict(zip(isa.DESCRIPTOR.names or (), row))
        size = ",".join(str(d[k]) for k in ("frames", "rows", "width", "channels"))
        box = " ".join(f"{k}={d[k + '0']}:{d[k]}" for k in _BOX)
        plain = " ".join(f"{k}={d[k]}" for k in ("memory", "format", "step", "address"))
        yield f".operand {plain} size=[{size}] {box}"
    names = [u.name for u in p.units]
    for row in p.instructions.tolist():
        yield _instruction(dict(zip(isa.INSTRUCTION.names or (), row)), names)


def _instruction(i: dict[str, int], units: Sequence[str]) -> str:
    words = [_name(Op, i["op"]), _unit(i["unit"], units)]
    for key in ("pop", "push"):
        if i[key]:
            given = [b for b in range(isa.MAX_UNITS) if i[key] >> b & 1]
            words.append(f"{key}=" + ",".join(_unit(b, units) for b in given))
    if i["tag"]:
        words.append(f"tag={i['tag']}")
    words += [f"{k}=%{i[k]}" for k in _OPERANDS if i[k] != NONE]
    if i["attr"]:
        words.append(f"attr={i['attr']}")
    if i["flags"]:
        words.append("flags=" + _flags(i["op"], i["flags"]))
    return " ".join(words)


def _name(kind: type, value: int) -> str:
    try:
        return kind(value).name
    except ValueError:
        return str(value)


def _unit(number: int, units: Sequence[str]) -> str:
    return units[number] if number < len(units) else str(number)


def _flags(op: int, flags: int) -> str:
    kind, rest, words = flags & 0xFF, flags & ~0xFF, []
    if op in _KINDS:
        words.append(_name(_KINDS[op], kind))
    elif kind:
        words.append(str(kind))
    for flag in Flag:
        if rest & flag:
            words.append(str(flag.name))
            rest &= ~int(flag)
    return "|".join([*words, *([str(rest)] if rest else [])])


def assemble(text: str) -> Program:
    """The program of a text.

    Raises:
        ArtifactError: naming the line that makes no sense.
    """
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        try:
            reader.line(line)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise ArtifactError(f"assembler: line {number}: {line[:80]!r}: {error}") from error
    return reader.program()


class _Reader:
    def __init__(self) -> None:
        self.head: dict = {}
        self.info: dict = {}
        self.units: list[Unit] = []
        self.tags: list[Tag] = []
        self.tensors: list[DramTensor] = []
        self.taps: list[tuple] = []
        self.geometry: list[tuple] = []
        self.scalars: list[list[float]] = []
        self.operands: list[tuple] = []
        self.instructions: list[tuple] = []
        self.names: dict[str, int] = {}

    def line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not word.startswith("."):
            self.instructions.append(self._instruction(word, rest.split()))
            return
        match word[1:]:
            case "program":
                self.head = json.loads(rest)
            case "info":
                self.info = json.loads(rest)
            case "unit":
                self.names[json.loads(rest)["name"]] = len(self.units)
                self.units.append(Unit(**json.loads(rest)))
            case "tag":
                self.tags.append(Tag(**json.loads(rest)))
            case "tensor":
                self.tensors.append(DramTensor.from_json(json.loads(rest)))
            case "taps":
                self.taps += [tuple(map(int, t.split(","))) for t in rest.split()]
            case "geometry":
                self.geometry.append(_exactly(8, tuple(map(int, rest.split()))))
            case "scalars":
                self.scalars.append(list(_exactly(8, tuple(map(float, rest.split())))))
            case "operand":
                self.operands.append(_operand(rest))
            case _:
                raise ValueError(f"unknown directive {word}")

    def _instruction(self, op: str, words: list[str]) -> tuple:
        field = {"op": _number(Op, op), "unit": self._unit(words[0])}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            if not equals or key not in (isa.INSTRUCTION.names or ()) or key in field:
                raise ValueError(f"cannot read {word!r}")
            if key in ("pop", "push"):
                field[key] = sum(1 << self._unit(n) for n in value.split(","))
            elif key in _OPERANDS:
                field[key] = int(value.removeprefix("%"))
            elif key == "flags":
                field[key] = _parse_flags(field["op"], value)
            else:
                field[key] = int(value)
        names = isa.INSTRUCTION.names or ()
        return tuple(field.get(n, NONE if n in _OPERANDS else 0) for n in names)

    def _unit(self, text: str) -> int:
        return self.names[text] if text in self.names else int(text)

    def program(self) -> Program:
        if "arch" not in self.head:
            raise ArtifactError("assembler: there is no .program line")
        if self.head.get("version") != isa.VERSION:
            raise ArtifactError(
                f"assembler: instruction set {self.head.get('version')}, this ttsnn has "
                f"{isa.VERSION}"
            )
        try:
            return Program(
                arch=self.head["arch"],
                fingerprint=self.head["fingerprint"],
                instructions=records(self.instructions, isa.INSTRUCTION),
                descriptors=records(self.operands, isa.DESCRIPTOR),
                geometry=records(self.geometry, isa.GEOMETRY),
                taps=records(self.taps, isa.TAP),
                scalars=np.array(self.scalars, "<f8").reshape(-1, 8),
                tags=tuple(self.tags),
                units=tuple(self.units),
                tensors=tuple(self.tensors),
                info=self.info,
            )
        except (KeyError, OverflowError, ValueError) as error:
            raise ArtifactError(f"assembler: a value does not fit its field: {error}") from error


def _exactly(count: int, row: tuple) -> tuple:
    if len(row) != count:
        raise ValueError(f"{len(row)} values, {count} are wanted")
    return row


_OPERAND = re.compile(
    r"memory=(\d+) format=(\d+) step=(\d+) address=(\d+) size=\[(\d+),(\d+),(\d+),(\d+)\] "
    r"f=(\d+):(\d+) h=(\d+):(\d+) w=(\d+):(\d+) c=(\d+):(\d+)"
)


def _operand(text: str) -> tuple:
    match = _OPERAND.fullmatch(text.strip())
    if match is None:
        raise ValueError("no operand")
    return tuple(map(int, match.groups()))


def _number(kind: type, text: str) -> int:
    return int(text) if text.isdigit() else int(kind[text])  # type: ignore[index]


def _parse_flags(op: int, text: str) -> int:
    flags = 0
    for i, word in enumerate(text.split("|")):
        if i == 0 and op in _KINDS:
            flags |= _number(_KINDS[op], word)
        else:
            flags |= _number(Flag, word)
    return flags
