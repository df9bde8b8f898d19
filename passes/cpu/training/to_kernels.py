"""ToTrainingKernels: the operators of a training step as channels-last kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tvm
from tvm import relax

from ttsnn.passes.cpu.training.kernels import TrainingKernels
from ttsnn.passes.cpu.training.linear import LINEAR_HANDLERS
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training_kernels.images import BatchNormGrad, Image
from ttsnn.passes.training_kernels.link import Link, dense_link
from ttsnn.passes.training_kernels.lowering import Lowering, rewrite_functions

__all__ = ["ToTrainingKernels"]


@tvm.transform.module_pass(opt_level=0, name="ToTrainingKernels")
class ToTrainingKernels(ModulePass):
    """Compute images as [1, T · N, H, W, C], by kernels that are scheduled already.

    Convolutions (dense with one group, tensor-train), their gradients, batch norm on batch
    statistics, neurons and their gradients become calls of kernels. A tensor-train layer runs
    as its chain; what its cores read in the forward pass is kept for the backward of the same
    function, or computed again where that is in another one. A batch norm is computed by the
    neuron or the addition that reads it. Elementwise operators, pools and means over pixels work
    on the same layout; anything else on the program's own, with transposes around it.

    Args:
        target: the CPU.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        bb = relax.BlockBuilder()
        kernels = TrainingKernels(bb, self.target)
        return rewrite_functions(mod, bb, lambda func: _CpuLowering(bb, kernels, func))


class _CpuLowering(Lowering):
    """Products, and their gradients."""

    def convert(self, var: relax.Var, value: relax.Expr) -> Image | list | relax.Expr | bool | None:
        """By the operator's handler."""
        handler = _HANDLERS.get(op_name(value))
        return super().convert(var, value) if handler is None else handler(self, var, value)

    # -- convolutions ------------------------------------------------------------------------

    def _conv(self, _var: relax.Var, call: relax.Call) -> Image | None:
        a = call.attrs
        layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
        if int(a.groups) != 1 or layouts != ("NCHW", "OIHW", "NCHW"):
            return None
        x = self.known_image(call.args[0], compact=True)
        link = dense_link(
            known_dims(call.args[1]),
            x.sizes[1:3],
            *([int(v) for v in values] for values in (a.strides, a.padding, a.dilation)),
        )
        return replace(x, expr=self.k.chain([link], x.expr, [self.get(call.args[1])])[0])

    def _conv_data(self, _var: relax.Var, call: relax.Call) -> Image | None:
        w, dy = call.args
        if int(call.attrs["groups"]) != 1:
            return None
        height, width = (int(s) for s in call.attrs["size"])
        link = self._link(known_dims(w), (height, width), call)
        image = self.known_image(dy)
        (dx,) = self.k.chain_input_grads([link], image.expr, [self.get(w)])
        return replace(image, expr=dx)

    def _conv_weight(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        if int(call.attrs["groups"]) != 1:
            return None
        x, dy = (self.known_image(a, compact=True) for a in call.args)
        link = self._link(known_dims(call), x.sizes[1:3], call)
        return self.k.conv_weight_grads(link, x.expr, dy.expr)[0]

    def _tt_inputs(
        self, call: relax.Call, part: int, links: list[Link], x: relax.Var, result: bool
    ) -> list[relax.Var]:
        """What each link of a chain reads; with ``result`` the chain's result after that.

        Kept for whoever asks again with the same operands.
        """
        cores = [self.get(g) for g in call.args[1:5]]
        key = (call.args[0], *call.args[1:5], part, str(call.attrs["strides"]))
        known = self.chains.get(key, [x])
        count = len(links) if result else len(links) - 1
        if len(known) <= count:
            again = self.k.goes_image_by_image(links, known_dims(x)[1], str(cores[0].ty.dtype))
            first = 1 if again and count > 1 else 0
            known = [x, *(self.k.chain(links[:count], x, cores, first) if count else [])]
            self.chains[key] = known
        return known

    def _tt_conv(self, _var: relax.Var, call: relax.Call) -> Image:
        x, parts = self.known_image(call.args[0], compact=True), []
        for i, (begin, end, links) in enumerate(self._tt_parts(call)):
            known = self._tt_inputs(call, i, links, self._part(x, begin, end), True)
            parts.append(known[len(links)])
        return self._joined(parts, x)

    def _tt_backward(self, var: relax.Var, call: relax.Call) -> list:
        x = self.known_image(call.args[0], compact=True)
        cores = [self.get(g) for g in call.args[1:5]]
        to_x = (var, 0) in self.item_reads
        grads: list[relax.Expr | None] = [None] * 4
        parts, ranges = [], self._tt_parts(call)
        pending = self.pending(call.args[5]) if len(ranges) == 1 else None
        for i, (begin, end, links) in enumerate(ranges):
            ins = self._tt_inputs(call, i, links, self._part(x, begin, end), False)[: len(links)]
            dtype = str(cores[0].ty.dtype)
            whole = to_x and self.k.goes_image_by_image(links, end - begin, dtype)
            if whole and isinstance(pending, BatchNormGrad):
                done = self.k.chain_backward(links, ins, pending, cores)
            else:
                dy = self._part(self.known_image(call.args[5]), begin, end)
                if whole:
                    done = self.k.chain_backward(links, ins, dy, cores)
                else:
                    done = self._by_links(links, ins, dy, cores, to_x)
            for link, news in zip(links, done[1]):
                for source, new in zip(link.sources, news):
                    old = grads[source]
                    grads[source] = new if old is None else self.bind(relax.op.add(old, new))
            parts.append(done[0])
        for i, core in enumerate(call.args[1:5]):
            if grads[i] is None:
                grads[i] = self.bind(relax.op.zeros(core.ty.shape, str(core.ty.dtype)))
        return [self._joined(parts, x) if to_x else None, *grads]

    def _by_links(
        self,
        links: list[Link],
        ins: Sequence[relax.Var | None],
        dy: relax.Var,
        cores: list[relax.Expr],
        to_x: bool,
    ) -> tuple[relax.Var, list[list[relax.Var]]]:
        """Gradients of a chain, with kernels for each link."""
        if len(links) > 1 and ins[1] is None:
            ins = [*ins[:1], *self.k.chain(links[:1], ins[0], cores), *ins[2:]]
        back = links if to_x else links[1:]
        outs = [dy, *(self.k.chain_input_grads(back, dy, cores) if back else [])]
        each = zip(links, ins, outs[len(links) - 1 :: -1], strict=True)
        return outs[-1], [self.k.conv_weight_grads(link, x, g) for link, x, g in each]


_HANDLERS = {
    "relax.nn.conv2d": _CpuLowering._conv,
    "relax.dense.conv2d_backward_data": _CpuLowering._conv_data,
    "relax.dense.conv2d_backward_weight": _CpuLowering._conv_weight,
    "relax.tt.conv2d": _CpuLowering._tt_conv,
    "relax.tt.conv2d_backward": _CpuLowering._tt_backward,
    **LINEAR_HANDLERS,
}
