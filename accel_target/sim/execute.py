"""The functional simulator: executes a program's instructions in order, on values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.isa import NONE, Flag, Format, Op, Pool, Reduce, Vec
from ttsnn.accel_target.program import Program, format_bits
from ttsnn.accel_target.sim.convolution import conv, conv_back, pool, pool_back, weight_grad
from ttsnn.accel_target.sim.memory import Box, Memory, Rounding
from ttsnn.accel_target.sim.neuron import decode_lif, lif, lif_back
from ttsnn.errors import TargetError
from ttsnn.tt.blas import one_blas_thread

__all__ = ["Execution", "execute"]

_VEC: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    Vec.ADD: np.add,
    Vec.SUB: np.subtract,
    Vec.MUL: np.multiply,
    Vec.DIV: np.divide,
    Vec.MAX: np.maximum,
    Vec.MIN: np.minimum,
    Vec.EQUAL: np.equal,
    Vec.RSUB: lambda a, b: b - a,
    Vec.RDIV: lambda a, b: b / a,
    Vec.POW: np.power,
}
_VEC1: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    Vec.COPY: lambda a: a,
    Vec.NEG: np.negative,
    Vec.EXP: np.exp,
    Vec.LOG: np.log,
    Vec.SQRT: np.sqrt,
    Vec.ABS: np.abs,
}


class Execution:
    """Runs instructions one by one.

    Attributes:
        memory: contents.
        active: [instructions], operands that were not zero, for one output channel (GEMM,
            WGRAD); -1 for the others.
        spikes: tag → (ones, elements) of what LIF wrote.
    """

    def __init__(
        self,
        program: Program,
        arch: Architecture,
        dtype: str = "float32",
        rounding: Rounding | None = None,
    ) -> None:
        self.program = program
        self.boxes = [Box.of(r) for r in program.descriptors.tolist()]
        self.geometry = [
            (sh, sw, tuple(map(tuple, program.taps[a : a + n].tolist())), *sizes)
            for sh, sw, a, n, *sizes in program.geometry.tolist()
        ]
        self.memory = Memory(program.tensors, format_bits(arch), dtype, rounding)
        self.active = np.full(len(program), -1, np.int64)
        self.spikes: dict[int, tuple[int, int]] = {}
        self._do = {
            Op.END: lambda *_: None,
            Op.SYNC: lambda *_: None,
            Op.LOAD: self._move,
            Op.STORE: self._move,
            Op.XFER: self._move,
            Op.GEMM: self._gemm,
            Op.WGRAD: self._wgrad,
            Op.VEC: self._vec,
            Op.RED: self._red,
            Op.LIF: self._lif,
            Op.LIFB: self._lifb,
            Op.BN_STAT: self._bn_stat,
            Op.BN_RUN: self._bn_run,
            Op.BN_APPLY: self._bn_apply,
            Op.BN_SUMS: self._bn_sums,
            Op.BN_GRAD: self._bn_grad,
            Op.POOL: self._pool,
            Op.POOLB: self._poolb,
        }

    def run(self) -> None:
        """Execute everything.

        Raises:
            TargetError: naming the instruction that cannot be executed.
        """
        with np.errstate(all="ignore"):
            for i, row in enumerate(self.program.instructions.tolist()):
                try:
                    self._do[row[0]](i, row)
                except (TargetError, IndexError, ValueError, KeyError, TypeError) as error:
                    raise TargetError(f"instruction {i} ({_op_name(row[0])}): {error}") from error

    def _box(self, row: list, k: int) -> Box:
        if row[k] == NONE:
            raise TargetError("an operand is missing")
        return self.boxes[row[k]]

    def _get(self, row: list, k: int) -> np.ndarray:
        return self.memory.read(self._box(row, k))

    def _put(self, row: list, value: np.ndarray, k: int = 5) -> None:
        box = self._box(row, k)
        value = np.broadcast_to(value, (box.f, box.h, box.w, box.c))
        self.memory.write(box, value, add=bool(row[11] & Flag.ACC))

    def _move(self, i: int, row: list) -> None:
        a, b = self._box(row, 5), self._box(row, 7)
        if (a.f, a.h, a.w, a.c) != (b.f, b.h, b.w, b.c):
            raise TargetError("source and destination differ in size")
        self._put(row, self.memory.read(b))

    def _gemm(self, i: int, row: list) -> None:
        x, w, g = self._get(row, 7), self._get(row, 8)[0], self.geometry[row[10]]
        dst, src = self._box(row, 5), self._box(row, 7)
        step = conv_back if row[11] & Flag.TRANSPOSE else conv
        y, self.active[i] = step(x, w, g, dst.h0, dst.h, src.h0)
        self._put(row, y * y.dtype.type(0.5) if row[11] & Flag.HALF else y)

    def _wgrad(self, i: int, row: list) -> None:
        x, dy, g = self._get(row, 7), self._get(row, 8), self.geometry[row[10]]
        dw, self.active[i] = weight_grad(x, dy, g, self._box(row, 8).h0, self._box(row, 7).h0)
        self._put(row, (dw * dw.dtype.type(0.5) if row[11] & Flag.HALF else dw)[None])

    def _vec(self, i: int, row: list) -> None:
        kind, x = row[11] & 0xFF, self._get(row, 7)
        if kind in _VEC1:
            self._put(row, _VEC1[kind](x))
        elif kind == Vec.INDEX:
            self._put(row, np.arange(self._box(row, 5).c, dtype=x.dtype))
        else:
            other = self.program.scalars[row[10], 0] if row[8] == NONE else self._get(row, 8)
            self._put(row, _VEC[kind](x, np.asarray(other, x.dtype)))

    def _red(self, i: int, row: list) -> None:
        x, dst = self._get(row, 7), self._box(row, 5)
        sizes = (dst.f, dst.h, dst.w, dst.c)
        axes = tuple(k for k in range(4) if sizes[k] == 1 and x.shape[k] != 1)
        kind = row[11] & 0xFF
        if kind == Reduce.MAX:
            self._put(row, x.max(axis=axes, keepdims=True))
        else:
            wide = x.astype(np.float64)
            wide = wide * wide if kind == Reduce.SUM_SQUARES else wide
            self._put(row, wide.sum(axis=axes, keepdims=True))

    def _lif(self, i: int, row: list) -> None:
        a = decode_lif(row[11] & 0xFF, self.program.scalars[row[10]])
        v0 = self._get(row, 8)[0] if row[11] & Flag.STATE else None
        spikes, slopes, last = lif(a, self._get(row, 7), v0)
        ones, count = self.spikes.get(row[4], (0, 0))
        self.spikes[row[4]] = (ones + int(spikes.sum()), count + spikes.size)
        self._put(row, spikes)
        if row[6] != NONE:
            self._put(row, last[None] if row[11] & Flag.STATE else slopes, 6)

    def _lifb(self, i: int, row: list) -> None:
        a = decode_lif(row[11] & 0xFF, self.program.scalars[row[10]])
        self._put(row, lif_back(a, self._get(row, 7), self._get(row, 8), self._get(row, 9)))

    def _bn_stat(self, i: int, row: list) -> None:
        total, squares = self._get(row, 7)[0]
        n, epsilon = self.program.scalars[row[10], :2]
        mean = total / n
        variance = np.maximum(squares / n - mean * mean, 0.0)
        self._put(row, np.stack([mean, 1.0 / np.sqrt(variance + epsilon)])[None])

    def _bn_run(self, i: int, row: list) -> None:
        total, squares = self._get(row, 7)[0]
        n, momentum = self.program.scalars[row[10], :2]
        mean = total / n
        new = mean if not row[11] & 0xFF else (squares - n * mean * mean) / (n - 1)
        self._put(row, momentum * new[None, None] + (1.0 - momentum) * self._get(row, 8))

    def _bn_apply(self, i: int, row: list) -> None:
        x = self._get(row, 7)
        mean, rstd, gamma, beta = self._get(row, 8)[0].astype(x.dtype)
        self._put(row, (x - mean) * rstd * gamma + beta)

    def _bn_sums(self, i: int, row: list) -> None:
        dy, x = self._get(row, 7).astype(np.float64), self._get(row, 8)
        mean, rstd = self._get(row, 9)[0, :2]
        hat = (x - mean) * rstd
        axes = (0, 1, 2)
        self._put(row, np.stack([dy.sum(axes), (dy * hat).sum(axes)])[None, :, None])

    def _bn_grad(self, i: int, row: list) -> None:
        dy, x = self._get(row, 7), self._get(row, 8)
        mean, rstd, gamma, db, dg = self._get(row, 9)[0].astype(dy.dtype)
        n = dy.dtype.type(self.program.scalars[row[10], 0])
        hat = (x - mean) * rstd
        self._put(row, gamma * rstd * (dy - db / n - hat * dg / n))

    def _pool(self, i: int, row: list) -> None:
        dst, src = self._box(row, 5), self._box(row, 7)
        kind = Pool(row[11] & 0xFF)
        x, g = self._get(row, 7), self.geometry[row[10]]
        self._put(row, pool(x, g, dst.h0, dst.h, src.h0, kind))

    def _poolb(self, i: int, row: list) -> None:
        dst, src = self._box(row, 5), self._box(row, 7)
        kind = Pool(row[11] & 0xFF)
        x = self._get(row, 8) if kind == Pool.MAX else None
        if x is not None and (self._box(row, 8).h0, self._box(row, 8).h) != (dst.h0, dst.h):
            raise TargetError("the pooled values and the gradient are not of the same rows")
        g = self.geometry[row[10]]
        self._put(row, pool_back(self._get(row, 7), x, g, dst.h0, dst.h, src.h0, kind))


def _op_name(op: int) -> str:
    try:
        return Op(op).name
    except ValueError:
        return f"operation {op}"


@one_blas_thread
def execute(
    program: Program,
    arch: Architecture,
    values: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    rounding: Rounding | None = None,
) -> tuple[dict[str, np.ndarray], Execution]:
    """Outputs of a program.

    Args:
        program: generated for ``arch``.
        arch: the machine.
        values: network's inputs, parameters and state, by name of the DRAM tensor.
        dtype: in which values are computed.
        rounding: what the machine's number formats do to values; None: nothing.

    Returns:
        Outputs by name, and the finished execution.

    Raises:
        TargetError: a value is missing or has the wrong shape; an instruction is impossible.
    """
    run = Execution(program, arch, dtype, rounding)
    for k, t in enumerate(program.tensors):
        if t.role != "input":
            continue
        if t.name not in values:
            raise TargetError(f"the program needs a value for {t.name!r}")
        value = np.asarray(values[t.name])
        if value.shape != t.host_shape:
            raise TargetError(f"{t.name!r} must be {t.host_shape}, got {value.shape}")
        device = t.to_device(value)
        run.memory.fill(k, device)
    run.run()
    outputs = {}
    for k, t in enumerate(program.tensors):
        if t.role == "output":
            if k not in run.memory.dram:
                raise TargetError(f"the program never writes its output {t.name!r}")
            outputs[t.name] = t.to_host(run.memory.dram[k])
    return outputs, run


assert Format.SPIKE == 0
