"""Neurons and their gradients: part of the importer."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.graph import Image, Map
from ttsnn.accel_target.codegen.importing import Importing
from ttsnn.accel_target.isa import Format, Op
from ttsnn.accel_target.sim.neuron import encode_lif
from ttsnn.errors import TargetError
from ttsnn.ops import lif_attrs_of
from ttsnn.passes.static_values import op_name

__all__ = ["NeuronImport"]


class NeuronImport(Importing):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.slopes: dict[relax.Expr, tuple[Image, Image]] = {}

    def _snn_lif(self, call: relax.Call) -> Any:
        a = lif_attrs_of(call)
        x, v0 = self.get(call.args[0]), self.get(call.args[1])
        if a.decay_operand or a.threshold_operand:
            raise TargetError(
                f"target ttsnn-accel: the neuron after layer {self.layer!r} learns its decay or "
                "threshold, which the accelerator's neuron has as constants; compile for cpu"
            )
        if v0 != 0.0:
            raise TargetError(
                f"target ttsnn-accel: the neuron after layer {self.layer!r} carries its state "
                "from call to call; compile for cpu"
            )
        kind, scalars = encode_lif(a)
        s = self.image(f"{self.layer}.spikes", x, x.shape, self.options.spikes)
        outs = [s]
        if call.args[0] in self._trained:
            if not a.detach_reset or a.reset_timing != "after_fire":
                raise TargetError(
                    f"target ttsnn-accel: the gradient of the neuron after layer {self.layer!r} "
                    "(reset that is not detached, or not after firing); compile for cpu"
                )
            bits = Format.SPIKE if a.surrogate == "rectangle" else Format.ACTIVATION
            slope = self.image(
                f"{self.layer}.slope",
                x,
                x.shape,
                self.options.spikes if bits == Format.SPIKE else bits,
            )
            outs.append(slope)
            self.slopes[call.args[0]] = s, slope
        self.emit(
            Map(self.tag("lif"), Op.LIF, [x], outs, "lif", scalars=scalars, flags=kind, time=True)
        )
        return s, None

    @cached_property
    def _trained(self) -> set[relax.Expr]:
        """Operands of the neurons whose gradient the program has."""
        return {
            v.args[0]
            for v in self.relax.bindings.values()
            if isinstance(v, relax.Call) and op_name(v) == "relax.snn.lif_backward"
        }

    def _snn_lif_backward(self, call: relax.Call) -> Any:
        a = lif_attrs_of(call)
        ds = self.get(call.args[2])
        s, slope = self.slopes[call.args[0]]
        self.layer = self.layer_of.get(s.tensor, self.layer)
        kind, scalars = encode_lif(a)
        dx = self.image(f"{self.layer}.dv", s, s.shape, Format.GRADIENT)
        self.emit(
            Map(
                self.tag("lif"),
                Op.LIFB,
                [ds, s, slope],
                [dx],
                "gradient",
                scalars=scalars,
                flags=kind,
                time=True,
            )
        )
        return dx, None
