"""Settings of the spiking neuron: names, defaults, validation and equations, in one place.

The Relax op ``relax.snn.lif``, the PyTorch module and the ONNX function all take these
attributes, and all compute what is written here.

One step, with the membrane ``v`` of the step before and the input ``x``:

1. ``before_decay``: ``v = reset(v, r)``, where ``r = fires(v)`` is the spike of the step before.
2. update, by ``form``:
   ``multiply``: ``h = decay * v + gain * x`` (``gain == 1``: ``decay * v + x``);
   ``euler``: ``h = v + (x - (v - rest)) / tau``;
   ``euler_raw_input``: ``h = v - (v - rest) / tau + x``;
   ``rest`` is 0 with soft reset, else ``v_reset``.
3. ``after_decay``: ``h = reset(h, r)`` with the same ``r``.
4. spike: ``s = fires(h)``, that is ``h > v_threshold`` or ``h >= v_threshold``.
5. the membrane for the next step: ``reset(h, s)`` with ``after_fire``, otherwise ``h``.

``reset(a, s)``: ``hard``: ``v_reset`` where s, else ``a``; ``soft``: ``a - s * v_threshold``;
``none``: ``a``. With a decay operand, ``decay`` is that tensor; in the two Euler forms it is the
rate that stands for ``1 / tau`` and multiplies (SpikingJelly's PLIF).

Backward, the spike's derivative with respect to the membrane is ``surrogate(h - v_threshold)``
(and minus that with respect to the threshold); with ``detach_reset`` no gradient flows through
the ``s`` or ``r`` of a reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from ttsnn.errors import TTSNNError

__all__ = [
    "FIRES",
    "FORMS",
    "RESETS",
    "RESET_TIMINGS",
    "SURROGATES",
    "LifAttrs",
    "surrogate",
]

FORMS = ("multiply", "euler", "euler_raw_input")
RESETS = ("hard", "soft", "none")
RESET_TIMINGS = ("after_fire", "before_decay", "after_decay")
FIRES = (">", ">=")


def _rectangle(u: Any, w: float, m: Any) -> Any:
    return m.where(m.abs(u) < w, m.full_like(u, 0.5 / w), m.full_like(u, 0.0))


def _sigmoid(u: Any, w: float, m: Any) -> Any:
    # σ' is even; exp of a negative number cannot overflow
    e = m.exp(m.abs(u) * (-1.0 / w))
    return (1.0 / w) * e / ((1.0 + e) * (1.0 + e))


def _arctan(u: Any, w: float, m: Any) -> Any:
    a = u * (math.pi / (2.0 * w))
    return (0.5 / w) / (1.0 + a * a)


def _triangle(u: Any, w: float, m: Any) -> Any:
    y = (1.0 - m.abs(u) * (1.0 / w)) * (1.0 / w)
    return m.where(m.abs(u) < w, y, m.full_like(u, 0.0))


def _fast_sigmoid(u: Any, w: float, m: Any) -> Any:
    a = 1.0 + m.abs(u) * (1.0 / w)
    return 1.0 / (a * a)


def _erf(u: Any, w: float, m: Any) -> Any:
    a = u * (1.0 / w)
    return m.exp(-(a * a)) * (1.0 / (w * math.sqrt(math.pi)))


SURROGATES: dict[str, Callable[[Any, float, Any], Any]] = {
    "rectangle": _rectangle,
    "sigmoid": _sigmoid,
    "arctan": _arctan,
    "triangle": _triangle,
    "fast_sigmoid": _fast_sigmoid,
    "erf": _erf,
}
"""Surrogate derivatives by name; call them through :func:`surrogate`."""


def surrogate(name: str, u: Any, width: float, m: Any) -> Any:
    """Derivative that stands for that of the step function in the backward pass.

    With ``w`` the width and σ the logistic function:

    ============  =====================================  =====================================
    rectangle     ``1 / (2 w)`` where ``|u| < w``        TT-SNN, STBP
    sigmoid       ``σ(u/w) (1 - σ(u/w)) / w``            SpikingJelly's Sigmoid, α = 1/w
    arctan        ``1 / (2 w) / (1 + (π u / (2 w))²)``   SpikingJelly's and snnTorch's ATan
    triangle      ``max(0, 1 - |u| / w) / w``            SpikingJelly's PiecewiseQuadratic
    fast_sigmoid  ``1 / (1 + |u| / w)²``                 snnTorch's, slope = 1/w; SuperSpike
    erf           ``exp(-(u/w)²) / (w √π)``              SpikingJelly's Erf, α = 1/w
    ============  =====================================  =====================================

    All but ``fast_sigmoid`` integrate to 1 over u; ``fast_sigmoid`` has its peak at 1.

    Args:
        name: one of :data:`SURROGATES`.
        u: membrane minus threshold.
        width: ``w`` > 0.
        m: functions ``exp``, ``abs``, ``where(cond, a, b)`` and ``full_like(u, value)`` for the
            type of ``u``: ``numpy`` and ``torch`` both fit.

    Returns:
        A value like ``u``.
    """
    try:
        fn = SURROGATES[name]
    except KeyError:
        raise TTSNNError(
            f"unknown surrogate {name!r}; use one of {', '.join(SURROGATES)}"
        ) from None
    return fn(u, width, m)


@dataclass(frozen=True)
class LifAttrs:
    """Attributes of ``relax.snn.lif``; the module's docstring has the equations.

    The defaults are TT-SNN's neuron.

    Attributes:
        decay: factor of the membrane (form ``multiply``).
        gain: factor of the input (form ``multiply``).
        tau: time constant in steps (the Euler forms).
        v_threshold: firing threshold.
        v_reset: membrane after a hard reset, and the resting value of the Euler forms.
        reset: ``hard``, ``soft`` or ``none``.
        fire: ``>`` or ``>=``.
        reset_timing: ``after_fire``; ``before_decay`` (snnTorch's "zero") or ``after_decay``
            (snnTorch's "subtract"), which reset in the next step.
        form: order of the arithmetic, kept for bit equality with the source library.
        detach_reset: no gradient through the spike that resets.
        surrogate: name of the spike's derivative, see :func:`surrogate`.
        surrogate_width: its width.
        decay_operand: a tensor operand replaces ``decay`` (or 1/tau).
        threshold_operand: a tensor operand replaces ``v_threshold``.

    Raises:
        TTSNNError: for a value out of its range.
    """

    decay: float = 0.25
    gain: float = 1.0
    tau: float = 2.0
    v_threshold: float = 0.5
    v_reset: float = 0.0
    reset: str = "hard"
    fire: str = ">"
    reset_timing: str = "after_fire"
    form: str = "multiply"
    detach_reset: bool = True
    surrogate: str = "rectangle"
    surrogate_width: float = 0.5
    decay_operand: bool = False
    threshold_operand: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "float":
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if not number or not math.isfinite(value):
                    raise TTSNNError(f"LIF: {f.name} must be a finite number, got {value!r}")
                object.__setattr__(self, f.name, float(value))
            elif f.type == "bool":
                if value not in (0, 1):
                    raise TTSNNError(f"LIF: {f.name} must be true or false, got {value!r}")
                object.__setattr__(self, f.name, bool(value))
        for name, allowed in (
            ("reset", RESETS),
            ("fire", FIRES),
            ("reset_timing", RESET_TIMINGS),
            ("form", FORMS),
            ("surrogate", tuple(SURROGATES)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise TTSNNError(
                    f"LIF: unknown {name} {value!r}; use one of {', '.join(map(repr, allowed))}"
                )
        if self.form != "multiply" and self.tau <= 0:
            raise TTSNNError(f"LIF: tau must be positive in form {self.form!r}, got {self.tau}")
        if self.surrogate_width <= 0:
            raise TTSNNError(f"LIF: surrogate_width must be positive, got {self.surrogate_width}")

    @property
    def rest(self) -> float:
        """Value towards which the membrane leaks in the Euler forms."""
        return 0.0 if self.reset == "soft" else self.v_reset

    def to_dict(self) -> dict[str, float | str | bool]:
        """All attributes by name, for the op's attributes or a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, attrs: Any) -> LifAttrs:
        """Inverse of :meth:`to_dict`; refuses unknown names. Takes any mapping with ``keys``."""
        names = {f.name for f in fields(cls)}
        unknown = [str(k) for k in attrs.keys() if str(k) not in names]  # noqa: SIM118
        if unknown:
            raise TTSNNError(
                f"LIF: unknown attribute {', '.join(unknown)}; there are {', '.join(sorted(names))}"
            )
        return cls(**{str(k): attrs[k] for k in attrs.keys()})  # noqa: SIM118
