"""Whole training programs: one compiled step, or its two halves around a gradient exchange."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.hoist_time_invariant import HoistTimeInvariant
from ttsnn.passes.training.activation_checkpointing import checkpoint_activations
from ttsnn.passes.training.append_loss import AppendLoss
from ttsnn.passes.training.batch_norm import TrainingBatchNorm
from ttsnn.passes.training.differentiate import Differentiate
from ttsnn.passes.training.gradient import gradient_of
from ttsnn.passes.training.graph import Emitter, Graph, fresh_vars
from ttsnn.passes.training.losses import CrossEntropy, Loss
from ttsnn.passes.training.manifest import Manifest, Signature, Slot
from ttsnn.passes.training.optimizers import SGD, Optimizer
from ttsnn.passes.training.roles import Roles, batch_norm_entries, trainable_params
from ttsnn.passes.verify_gradient import VerifyDifferentiable
from ttsnn.program import params_of, with_params

__all__ = ["build_autograd", "build_gradients", "build_train_step", "build_update"]

# a static image's stem runs once; parameters that nothing reads stay, with gradients of zero
_HOIST = HoistTimeInvariant(prune=False)
_CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


def build_autograd(
    program: tvm.IRModule,
    *,
    params: Collection[str] | None = None,
    inputs: Sequence[str] = (),
    frozen_bn: bool | Collection[str] = False,
    bn_momentum: float | None = None,
    activation_checkpointing: bool = False,
) -> tvm.IRModule:
    """``forward`` and ``backward`` of a program, for ``torch.autograd.Function``.

    See :class:`~ttsnn.passes.training.Differentiate` for the two functions.

    Args:
        program: imported with a fixed batch size; dense or after ``DecomposeToTT``.
        params: names of the parameters to differentiate; None for all trainable ones.
        inputs: names of the inputs to differentiate.
        frozen_bn: batch norms that keep their running statistics; True for all, or names.
        bn_momentum: replaces the layers' momentum.
        activation_checkpointing: backward computes most activations again instead of reading
            saved ones, see :mod:`ttsnn.passes.training.activation_checkpointing`.

    Raises:
        PassError: see the passes.
    """
    mod = _HOIST(TrainingBatchNorm(frozen_bn, momentum=bn_momentum)(program))
    options = {"activation_checkpointing": activation_checkpointing}
    return Differentiate(params, inputs, **options)(mod)


def build_gradients(
    program: tvm.IRModule,
    loss: Loss | None = None,
    *,
    output: int = 0,
    params: Collection[str] | None = None,
    frozen_bn: bool | Collection[str] = False,
    bn_momentum: float | None = None,
    activation_checkpointing: bool = False,
) -> tvm.IRModule:
    """``main(inputs…, labels, params…) → (loss, results…, new buffers…, gradients…)``.

    Arguments as in :func:`build_train_step`. For data-parallel training: exchange the gradients,
    then call the program of :func:`build_update`.
    """
    loss = loss or CrossEntropy()
    parts = _Parts.of(
        program, loss, output, params, frozen_bn, bn_momentum, activation_checkpointing
    )
    env = fresh_vars(parts.adjoint.args)
    e = Emitter("main", list(env.values()), env)
    func = e.build(lambda: e.emit_graph(parts.adjoint, parts.adjoint.results))
    grads = tuple(Slot(s.name, "grad", s.shape, s.dtype) for s in parts.trained)
    signature = Signature(parts.roles.arguments, parts.roles.results + grads)
    return _finish(parts.mod, func, signature, {"loss": loss.to_json(), **parts.options})


def build_update(
    program: tvm.IRModule,
    optimizer: Optimizer | None = None,
    *,
    clip_norm: float | None = None,
    params: Collection[str] | None = None,
) -> tvm.IRModule:
    """``main(lr[, step], gradients…, params…, optimizer state…) → (new params…, new state…)``.

    With ``clip_norm``, the first result is the gradients' norm. Arguments as in
    :func:`build_train_step`; ``params`` has only the parameters that are trained.
    """
    optimizer = optimizer or SGD()
    mod = TrainingBatchNorm(True)(program)  # only to know the running statistics
    names = trainable_params(mod, params)
    values = params_of(mod)
    slots = [Slot(n, "param", values[n].shape, str(values[n].dtype)) for n in names]
    update = _Update(optimizer, clip_norm, slots)
    grads = {s.name: _variable(f"grad_{s.name}", s) for s in slots}
    variables = {s.name: _variable(s.name, s) for s in slots}
    scalars, states = list(update.scalars.values()), list(update.states.values())
    e = Emitter("main", [*scalars, *grads.values(), *variables.values(), *states])

    def body() -> list[relax.Expr]:
        return update.emit(e.bb, variables, grads)

    func = e.build(body, {"num_input": len(scalars) + len(grads)})
    grad_slots = tuple(Slot(s.name, "grad", s.shape, s.dtype) for s in slots)
    signature = Signature(
        (*update.scalar_slots, *grad_slots, *slots, *update.state_slots), update.result_slots
    )
    out = tvm.IRModule({"main": func}, attrs=mod.attrs)
    out = with_params(out, {**{n: values[n] for n in names}, **update.initial()})
    return Manifest({"main": signature}, (), update.options).attach(out)


def build_train_step(
    program: tvm.IRModule,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    *,
    output: int = 0,
    params: Collection[str] | None = None,
    clip_norm: float | None = None,
    frozen_bn: bool | Collection[str] = False,
    bn_momentum: float | None = None,
    activation_checkpointing: bool = False,
    hoist: bool = True,
) -> tvm.IRModule:
    """One whole step: forward, loss, backward, update, batch-norm statistics.

    ``main(inputs…, labels, lr[, step], params and buffers…, optimizer state…) → (loss, outputs…,
    new states…, new buffers…[, grad_norm], new params…, new optimizer state…)``; outputs are
    those of the parameters before the update. ``Manifest.of(module)`` names all of them. Its
    ``ttsnn.params`` holds the initial values, optimizer state included.

    Args:
        program: imported with a fixed batch size; dense or after ``DecomposeToTT``.
        loss: default :class:`~ttsnn.passes.training.CrossEntropy`.
        optimizer: default plain SGD.
        output: index of the program's result that holds the logits.
        params: names of the parameters to train; None for all.
        clip_norm: scale the gradients so that their global norm is at most this, as
            ``torch.nn.utils.clip_grad_norm_``.
        frozen_bn: batch norms that keep their running statistics; True for all, or names.
        bn_momentum: replaces the layers' momentum.
        activation_checkpointing: the backward part computes most activations again instead of
            keeping them, see :mod:`ttsnn.passes.training.activation_checkpointing`.
        hoist: run what does not change with time once, by ``HoistTimeInvariant``.

    Raises:
        PassError: symbolic sizes, a gradient that would silently be zero, a loss that does not
            fit the logits, unknown names.
    """
    loss, optimizer = loss or CrossEntropy(), optimizer or SGD()
    parts = _Parts.of(
        program, loss, output, params, frozen_bn, bn_momentum, activation_checkpointing, hoist
    )
    update = _Update(optimizer, clip_norm, parts.trained)
    env = fresh_vars(parts.adjoint.args)
    args = list(env.values())
    count = sum(s.role in ("input", "state", "label") for s in parts.roles.arguments)
    scalars, states = list(update.scalars.values()), list(update.states.values())
    e = Emitter("main", [*args[:count], *scalars, *args[count:], *states], env)
    variables = {
        s.name: env[v] for s, v in zip(parts.roles.arguments, parts.adjoint.args, strict=True)
    }

    def body() -> list[relax.Expr]:
        results = e.emit_graph(parts.adjoint, parts.adjoint.results)
        plain = len(parts.roles.results)
        grads = {s.name: g for s, g in zip(parts.trained, results[plain:], strict=True)}
        return [*results[:plain], *update.emit(e.bb, variables, grads)]

    func = e.build(body, {"num_input": count + len(scalars)})
    arguments = parts.roles.arguments
    signature = Signature(
        (*arguments[:count], *update.scalar_slots, *arguments[count:], *update.state_slots),
        (*parts.roles.results, *update.result_slots),
    )
    mod = with_params(parts.mod, {**params_of(parts.mod), **update.initial()})
    options = {"loss": loss.to_json(), **update.options, **parts.options}
    return _finish(mod, func, signature, options)


def _finish(
    mod: tvm.IRModule, func: relax.Function, signature: Signature, options: dict
) -> tvm.IRModule:
    if func.attrs is None or "num_input" not in func.attrs:
        func = func.with_attr("num_input", int(mod["main"].attrs["num_input"]))
    out = tvm.IRModule({"main": func}, attrs=mod.attrs)
    return Manifest({"main": signature}, batch_norm_entries(mod), options).attach(out)


@dataclass(frozen=True)
class _Parts:
    """A program with its loss, differentiated.

    Attributes:
        mod: the program with the loss, before differentiation.
        roles: of its arguments and results.
        trained: slots of the trained parameters.
        adjoint: its graph, results followed by the gradients of ``trained``.
        options: what the manifest tells of activation checkpointing; empty without.
    """

    mod: tvm.IRModule
    roles: Roles
    trained: list[Slot]
    adjoint: Graph
    options: dict

    @classmethod
    def of(
        cls,
        program: tvm.IRModule,
        loss: Loss,
        output: int,
        params: Collection[str] | None,
        frozen_bn: bool | Collection[str],
        bn_momentum: float | None,
        activation_checkpointing: bool,
        hoist: bool = True,
    ) -> _Parts:
        mod = TrainingBatchNorm(frozen_bn, momentum=bn_momentum)(program)
        if hoist:
            mod = _HOIST(mod)
        mod = AppendLoss(loss, output)(mod)
        names = trainable_params(mod, params)
        if not names:
            raise PassError("training: the program has no parameter to train")
        VerifyDifferentiable(names, output=0)(mod)
        main = mod["main"]
        roles = Roles.of(mod, Graph.of(main).results, names, loss=True)
        index = [i for i, s in enumerate(roles.arguments) if s.role == "param"]
        adjoint = gradient_of(main, [main.params[i] for i in index])
        options = {}
        if activation_checkpointing:
            made = checkpoint_activations(adjoint, adjoint.results[: len(roles.results)])
            adjoint, options = made.graph, {"activation_checkpointing": made.options}
        return cls(mod, roles, [roles.arguments[i] for i in index], adjoint, options)


class _Update:
    """The optimizer over a list of parameters: its arguments, its results, its arithmetic."""

    def __init__(
        self, optimizer: Optimizer, clip_norm: float | None, params: Sequence[Slot]
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise PassError(f"training: clip_norm must be above 0, got {clip_norm}")
        self.optimizer, self.clip_norm, self.params = optimizer, clip_norm, list(params)
        self.scalar_slots = [Slot("lr", "lr", (), "float64")]
        if optimizer.needs_step:
            self.scalar_slots.append(Slot("step", "step", (), "int64"))
        self.state_slots = [
            Slot(f"{p.name}.{kind}", "optimizer", p.shape, p.dtype)
            for p in self.params
            for kind in optimizer.state
        ]
        self.scalars = {s.name: _variable(s.name, s) for s in self.scalar_slots}
        self.states = {s.name: _variable(s.name, s) for s in self.state_slots}

    @property
    def result_slots(self) -> tuple[Slot, ...]:
        norm = []
        if self.clip_norm is not None:
            norm = [Slot("grad_norm", "grad_norm", (), self.params[0].dtype)]
        return (*norm, *self.params, *self.state_slots)

    @property
    def options(self) -> dict:
        return {"optimizer": self.optimizer.to_json(), "clip_norm": self.clip_norm}

    def initial(self) -> dict[str, np.ndarray]:
        """Zeros for every state."""
        return {s.name: np.zeros(s.shape, s.dtype) for s in self.state_slots}

    def emit(
        self,
        bb: relax.BlockBuilder,
        variables: dict[str, relax.Expr],
        grads: dict[str, relax.Expr],
    ) -> list[relax.Expr]:
        """Results in the order of ``result_slots``."""
        out: list[relax.Expr] = []
        if self.clip_norm is not None:
            norm, grads = _clip(bb, grads, self.clip_norm)
            out.append(norm)
        shared = {
            dtype: self.optimizer.prepare(bb, self.scalars["lr"], self.scalars.get("step"), dtype)
            for dtype in {p.dtype: None for p in self.params}
        }
        new_params, new_states = [], []
        for p in self.params:
            kinds = self.optimizer.state
            state = {kind: self.states[f"{p.name}.{kind}"] for kind in kinds}
            new, new_state = self.optimizer.emit(
                bb, variables[p.name], grads[p.name], state, shared[p.dtype]
            )
            new_params.append(new)
            new_states += [new_state[kind] for kind in kinds]
        return [*out, *new_params, *new_states]


def _clip(
    bb: relax.BlockBuilder, grads: dict[str, relax.Expr], limit: float
) -> tuple[relax.Expr, dict[str, relax.Expr]]:
    """The global 2-norm, and the gradients times ``min(1, limit / (norm + 1e-6))``."""
    dtype = str(next(iter(grads.values())).ty.dtype)
    total: relax.Expr | None = None
    for grad in grads.values():
        square = bb.emit(relax.op.sum(bb.emit(relax.op.multiply(grad, grad))))
        if str(square.ty.dtype) != dtype:
            square = bb.emit(relax.op.astype(square, dtype))
        total = square if total is None else bb.emit(relax.op.add(total, square))
    norm = bb.emit(relax.op.sqrt(total))
    below = bb.emit(relax.op.add(norm, relax.const(_CLIP_EPS, dtype)))
    factor = bb.emit(relax.op.divide(relax.const(limit, dtype), below))
    factor = bb.emit(relax.op.minimum(factor, relax.const(1.0, dtype)))
    cast = {dtype: factor}

    def scaled(grad: relax.Expr) -> relax.Expr:
        own = str(grad.ty.dtype)
        if own not in cast:
            cast[own] = bb.emit(relax.op.astype(factor, own))
        return bb.emit(relax.op.multiply(grad, cast[own]))

    return norm, {name: scaled(grad) for name, grad in grads.items()}


def _variable(name: str, slot: Slot) -> relax.Var:
    return relax.Var(name.replace(".", "_"), relax.TensorType(slot.shape, slot.dtype))
