"""AppendLoss: a program that computes a loss."""

from __future__ import annotations

import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.training.batch_norm import BatchNormInfo, batch_norm_info
from ttsnn.passes.training.graph import Emitter, Graph, fresh_vars
from ttsnn.passes.training.losses import Loss
from ttsnn.program import num_inputs

__all__ = ["AppendLoss"]


@tvm.transform.module_pass(opt_level=0, name="AppendLoss")
class AppendLoss(ModulePass):
    """``main(inputs…, params…) → results`` → ``main(inputs…, labels, params…) → (loss, results…)``.

    ``labels`` is int64 [N] and the last of the inputs.

    Args:
        loss: a loss of :mod:`ttsnn.passes.training.losses`.
        output: index of the result that holds the logits.

    Raises:
        PassError: the logits' shape does not fit the loss; no such result.
    """

    def __init__(self, loss: Loss, output: int = 0) -> None:
        self.loss = loss
        self.output = output

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        main = mod["main"]
        graph = Graph.of(main)
        count = len(graph.results) - len(batch_norm_info(mod).updates)
        if not 0 <= self.output < count:
            raise PassError(
                f"AppendLoss: result {self.output} is asked for, the program has {count}"
            )
        logits = graph.results[self.output]
        env = fresh_vars(main.params)
        labels = relax.Var("labels", relax.TensorType([self.loss.batch(logits)], "int64"))
        count = num_inputs(main)
        args = list(env.values())
        e = Emitter("main", [*args[:count], labels, *args[count:]], env)

        def body() -> list[relax.Expr]:
            results = e.emit_graph(graph, graph.results)
            return [self.loss.emit(e.bb, results[self.output], labels), *results]

        func = e.build(body, {**dict(main.attrs or {}), "num_input": count + 1})
        info = batch_norm_info(mod)
        updates = {name: i + 1 for name, i in info.updates.items()}
        out = tvm.IRModule({"main": func}, attrs=mod.attrs)
        return BatchNormInfo(info.layers, updates).attach(out)
