"""The spiking neuron as a module, with the settings that users of other libraries know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ttsnn.errors import ModelImportError
from ttsnn.lif_attrs import LifAttrs
from ttsnn.models.lif_op import lif_with

__all__ = ["LIF"]

# Widths at which the libraries' surrogates stand by default.
_WIDTHS = {
    "rectangle": 0.5,
    "sigmoid": 0.25,  # SpikingJelly, α = 4
    "arctan": 0.5,  # SpikingJelly and snnTorch, α = 2
    "triangle": 1.0,  # SpikingJelly, α = 1
    "fast_sigmoid": 0.04,  # snnTorch, slope = 25
    "erf": 0.5,  # SpikingJelly, α = 2
}
_SPIKINGJELLY = LifAttrs(
    form="euler",
    fire=">=",
    v_threshold=1.0,
    detach_reset=False,
    surrogate="sigmoid",
    surrogate_width=0.25,
)
_SNNTORCH = LifAttrs(v_threshold=1.0, surrogate="arctan", surrogate_width=0.5)
_MECHANISMS = {
    "subtract": {"reset": "soft", "reset_timing": "after_decay"},
    "zero": {"reset": "hard", "reset_timing": "before_decay"},
    "none": {"reset": "none"},
}
_UNSET: Any = object()


class LIF(nn.Module):
    """Leaky integrate-and-fire neuron over all timesteps, [T, N, …] → spikes [T, N, …].

    Three ways to say what the neuron does, which set the defaults of everything else:

    - ``LIF(decay=0.25)`` (or nothing): TT-SNN's neuron, threshold 0.5, hard reset to 0;
    - ``LIF(tau=2.0)``: SpikingJelly's LIFNode, with ``decay_input``, ``v_threshold`` 1.0,
      ``v_reset`` 0.0 (None: soft reset), ``detach_reset``, sigmoid surrogate;
    - ``LIF(beta=0.9)``: snnTorch's Leaky, with ``threshold`` 1.0 and ``reset_mechanism``
      ("subtract", "zero" or "none"), arctan surrogate. Beta is clamped to 0…1.

    Args:
        decay: factor of the membrane per step; a tensor must broadcast to [N, …].
        v_threshold: firing threshold, a number or such a tensor; alias ``threshold``.
        v_reset: membrane after a hard reset; None resets softly, by subtraction.
        tau: time constant in steps.
        decay_input: whether the input is divided by ``tau`` too.
        beta: alias of ``decay`` that chooses snnTorch's defaults.
        reset_mechanism: snnTorch's reset, which acts in the next step.
        detach_reset: no gradient through the spike that resets.
        surrogate: name of the spike's derivative, see :func:`ttsnn.lif_attrs.surrogate`.
        surrogate_width: its width; by default the one usual for that surrogate.
        learn_decay: make the decay a parameter (with ``tau``: ``1/tau`` = sigmoid of it).
        learn_threshold: make the threshold a parameter.
        return_state: return ``(spikes, v_last)`` instead of the spikes alone.
        attrs: any other setting of :class:`~ttsnn.lif_attrs.LifAttrs` by name.

    The module keeps no hidden state: every call starts from ``v0``, or from zero. To run in
    chunks of time, set ``return_state`` and hand the last membrane to the next call.

    Raises:
        TTSNNError: a setting is unknown or out of its range.
    """

    def __init__(
        self,
        decay: float | Tensor | None = None,
        v_threshold: float | Tensor | None = None,
        v_reset: float | None = _UNSET,
        *,
        tau: float | None = None,
        decay_input: bool = True,
        beta: float | Tensor | None = None,
        threshold: float | Tensor | None = None,
        reset_mechanism: str | None = None,
        detach_reset: bool | None = None,
        surrogate: str | None = None,
        surrogate_width: float | None = None,
        learn_decay: bool = False,
        learn_threshold: bool = False,
        return_state: bool = False,
        **attrs: Any,
    ) -> None:
        super().__init__()
        snntorch = beta is not None or reset_mechanism is not None
        if (tau is not None) + snntorch + (decay is not None) > 1:
            raise ModelImportError(
                "LIF: give one of decay, tau (SpikingJelly) and beta (snnTorch), not several"
            )
        if v_threshold is not None and threshold is not None:
            raise ModelImportError("LIF: v_threshold and threshold are the same; give one")
        base = LifAttrs()
        given: dict[str, Any] = {}
        if tau is not None:
            base = _SPIKINGJELLY
            given = {"tau": tau, "form": "euler" if decay_input else "euler_raw_input"}
        elif snntorch:
            base = _SNNTORCH
            mechanism = reset_mechanism or "subtract"
            if mechanism not in _MECHANISMS:
                raise ModelImportError(
                    f"LIF: unknown reset_mechanism {mechanism!r}; "
                    f"use one of {', '.join(_MECHANISMS)}"
                )
            given = dict(_MECHANISMS[mechanism])
        if v_reset is not _UNSET:
            given.update({"reset": "soft"} if v_reset is None else {"v_reset": v_reset})
        if detach_reset is not None:
            given["detach_reset"] = detach_reset
        if surrogate is not None:
            given["surrogate"] = surrogate
            given["surrogate_width"] = _WIDTHS.get(surrogate, 1.0)
        if surrogate_width is not None:
            given["surrogate_width"] = surrogate_width
        given.update(attrs)
        self.return_state = return_state
        self._squash = (
            "sigmoid" if tau is not None and learn_decay else "clamp" if snntorch else "none"
        )

        leak = decay if beta is None else beta
        if leak is None:
            leak = base.decay
        if tau is not None and self._squash == "sigmoid":
            if tau <= 1:
                raise ModelImportError(f"LIF: a tau that is learnt must be above 1, got {tau}")
            leak = torch.tensor(float(tau) - 1.0).log().neg()  # sigmoid of it is 1/tau
        elif self._squash == "clamp" and not isinstance(leak, Tensor) and not learn_decay:
            leak = min(max(float(leak), 0.0), 1.0)
        level = threshold if v_threshold is None else v_threshold
        if level is None:
            level = base.v_threshold
        known = LifAttrs.from_dict({**base.to_dict(), **given})
        self.attrs = replace(
            known,
            decay=known.decay if isinstance(leak, Tensor) or learn_decay else leak,
            v_threshold=known.v_threshold if isinstance(level, Tensor) else level,
            decay_operand=isinstance(leak, Tensor) or learn_decay,
            threshold_operand=isinstance(level, Tensor) or learn_threshold,
        )
        self._keep("decay", leak, self.attrs.decay_operand, learn_decay)
        self._keep("v_threshold", level, self.attrs.threshold_operand, learn_threshold)

    def _keep(self, name: str, value: float | Tensor, operand: bool, learn: bool) -> None:
        """Register a tensor setting as a parameter or a buffer; numbers live in ``attrs``."""
        if not operand:
            return
        tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
        if learn or isinstance(tensor, nn.Parameter):
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        else:
            self.register_buffer(name, tensor.detach().clone())

    @classmethod
    def from_attrs(
        cls,
        attrs: LifAttrs,
        decay: Tensor | None = None,
        v_threshold: Tensor | None = None,
        *,
        return_state: bool = False,
    ) -> LIF:
        """A neuron with exactly these settings (tensors where the operands are asked for)."""
        if attrs.decay_operand != (decay is not None) or attrs.threshold_operand != (
            v_threshold is not None
        ):
            raise ModelImportError("LIF: tensors given and attrs' operands do not agree")
        out = cls(return_state=return_state)
        out.attrs = attrs
        for name, value in (("decay", decay), ("v_threshold", v_threshold)):
            if value is not None:
                out._keep(name, value, True, False)
        return out

    def forward(self, x: Tensor, v0: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Run over time.

        Args:
            x: input current [T, N, …].
            v0: membrane before the first step [N, …]; zero where None.

        Returns:
            Spikes [T, N, …]; with ``return_state`` also the last membrane [N, …].
        """
        decay: Any = None
        if self.attrs.decay_operand:
            decay = self.decay
            if self._squash == "sigmoid":
                decay = decay.sigmoid()
            elif self._squash == "clamp":
                decay = decay.clamp(0.0, 1.0)
        threshold: Any = self.v_threshold if self.attrs.threshold_operand else None
        spikes, v_last = lif_with(x, v0, decay, threshold, self.attrs)
        return (spikes, v_last) if self.return_state else spikes

    def extra_repr(self) -> str:
        default = LifAttrs().to_dict()
        return ", ".join(f"{k}={v!r}" for k, v in self.attrs.to_dict().items() if v != default[k])
