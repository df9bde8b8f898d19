"""Differentiate: a forward and a backward function that share no work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training.activation_checkpointing import checkpoint_activations
from ttsnn.passes.training.gradient import gradient_of
from ttsnn.passes.training.graph import Emitter, Graph, fresh_vars, operands, require_static
from ttsnn.passes.training.manifest import Manifest, Signature, Slot
from ttsnn.passes.training.roles import Roles, batch_norm_entries, trainable_params
from ttsnn.passes.verify_gradient import VerifyDifferentiable

__all__ = ["Differentiate"]

# Values that backward forms again rather than keep: they move numbers, or have none.
_RECOMPUTED = {
    "relax.reshape",
    "relax.flatten",
    "relax.permute_dims",
    "relax.expand_dims",
    "relax.squeeze",
    "relax.broadcast_to",
    "relax.zeros",
    "relax.ones",
    "relax.full",
    "relax.zeros_like",
    "relax.ones_like",
    "relax.full_like",
}


@tvm.transform.module_pass(opt_level=0, name="Differentiate")
class Differentiate(ModulePass):
    """Program → module with ``forward`` and ``backward``, for an autograd engine around it.

    ``forward(inputs…, params…) → (results…, saved…)`` and
    ``backward(inputs…, params…, saved…, grad_outputs…) → (gradients of the parameters…,
    gradients of the inputs…)``; of the inputs and params, backward has only those that it reads.
    ``grad_outputs`` has one entry for each result of role ``output``; no gradient flows through
    new states and new running statistics. ``Manifest.of(module)`` says what everything is.

    Saved are the values of the forward pass that gradients read, but views of others are formed
    again, and arguments are passed again instead.

    Args:
        params: names of the parameters to differentiate; None for all trainable ones.
        inputs: names of the inputs to differentiate.
        activation_checkpointing: save only what backward needs to compute the rest again, see
            :mod:`ttsnn.passes.training.activation_checkpointing`.

    Raises:
        PassError: symbolic sizes; an unknown name; where a gradient would silently be zero
            (see :class:`~ttsnn.passes.VerifyDifferentiable`).
    """

    def __init__(
        self,
        params: Collection[str] | None = None,
        inputs: Sequence[str] = (),
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        self.params = params
        self.inputs = list(inputs)
        self.activation_checkpointing = activation_checkpointing

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        main = mod["main"]
        require_static(main)
        graph = Graph.of(main)
        trainable = trainable_params(mod, self.params)
        roles = Roles.of(mod, graph.results, trainable)
        unknown = set(self.inputs) - {s.name for s in roles.arguments if s.role == "input"}
        if unknown:
            raise PassError(f"Differentiate: there is no input {', '.join(sorted(unknown))}")
        wanted = [
            i
            for i, s in enumerate(roles.arguments)
            if s.role == "param" or (s.role == "input" and s.name in self.inputs)
        ]
        if not wanted:
            raise PassError(
                "Differentiate: there is nothing to differentiate: no parameter, no input"
            )
        outputs = [i for i, s in enumerate(roles.results) if s.role == "output"]
        for i in outputs:
            VerifyDifferentiable([*trainable, *self.inputs], output=i)(mod)
        func, cotangents = _with_cotangents(graph, outputs)
        adjoint = gradient_of(func, [func.params[i] for i in wanted])
        again: frozenset[relax.Var] = frozenset()
        options = {}
        if self.activation_checkpointing:
            results = adjoint.results[1 : 1 + len(graph.results)]
            made = checkpoint_activations(adjoint, results)
            # what the second computation is read by, too: items of its tuples
            adjoint, again = made.graph, frozenset(made.graph.dependent(made.again))
            options = {"activation_checkpointing": made.options}
        split = _Split(adjoint, len(graph.args), len(graph.results), again)
        forward, backward = split.forward(), split.backward(cotangents)
        return _assemble(mod, roles, split, forward, backward, wanted, options)


def _with_cotangents(graph: Graph, outputs: list[int]) -> tuple[relax.Function, int]:
    """``main(args…, g…) → (Σ outputs · g, results…)``, whose gradient is the wanted one."""
    env = fresh_vars(graph.args)
    cotangents = [relax.Var(f"grad_{i}", graph.results[i].ty) for i in outputs]
    e = Emitter("main", [*env.values(), *cotangents], env)

    def body() -> list[relax.Expr]:
        results = e.emit_graph(graph, graph.results)
        total: relax.Expr | None = None
        for i, g in zip(outputs, cotangents):
            term = e.emit(relax.op.sum(e.emit(relax.op.multiply(results[i], g))))
            total = term if total is None else e.emit(relax.op.add(total, term))
        return [total, *results]

    return e.build(body), len(cotangents)


@dataclass
class _Split:
    """The differentiated function, cut where values start to depend on the output's gradients.

    Attributes:
        graph: arguments (program's, then cotangents); results (scalar, program's, gradients).
        count: number of the program's arguments.
        results: number of the program's results.
        again: values that only backward computes, of activation checkpointing.
        saved: values of the forward part that the backward part reads.
        reads: the program's arguments that the backward part reads.
    """

    graph: Graph
    count: int
    results: int
    again: frozenset[relax.Var] = frozenset()
    saved: list[relax.Var] = field(default_factory=list)
    reads: list[relax.Var] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.graph
        self.cotangents = graph.args[self.count :]
        self.gradients = graph.results[1 + self.results :]
        self._late = graph.dependent(self.cotangents)
        self._seen: set[relax.Var] = set()
        arguments = set(graph.args[: self.count])
        live = set(graph.needed(self.gradients))
        saved: set[relax.Var] = set()
        reads: set[relax.Var] = set()
        stack = [v for g in self.gradients for v in operands(g)]
        stack += [v for b in live if b in self._late for v in operands(graph.bindings[b])]
        while stack:
            var = stack.pop()
            if var in self._seen or var in self._late:
                continue
            self._seen.add(var)
            if var in arguments:
                reads.add(var)
            elif var in self.again or self._again(graph.bindings[var]):
                stack += operands(graph.bindings[var])
            else:
                saved.add(var)
        self.saved = [v for v in graph.bindings if v in saved]
        self.reads = [a for a in graph.args if a in reads]

    def _again(self, value: relax.Expr) -> bool:
        """Whether backward forms a value again."""
        if isinstance(value, relax.Var | relax.Tuple):
            return True
        if isinstance(value, relax.TupleGetItem):
            inner = value.tuple_value
            return isinstance(inner, relax.Tuple) or isinstance(
                self.graph.bindings.get(inner), relax.Tuple
            )
        return op_name(value) in _RECOMPUTED or not operands(value)

    def forward(self) -> relax.Function:
        """``forward(program's arguments) → (results, saved)``."""
        env = fresh_vars(self.graph.args[: self.count])
        e = Emitter("forward", list(env.values()), env)
        roots = [*self.graph.results[1 : 1 + self.results], *self.saved]
        return e.build(lambda: e.emit_graph(self.graph, roots))

    def backward(self, cotangents: int) -> relax.Function:
        """``backward(arguments read, saved, cotangents) → gradients``."""
        env = fresh_vars([*self.reads, *self.saved, *self.cotangents])
        e = Emitter("backward", list(env.values()), env)
        return e.build(lambda: e.emit_graph(self.graph, self.gradients))


def _assemble(
    mod: tvm.IRModule,
    roles: Roles,
    split: _Split,
    forward: relax.Function,
    backward: relax.Function,
    wanted: list[int],
    options: dict,
) -> tvm.IRModule:
    saved = tuple(Slot.of(f"saved_{i}", "saved", v) for i, v in enumerate(split.saved))
    position = {a: i for i, a in enumerate(split.graph.args)}
    reads = tuple(roles.arguments[position[a]] for a in split.reads)
    grad_outputs = tuple(
        Slot(s.name, "grad_output", s.shape, s.dtype) for s in roles.results if s.role == "output"
    )
    gradients = tuple(
        Slot(s.name, "grad" if s.role == "param" else "grad_input", s.shape, s.dtype)
        for s in (roles.arguments[i] for i in wanted)
    )
    functions = {
        "forward": Signature(roles.arguments, roles.results + saved),
        "backward": Signature(reads + saved + grad_outputs, gradients),
    }
    out = tvm.IRModule({"forward": forward, "backward": backward}, attrs=mod.attrs)
    return Manifest(functions, batch_norm_entries(mod), options).attach(out)
