"""ToTrainingKernels: the operators of a training step as channels-last kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import tvm
from tvm import relax

from ttsnn.passes.cpu.training.kernels import CpuKernels
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.calls import dtype_of
from ttsnn.passes.training_kernels.convolutions import ConvLowering
from ttsnn.passes.training_kernels.images import BatchNormGrad, Image
from ttsnn.passes.training_kernels.linear import LINEAR_HANDLERS
from ttsnn.passes.training_kernels.link import Link
from ttsnn.passes.training_kernels.lowering import rewrite_functions

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
        kernels = CpuKernels(bb, self.target)
        return rewrite_functions(mod, bb, lambda func: _CpuLowering(bb, kernels, func))


class _CpuLowering(ConvLowering):
    """Chains of a tensor-train layer in one kernel, and products of matrices."""

    handlers: ClassVar = {**ConvLowering.handlers, **LINEAR_HANDLERS}

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
            again = self.k.goes_image_by_image(links, known_dims(x)[1], dtype_of(cores[0]))
            first = 1 if again and count > 1 else 0
            known = [x, *(self.k.chain(links[:count], x, cores, first) if count else [])]
            self.chains[key] = known
        return known

    def chain_result(
        self, call: relax.Call, part: int, links: list[Link], x: relax.Var
    ) -> relax.Var:
        """See :class:`ConvLowering`."""
        return self._tt_inputs(call, part, links, x, True)[len(links)]

    def chain_grads(
        self,
        call: relax.Call,
        part: tuple[int, int, int],
        links: list[Link],
        x: Image,
        to_x: bool,
    ) -> tuple[relax.Var, list[list[relax.Var]]]:
        """See :class:`ConvLowering`."""
        number, begin, end = part
        cores, dy = [self.get(g) for g in call.args[1:5]], call.args[5]
        ins = self._tt_inputs(call, number, links, self._part(x, begin, end), False)[: len(links)]
        whole = to_x and self.k.goes_image_by_image(links, end - begin, dtype_of(cores[0]))
        pending = self.pending(dy) if (begin, end) == (0, x.sizes[0]) else None
        if whole and isinstance(pending, BatchNormGrad):
            return self.k.chain_backward(links, ins, pending, cores)
        g = self._part(self.known_image(dy), begin, end)
        if whole:
            return self.k.chain_backward(links, ins, g, cores)
        return self._by_links(links, ins, g, cores, to_x)

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
        return outs[-1], [self.k.weight_grads(link, x, g) for link, x, g in each]
