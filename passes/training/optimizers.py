"""Optimizers as Relax expressions, in PyTorch's order of arithmetic.

The learning rate and the number of the step are tensors, so that schedules recompile nothing.
Their scalars are formed in float64 and then rounded to the parameter's dtype, as PyTorch does
with its Python floats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from tvm import relax

from ttsnn.errors import PassError

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]


def _number(dtype: str, value: float) -> relax.Expr:
    return relax.const(value, dtype)


def _check(name: str, value: float, below: float | None = None) -> None:
    if not value >= 0.0 or (below is not None and value >= below):
        limit = "at least 0" if below is None else f"at least 0 and below {below:g}"
        raise PassError(f"optimizer: {name} must be {limit}, got {value}")


@dataclass(frozen=True)
class SGD:
    """``torch.optim.SGD`` with dampening 0.

    ``g += weight_decay · p``; with momentum ``b = momentum · b + g`` and then ``g = b``, or
    ``g += momentum · b`` with ``nesterov``; ``p -= lr · g``. ``momentum_buffer`` starts at zero,
    which gives PyTorch's first step.

    Args:
        momentum: 0 for none.
        weight_decay: L2 penalty.
        nesterov: needs momentum.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    needs_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("momentum", self.momentum)
        _check("weight_decay", self.weight_decay)
        if self.nesterov and self.momentum == 0.0:
            raise PassError("SGD: nesterov needs a momentum above 0")

    @property
    def state(self) -> tuple[str, ...]:
        """Kinds of state of one parameter, each of its shape, zero at first."""
        return ("momentum_buffer",) if self.momentum else ()

    def prepare(
        self, bb: relax.BlockBuilder, lr: relax.Expr, step: relax.Expr | None, dtype: str
    ) -> dict[str, relax.Expr]:
        """Scalars that all parameters of a dtype share; lr float64 [], step int64 []."""
        minus = bb.emit(relax.op.negative(lr))
        return {"minus_lr": bb.emit(relax.op.astype(minus, dtype))}

    def emit(
        self,
        bb: relax.BlockBuilder,
        param: relax.Expr,
        grad: relax.Expr,
        state: dict[str, relax.Expr],
        scalars: dict[str, relax.Expr],
    ) -> tuple[relax.Expr, dict[str, relax.Expr]]:
        """New parameter and new state."""
        dtype = str(param.ty.dtype)
        new: dict[str, relax.Expr] = {}
        if self.weight_decay:
            grad = _add_scaled(bb, grad, param, _number(dtype, self.weight_decay))
        if self.momentum:
            factor = _number(dtype, self.momentum)
            buf = bb.emit(relax.op.multiply(state["momentum_buffer"], factor))
            buf = bb.emit(relax.op.add(buf, grad))
            new["momentum_buffer"] = buf
            grad = _add_scaled(bb, grad, buf, factor) if self.nesterov else buf
        return _add_scaled(bb, param, grad, scalars["minus_lr"]), new

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": "sgd", **asdict(self)}


@dataclass(frozen=True)
class Adam:
    """``torch.optim.Adam``, without amsgrad.

    ``g += weight_decay · p``; ``m += (1 - β1)(g - m)``; ``v = β2 v + (1 - β2) g²``;
    ``p -= lr / (1 - β1^step) · m / (√v / √(1 - β2^step) + eps)``.

    Args:
        betas: (β1, β2), each at least 0 and below 1.
        eps: added to the denominator.
        weight_decay: L2 penalty.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    needs_step: ClassVar[bool] = True
    decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for i, beta in enumerate(self.betas):
            _check(f"betas[{i}]", beta, 1.0)
        _check("eps", self.eps)
        _check("weight_decay", self.weight_decay)

    @property
    def state(self) -> tuple[str, ...]:
        """Kinds of state of one parameter, each of its shape, zero at first."""
        return ("exp_avg", "exp_avg_sq")

    def prepare(
        self, bb: relax.BlockBuilder, lr: relax.Expr, step: relax.Expr | None, dtype: str
    ) -> dict[str, relax.Expr]:
        """Scalars that all parameters of a dtype share; lr float64 [], step int64 []."""
        wide = "float64"
        count = bb.emit(relax.op.astype(step, wide))
        one = relax.const(1.0, wide)

        def correction(beta: float) -> relax.Expr:
            power = bb.emit(relax.op.power(relax.const(beta, wide), count))
            return bb.emit(relax.op.subtract(one, power))

        size = bb.emit(relax.op.divide(lr, correction(self.betas[0])))
        size = bb.emit(relax.op.negative(size))
        root = bb.emit(relax.op.sqrt(correction(self.betas[1])))
        out = {"minus_size": size, "root": root}
        if self.decoupled:
            decay = bb.emit(relax.op.multiply(lr, relax.const(self.weight_decay, wide)))
            out["keep"] = bb.emit(relax.op.subtract(one, decay))
        return {k: bb.emit(relax.op.astype(v, dtype)) for k, v in out.items()}

    def emit(
        self,
        bb: relax.BlockBuilder,
        param: relax.Expr,
        grad: relax.Expr,
        state: dict[str, relax.Expr],
        scalars: dict[str, relax.Expr],
    ) -> tuple[relax.Expr, dict[str, relax.Expr]]:
        """New parameter and new state."""
        dtype = str(param.ty.dtype)
        beta1, beta2 = self.betas
        if self.weight_decay and self.decoupled:
            param = bb.emit(relax.op.multiply(param, scalars["keep"]))
        elif self.weight_decay:
            grad = _add_scaled(bb, grad, param, _number(dtype, self.weight_decay))
        difference = bb.emit(relax.op.subtract(grad, state["exp_avg"]))
        if 1 - beta1 < 0.5:  # torch.lerp's two forms
            avg = _add_scaled(bb, state["exp_avg"], difference, _number(dtype, 1 - beta1))
        else:
            avg = _add_scaled(bb, grad, difference, _number(dtype, -(1 - (1 - beta1))))
        kept = bb.emit(relax.op.multiply(state["exp_avg_sq"], _number(dtype, beta2)))
        square = bb.emit(relax.op.multiply(grad, _number(dtype, 1 - beta2)))
        square = bb.emit(relax.op.add(kept, bb.emit(relax.op.multiply(square, grad))))
        root = bb.emit(relax.op.divide(bb.emit(relax.op.sqrt(square)), scalars["root"]))
        root = bb.emit(relax.op.add(root, _number(dtype, self.eps)))
        change = bb.emit(relax.op.multiply(scalars["minus_size"], avg))
        change = bb.emit(relax.op.divide(change, root))
        new_param = bb.emit(relax.op.add(param, change))
        return new_param, {"exp_avg": avg, "exp_avg_sq": square}

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True)
class AdamW(Adam):
    """``torch.optim.AdamW``: as :class:`Adam`, but ``p *= 1 - lr · weight_decay`` first."""

    weight_decay: float = 1e-2

    decoupled: ClassVar[bool] = True


Optimizer = SGD | Adam | AdamW


def _add_scaled(
    bb: relax.BlockBuilder, a: relax.Expr, b: relax.Expr, factor: relax.Expr
) -> relax.Expr:
    """``a + factor · b``."""
    return bb.emit(relax.op.add(a, bb.emit(relax.op.multiply(b, factor))))
