"""The PyTorch twin of a compiled network: layers become tensor trains after a plan, and back."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ttsnn import tt
from ttsnn.errors import PlanError
from ttsnn.models.time_axis import timesteps_of
from ttsnn.models.tt_conv_op import centre_padding, conv2d_padded
from ttsnn.models.tt_layers import TTConv2d, TTLinear, conv_padding
from ttsnn.plans import LayerInfo, TTLayer, TTPlan, cores_of_layer, find_layer

__all__ = ["TwoWeightConv2d", "apply_plan", "merge_tt"]


class TwoWeightConv2d(nn.Module):
    """A merged htt layer: one dense weight for the leading timesteps, a 1×1 one for the others.

    [T, N, Cin, H, W] → [T, N, Cout, Ho, Wo]. Parameters ``weight`` [Cout, Cin, Kh, Kw],
    ``half_weight`` [Cout, Cin, 1, 1], which acts at the centre tap, and ``bias``.
    """

    takes_time = True

    def __init__(self, layer: TTConv2d) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.timesteps, self.T = layer.timesteps, layer.T
        full = tt.reconstruct_conv(layer.cores, "htt")
        half = tt.reconstruct_conv(layer.cores, "htt", full=False)
        kh, kw = layer.kernel_size
        half = half[:, :, kh // 2, kw // 2, None, None]
        self.weight, self.half_weight = (
            nn.Parameter(torch.from_numpy(w.copy()).to(layer.g1)) for w in (full, half)
        )
        self.bias = layer.bias

    def full_steps(self, steps: int) -> int:
        """How many of ``steps`` timesteps use ``weight``."""
        return (steps + 1) // 2 if self.timesteps is None else min(self.timesteps, steps)

    def step(self, x: Tensor, t: int, steps: int) -> Tensor:
        """Timestep ``t`` of ``steps`` alone: [N, Cin, H, W] → [N, Cout, Ho, Wo]."""
        if t < self.full_steps(steps):
            y = conv2d_padded(x, self.weight, self.stride, self.padding, self.dilation)
        else:
            pads = centre_padding(self.weight.shape[2:], self.padding, self.dilation)
            y = conv2d_padded(x, self.half_weight, self.stride, pads, (1, 1))
        return y if self.bias is None else y + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return self(x.reshape(self.T or 1, -1, *x.shape[1:])).flatten(0, 1)
        steps, batch = x.shape[:2]
        full = self.full_steps(steps)
        parts = [
            self.step(part.flatten(0, 1), t, steps)
            for part, t in ((x[:full], 0), (x[full:], full))
            if part.shape[0]
        ]
        y = torch.cat(parts)
        return y.reshape(steps, batch, *y.shape[1:])


def _info(name: str, module: nn.Module) -> LayerInfo | None:
    """What a plan is checked against; None for a module that is no dense layer."""
    if isinstance(module, nn.Conv2d):
        return LayerInfo(name, "conv2d", tuple(module.weight.shape), groups=module.groups)
    if isinstance(module, nn.Linear):
        return LayerInfo(name, "linear", tuple(module.weight.shape))
    return None


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``old`` hangs in the model; returns the model."""
    if model is old:
        return new
    for module in model.modules():
        for name, child in list(module._modules.items()):  # named_children hides repetitions
            if child is old:
                setattr(module, name, new)
    return model


def apply_plan(
    model: nn.Module,
    plan: TTPlan,
    *,
    init: str = "fit",
    seed: int = 0,
    stepwise: Collection[str] = (),
) -> nn.Module:
    """A copy of a network with the plan's layers as tensor trains.

    The cores are those that the compiler's pass computes from the same plan, bit for bit up to
    the rounding to the weights' dtype.

    Args:
        model: a network with ``nn.Conv2d`` and ``nn.Linear`` layers; left as it is.
        plan: layer names are the model's module names.
        init: ``"fit"`` approximates the weights, ``"fresh"`` draws cores for training.
        seed: of fresh cores.
        stepwise: layers that the network calls once a timestep, in a loop of its own, on
            [N, C, H, W]: an htt layer then counts its calls to know the timestep.

    Raises:
        PlanError: the plan names a layer that isn't there, or does not fit it; names the layer.
    """
    model = copy.deepcopy(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    infos = [i for i in (_info(n, m) for n, m in modules.items()) if i is not None]
    plan.check(infos, timesteps_of(model))
    for name, layer in plan.layers.items():
        find_layer(infos, name)
        new = _factorised(name, modules[name], layer, plan.T, init, seed)
        new.train(modules[name].training)
        model = _replace(model, modules[name], new)
        if name in stepwise and isinstance(new, TTConv2d) and new.takes_time:
            new.next_step = 0
            model.register_forward_pre_hook(_restart_time)
    return model


def _restart_time(model: nn.Module, _args: object) -> None:
    """Before a network runs: layers that count their calls are at timestep 0."""
    for layer in model.modules():
        if isinstance(layer, TTConv2d) and layer.next_step is not None:
            layer.next_step = 0


def _factorised(
    name: str, dense: nn.Module, layer: TTLayer, T: int | None, init: str, seed: int
) -> nn.Module:
    assert isinstance(dense, (nn.Conv2d, nn.Linear))
    weight = dense.weight.detach()
    bias = dense.bias
    cores = cores_of_layer(name, layer, weight.cpu().numpy(), T=T, init=init, seed=seed)
    new: nn.Module
    with torch.random.fork_rng(devices=[]):  # the constructors draw cores, replaced below
        if isinstance(dense, nn.Conv2d):
            if dense.padding_mode != "zeros":
                raise PlanError(
                    f"layer {name!r}: padding mode {dense.padding_mode!r} cannot be factorised; "
                    "drop it from the plan"
                )
            new = TTConv2d(
                dense.in_channels,
                dense.out_channels,
                dense.kernel_size,
                layer.ranks,
                layer.mode,
                stride=dense.stride,
                padding=conv_padding(dense.padding, dense.kernel_size, dense.dilation),
                dilation=dense.dilation,
                bias=bias is not None,
                timesteps=layer.timesteps,
                T=T,
            )
        else:
            new = TTLinear(layer.in_factors, layer.out_factors, layer.ranks, bias=bias is not None)
    new.to(weight)
    parameters = dict(new.named_parameters())
    with torch.no_grad():
        for key, core in cores.items():
            parameters[key].copy_(torch.from_numpy(core))
        if bias is not None:
            parameters["bias"].copy_(bias)
    return new


def merge_tt(model: nn.Module) -> nn.Module:
    """A copy of a network with every tensor-train layer merged back into a dense one.

    Exact up to rounding. htt layers have one weight for each kind of timestep and become
    :class:`TwoWeightConv2d`, unless all of their timesteps are of one kind.

    Raises:
        PlanError: a layer with unequal padding on opposite sides, which ``nn.Conv2d`` lacks.
    """
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights, replaced below
        for name, module in list(model.named_modules()):
            if isinstance(module, TTConv2d):
                model = _replace(model, module, _merged_conv(name, module))
            elif isinstance(module, TTLinear):
                weight = tt.reconstruct_linear([c.detach().cpu().numpy() for c in module.cores])
                dense = nn.Linear(module.in_features, module.out_features, module.bias is not None)
                model = _replace(model, module, _with(dense, weight, module.bias, module))
    return model


def _merged_conv(name: str, layer: TTConv2d) -> nn.Module:
    if layer.mode == "htt" and (layer.T is None or layer.full_steps(layer.T) < layer.T):
        return TwoWeightConv2d(layer).train(layer.training)
    top, left, bottom, right = layer.padding
    if (top, left) != (bottom, right):
        raise PlanError(
            f"layer {name!r}: padding {layer.padding} differs between opposite sides, which "
            "nn.Conv2d cannot do; leave it factorised"
        )
    dense = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        (top, left),
        layer.dilation,
        bias=layer.bias is not None,
    )
    return _with(dense, tt.reconstruct_conv(layer.cores, layer.mode), layer.bias, layer)


def _with(
    dense: nn.Conv2d | nn.Linear, weight: object, bias: Tensor | None, like: nn.Module
) -> nn.Module:
    """The dense layer with these values, in the dtype, device and mode of the one it replaces."""
    dense.to(next(like.parameters()))
    with torch.no_grad():
        dense.weight.copy_(torch.as_tensor(weight))
        if bias is not None and dense.bias is not None:
            dense.bias.copy_(bias)
    return dense.train(like.training)
