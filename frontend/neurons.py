"""Neurons of other libraries become our neuron before the export, by the name of their class.

A swapped neuron is one operator in the program instead of T times a dozen, keeps its surrogate,
and its membrane is explicit. Only settings that our neuron reproduces exactly are swapped; the
others are imported operator by operator, or refused where they hide state. Neurons with a
synaptic current (Norse, snnTorch's Synaptic) and with several spikes a step (sinabs) are not our
neuron's kind and are imported operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ttsnn.errors import ModelImportError
from ttsnn.lif_attrs import LifAttrs
from ttsnn.models.lif_op import lif

__all__ = ["SteppedLIF", "SwappedLIF", "register_neuron", "swap_neurons"]

Swap = Callable[[nn.Module], nn.Module | None]
_SWAPS: dict[str, Swap] = {}


def register_neuron(qualified_class_name: str, fn: Swap) -> None:
    """Say how modules of a class are replaced when a model is imported.

    Args:
        qualified_class_name: ``"package.module.Class"``, as ``type(m).__module__`` and
            ``__qualname__`` spell it. A second registration replaces the first.
        fn: gets the module (of a copy of the model, in eval mode) and returns the module that
            takes its place, e.g. a :class:`ttsnn.models.LIF`, or None to leave it as it is.
    """
    if not callable(fn) or "." not in qualified_class_name:
        raise ModelImportError(
            f"register_neuron wants 'package.module.Class' and a function, got "
            f"{qualified_class_name!r} and {fn!r}"
        )
    _SWAPS[qualified_class_name] = fn


class SwappedLIF(nn.Module):
    """Multi-step neuron [T, N, …] → spikes, started from ``v_start``.

    Args:
        attrs: settings; with ``decay_operand`` the decay is the sigmoid of ``w``.
        v_start: membrane before the first step.
        w: SpikingJelly's PLIF parameter, sigmoid(w) = 1/tau.
    """

    w: nn.Parameter | None

    def __init__(self, attrs: LifAttrs, v_start: float = 0.0, w: Tensor | None = None) -> None:
        super().__init__()
        self.attrs, self.v_start = attrs, v_start
        self.register_parameter("w", None if w is None else nn.Parameter(w.detach().clone()))

    def _start(self, like: Tensor) -> Tensor | None:
        return None if self.v_start == 0 else torch.full_like(like, self.v_start)

    def settings(self) -> dict[str, Any]:
        """Arguments of :func:`ttsnn.models.lif`."""
        values: dict[str, Any] = self.attrs.to_dict()
        if self.w is not None:
            values["decay"] = self.w.sigmoid()
        return values

    def forward(self, x: Tensor) -> Tensor:
        """x [T, N, …] → spikes [T, N, …]."""
        return lif(x, self._start(x[0]), **self.settings())[0]


class SteppedLIF(SwappedLIF):
    """The same neuron one step a call, for models that loop over time in their forward.

    The membrane lives from the first call of one forward to the last; hooks on the model's root
    reset it, see :func:`swap_neurons`.

    Args:
        beta, threshold: tensors that replace decay (clamped to 0…1) and threshold, or None.
        returns: ``"spikes"``, or ``"both"`` for (spikes, membrane), as snnTorch does.
    """

    beta: nn.Parameter | None
    threshold: nn.Parameter | None

    def __init__(
        self,
        attrs: LifAttrs,
        v_start: float = 0.0,
        w: Tensor | None = None,
        *,
        beta: Tensor | None = None,
        threshold: Tensor | None = None,
        returns: str = "spikes",
    ) -> None:
        super().__init__(attrs, v_start, w)
        for name, value in (("beta", beta), ("threshold", threshold)):
            self.register_parameter(name, None if value is None else nn.Parameter(value.clone()))
        self.returns = returns
        self.v: Tensor | None = None
        self.calls = 0

    def reset(self) -> None:
        """Forget the membrane."""
        self.v = None

    def init_leaky(self) -> Tensor:
        """snnTorch's start value: empty, takes the input's shape in the first step."""
        self.v = None
        return torch.zeros(0)

    reset_mem = init_leaky

    def settings(self) -> dict[str, Any]:
        values = super().settings()
        if self.beta is not None:
            values["decay"] = self.beta.clamp(0, 1)
        if self.threshold is not None:
            values["v_threshold"] = self.threshold
        return values

    def forward(self, x: Tensor, mem: Tensor | None = None) -> Any:
        """x [N, …] → spikes [N, …] (and the membrane)."""
        v0 = self.v if mem is None else mem
        if v0 is None or v0.shape != x.shape:
            v0 = self._start(x)
        spikes, self.v = lif(x.unsqueeze(0), v0, **self.settings())
        # a membrane that the model itself hands over and gets back needs no hidden state
        self.calls += 2 if mem is not None else 1
        return (spikes[0], self.v) if self.returns == "both" else spikes[0]


def _begin(root: nn.Module, _: Any) -> None:
    for module in root.modules():
        if isinstance(module, SteppedLIF):
            module.v, module.calls = None, 0


def _end(root: nn.Module, _: Any, __: Any) -> None:
    for name, module in root.named_modules():
        if isinstance(module, SteppedLIF):
            if module.calls == 1:
                raise ModelImportError(
                    f"neuron {name!r} makes one step a call and keeps its membrane for the next: "
                    "loop over the timesteps inside the model's forward, or use a multi-step "
                    "neuron (step_mode='m')"
                )
            module.v, module.calls = None, 0


def swap_neurons(model: nn.Module) -> nn.Module:
    """Replace known neurons in place (of a copy); returns the model, or what replaced it.

    Raises:
        ModelImportError: a neuron holds the membrane of an earlier run, or (when the model runs)
            makes a single step a call, so that its state would be lost.
    """
    done: dict[int, nn.Module | None] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        cls = type(module)
        swap = _SWAPS.get(f"{cls.__module__}.{cls.__qualname__}")
        if swap is None:
            continue
        if id(module) not in done:
            new = swap(module)
            done[id(module)] = new if new is None else new.eval()
        new = done[id(module)]
        if new is None:
            continue
        if not name:
            model = new
            break
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    if any(isinstance(m, SteppedLIF) for m in model.modules()):
        model.register_forward_pre_hook(_begin)
        model.register_forward_hook(_end)
    return model


# -- SpikingJelly -------------------------------------------------------------------------------

_SURROGATES = {
    "Sigmoid": "sigmoid",
    "ATan": "arctan",
    "Erf": "erf",
    "PiecewiseQuadratic": "triangle",
}


def _surrogate(fn: Any) -> dict[str, Any]:
    """Others than these keep the default: it matters for training alone."""
    name, alpha = _SURROGATES.get(type(fn).__name__), getattr(fn, "alpha", None)
    if name is None or not isinstance(alpha, int | float) or alpha <= 0:
        return {"surrogate": "sigmoid", "surrogate_width": 0.25}
    return {"surrogate": name, "surrogate_width": 1.0 / alpha}


def _spikingjelly(form: Callable[[Any], dict[str, Any]]) -> Swap:
    def swap(m: Any) -> nn.Module | None:
        if isinstance(getattr(m, "v", 0.0), Tensor):
            raise ModelImportError(
                f"a {type(m).__name__} holds the membrane of an earlier run; call "
                "functional.reset_net(model) before importing the model"
            )
        if getattr(m, "store_v_seq", False):
            return None
        attrs = LifAttrs(
            v_threshold=float(m.v_threshold),
            v_reset=0.0 if m.v_reset is None else float(m.v_reset),
            reset="soft" if m.v_reset is None else "hard",
            fire=">=",
            detach_reset=bool(m.detach_reset),
            **_surrogate(m.surrogate_function),
            **form(m),
        )
        kind = SteppedLIF if m.step_mode == "s" else SwappedLIF
        return kind(attrs, float(m.v), getattr(m, "w", None))

    return swap


def _leak(m: Any) -> dict[str, Any]:
    return {"form": "euler" if m.decay_input else "euler_raw_input"}


for _module in ("neuron", "neuron.integrate_and_fire", "neuron.lif", "neuron.plif"):
    _path = f"spikingjelly.activation_based.{_module}"
    _SWAPS[f"{_path}.IFNode"] = _spikingjelly(lambda m: {"decay": 1.0})
    _SWAPS[f"{_path}.LIFNode"] = _spikingjelly(lambda m: {**_leak(m), "tau": float(m.tau)})
    _SWAPS[f"{_path}.ParametricLIFNode"] = _spikingjelly(
        lambda m: {**_leak(m), "decay_operand": True}
    )


# -- snnTorch -----------------------------------------------------------------------------------

_MECHANISMS: dict[int, dict[str, Any]] = {
    0: {"reset": "soft", "reset_timing": "after_decay"},
    1: {"reset": "hard", "reset_timing": "before_decay"},
    2: {"reset": "none"},
}


def _snntorch_leaky(m: Any) -> nn.Module | None:
    graded = torch.as_tensor(m.graded_spikes_factor)
    plain = not m.state_quant and not m.inhibition and getattr(m, "reset_delay", True)
    if not plain or not bool((graded == 1).all()):
        return None
    beta, threshold = torch.as_tensor(m.beta).detach(), torch.as_tensor(m.threshold).detach()
    own_beta = beta.numel() > 1 or isinstance(m.beta, nn.Parameter)
    own_threshold = threshold.numel() > 1 or isinstance(m.threshold, nn.Parameter)
    attrs = LifAttrs(
        decay=min(max(float(beta.reshape(-1)[0]), 0.0), 1.0),
        v_threshold=float(threshold.reshape(-1)[0]),
        fire=">",
        surrogate="arctan",
        surrogate_width=0.5,
        decay_operand=own_beta,
        threshold_operand=own_threshold,
        **_MECHANISMS[int(m.reset_mechanism_val)],
    )
    both = m.output or not m.init_hidden
    return SteppedLIF(
        attrs,
        beta=beta if own_beta else None,
        threshold=threshold if own_threshold else None,
        returns="both" if both else "spikes",
    )


_SWAPS["snntorch._neurons.leaky.Leaky"] = _snntorch_leaky
