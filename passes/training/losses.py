"""Losses as Relax expressions: cross-entropy, and its temporal form (TET)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tvm import relax, tirx

from ttsnn.errors import PassError
from ttsnn.ops.types import shape_text

__all__ = ["CrossEntropy", "Loss", "TETLoss"]


@dataclass(frozen=True)
class CrossEntropy:
    """``mean over n of -Σ_c q[n, c] · log softmax(logits)[n, c]``, as ``F.cross_entropy``.

    q is 1 at the label and 0 elsewhere; with label smoothing ε it is
    ``(1 - ε) · one_hot + ε / classes``. A label outside 0 … classes - 1 counts as none (its row
    adds nothing, or the smoothing's part alone): check labels before the step.

    Args:
        label_smoothing: ε, 0 ≤ ε ≤ 1.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise PassError(f"label_smoothing must be in 0 … 1, got {self.label_smoothing}")

    def emit(self, bb: relax.BlockBuilder, logits: relax.Var, labels: relax.Var) -> relax.Var:
        """The loss, a scalar.

        Args:
            bb: where to emit.
            logits: [N, classes].
            labels: [N], int64.
        """
        if logits.ty.ndim != 2:
            raise PassError(
                f"CrossEntropy: logits must be [N, classes], got {shape_text(logits.ty)}; use "
                "TETLoss for [T, N, classes]"
            )
        return _cross_entropy(bb, logits, labels, self.label_smoothing)

    def batch(self, logits: relax.Var) -> Any:
        """The number of labels that belong to the logits."""
        return logits.ty.shape.values[0]

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": "cross_entropy", **asdict(self)}


@dataclass(frozen=True)
class TETLoss:
    """Temporal efficient training (Deng et al., ICLR 2022): every timestep is trained to be right.

    ``(1 - λ) · mean over t of cross_entropy(logits[t], labels) + λ · mean (logits - target)²``.
    The model must return logits of every timestep, [T, N, classes], instead of their mean.

    Args:
        lamb: λ, 0 ≤ λ ≤ 1.
        target: what the second term pulls all logits towards (the published code's threshold, 1).
        label_smoothing: as in :class:`CrossEntropy`.
    """

    lamb: float = 0.05
    target: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lamb", "label_smoothing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise PassError(f"TETLoss: {name} must be in 0 … 1, got {getattr(self, name)}")

    def emit(self, bb: relax.BlockBuilder, logits: relax.Var, labels: relax.Var) -> relax.Var:
        """The loss, a scalar; logits [T, N, classes], labels [N] int64."""
        if logits.ty.ndim != 3:
            raise PassError(
                f"TETLoss: logits must be [T, N, classes], got {shape_text(logits.ty)}; return "
                "the logits of every timestep from the model"
            )
        steps, batch, classes = logits.ty.shape.values
        dtype = str(logits.ty.dtype)
        # the mean over t of means over n is the mean over all rows
        rows = bb.emit(relax.op.reshape(logits, [steps * batch, classes]))
        repeated = bb.emit(relax.op.broadcast_to(labels, [steps, batch]))
        repeated = bb.emit(relax.op.reshape(repeated, [steps * batch]))
        loss = _cross_entropy(bb, rows, repeated, self.label_smoothing)
        if self.lamb == 0.0:
            return loss
        distance = bb.emit(relax.op.subtract(logits, relax.const(self.target, dtype)))
        square = bb.emit(relax.op.mean(bb.emit(relax.op.multiply(distance, distance))))
        loss = bb.emit(relax.op.multiply(loss, relax.const(1.0 - self.lamb, dtype)))
        square = bb.emit(relax.op.multiply(square, relax.const(self.lamb, dtype)))
        return bb.emit(relax.op.add(loss, square))

    def batch(self, logits: relax.Var) -> Any:
        """The number of labels that belong to the logits."""
        return logits.ty.shape.values[1]

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": "tet", **asdict(self)}


Loss = CrossEntropy | TETLoss


def _cross_entropy(
    bb: relax.BlockBuilder, logits: relax.Var, labels: relax.Var, smoothing: float
) -> relax.Var:
    rows, classes = (int(s) for s in logits.ty.shape.values)
    dtype = str(logits.ty.dtype)
    low = smoothing / classes
    on, off = (relax.prim_value(tirx.const(v, dtype)) for v in (1.0 - smoothing + low, low))
    wanted = bb.emit(relax.op.one_hot(labels, on, off, classes, -1))
    logp = bb.emit(relax.op.nn.log_softmax(logits, -1))
    total = bb.emit(relax.op.sum(bb.emit(relax.op.multiply(logp, wanted))))
    return bb.emit(relax.op.multiply(total, relax.const(-1.0 / rows, dtype)))
