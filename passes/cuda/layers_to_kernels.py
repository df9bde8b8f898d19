"""LayersToKernels: layers become calls of GPU kernels, one launch for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.tirx import IntImm

from ttsnn.errors import PassError
from ttsnn.passes.cuda.gpu import Gpu, gpu_of
from ttsnn.passes.cuda.kernels.conv import conv_kernel
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Segment, result_shapes
from ttsnn.passes.cuda.kernels.conv_tile import default_tile
from ttsnn.passes.layers import layer_config_of
from ttsnn.passes.layers.config import LayerConfig, Stage, useful_taps
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.schedule_kernels import LAYERS
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.static_values import op_name

__all__ = ["LayersToKernels"]

SPIKES = "uint8"
"""How spikes go from layer to layer."""


@tvm.transform.module_pass(opt_level=0, name="LayersToKernels")
class LayersToKernels(ModulePass):
    """``relax.snn.layer`` → ``call_tir`` of a kernel for each stage of its chain.

    The first core of a tensor-train layer, its cross (both branches as one convolution), and its
    last core with bias, residual and neuron are a launch each; what htt does differently in some
    timesteps is a launch of its own but for the last. Ranks are padded with zeros to whole
    vectors; taps that never meet the image are dropped. Spikes that another layer reads are
    bytes. Equal kernels are shared.

    Args:
        target: the GPU.
        precision: how float32 operands of products are rounded, ``PRECISIONS`` of
            ``kernels/mma.py``; sums and membranes stay float32.
    """

    def __init__(self, target: tvm.target.Target, precision: str = "fp32") -> None:
        self.target = target
        self.precision = precision

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        lowering = _Lowering(mod, gpu_of(self.target), self.precision)
        out = lowering.run()
        for made in lowering.made.values():
            out.update_func(made.gvar, made.func.with_attr(LAYERS, made.layers))
        return prune(out)


@dataclass
class _Made:
    """A kernel and the names of the layers that use it."""

    gvar: tvm.ir.GlobalVar
    func: tirx.PrimFunc
    layers: list[str]


@dataclass(frozen=True)
class _Value:
    """A new expression and its dtype."""

    expr: relax.Expr
    dtype: str


class _Lowering(BindingRewriter):
    def __init__(self, mod: tvm.IRModule, gpu: Gpu, precision: str) -> None:
        super().__init__(mod)
        self.gpu, self.precision = gpu, precision
        self.made: dict[tuple, _Made] = {}
        self._spikes: dict[relax.Var, relax.Var] = {}  # original → bytes
        self._results: dict[relax.Var, list[relax.Var]] = {}
        self._padded: dict[tuple, relax.Expr] = {}
        self._read = {  # what layers read
            arg
            for value in self.bound.values()
            if op_name(value) == "relax.snn.layer"
            for arg in _images(value)
        }

    # -- values that are bytes ---------------------------------------------------------------

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if op_name(value) == "relax.snn.layer":
            return self._layer(var, value)
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in self._results:
            return self._hold(var, self._results[value.tuple_value][value.index])
        if isinstance(value, relax.Var) and value in self._spikes:
            return self._hold(var, self._spikes[value])
        return self.get(value)

    def materialise(self, var: relax.Var) -> relax.Expr:
        """The value as those want it that are no layer: in the network's dtype."""
        if var in self._results:
            fields = [
                self._widened(out, ty)
                for out, ty in zip(self._results[var], var.ty.fields, strict=True)
            ]
            return self.emit(relax.Tuple(fields))
        return self._widened(self._spikes[var], var.ty)

    def _widened(self, value: relax.Var, ty: relax.TensorType) -> relax.Var:
        if str(value.ty.dtype) == str(ty.dtype):
            return value
        return self.emit(relax.op.astype(value, str(ty.dtype)))

    def _hold(self, var: relax.Var, value: relax.Var) -> relax.Expr | None:
        if str(value.ty.dtype) != SPIKES:
            return value
        self._spikes[var] = value
        return None

    def _image(self, expr: relax.Expr) -> _Value:
        if isinstance(expr, relax.Var) and expr in self._spikes:
            return _Value(self._spikes[expr], SPIKES)
        return _Value(self.get(expr), str(expr.ty.dtype))

    def _wants_bytes(self, var: relax.Var, index: int, count: int) -> bool:
        if count == 1:
            return var in self._read
        items = (v for v, e in self.bound.items() if isinstance(e, relax.TupleGetItem))
        return any(
            self.bound[v].tuple_value == var and self.bound[v].index == index and v in self._read
            for v in items
        )

    # -- layers ------------------------------------------------------------------------------

    def _layer(self, var: relax.Var, call: relax.Call) -> relax.Expr | None:
        config = layer_config_of(call)
        chains = [config.stages, *([config.half_stages] if config.half_stages else [])]
        count = sum(map(len, chains))
        rest = list(call.args[1 + count :])
        x = self._image(call.args[0])
        weights = self._weights(config, list(call.args[1 : 1 + count]))
        ranges = [(0, config.timesteps), (config.timesteps, config.T)][: len(chains)]
        segments, operands = [], []
        for (begin, end), stages in zip(ranges, chains, strict=True):
            mine = [weights.pop(0) for _ in stages]
            if end > begin:
                last, value = self._chain(config, mine, x, begin, end)
                segments.append(last)
                operands += [value.expr, mine[-1][1]]
        bias = [self.get(rest.pop(0))] if config.bias else []
        side = [self._image(rest.pop(0))] if config.residual else []
        v0 = [self.get(rest.pop(0))] if config.v0 else []
        small = self._wants_bytes(var, _index(config.emit), len(config.emit))
        spec = ConvSpec(
            segments=tuple(segments),
            T=config.T,
            bias=config.bias,
            residual_T=config.residual_T if side else 0,
            residual_dtype=side[0].dtype if side else config.dtype,
            lif=config.lif,
            v0=config.v0,
            emit=config.emit,
            dtype=config.dtype,
            spikes_dtype=SPIKES if small else config.dtype,
            precision=self._precision(config),
        )
        operands += [*bias, *(s.expr for s in side), *v0]
        out = self._call(spec, config.name, operands)
        if len(out) == 1:
            return self._hold(var, out[0])
        self._results[var] = out
        return None

    def _precision(self, config: LayerConfig) -> str:
        if self.precision != "fp32" and config.dtype != "float32":
            raise PassError(
                f"layer {config.name}: precision={self.precision} is for float32 networks, this "
                f"one is {config.dtype}; compile with dtype='float32', or without precision"
            )
        return self.precision

    def _chain(
        self,
        config: LayerConfig,
        stages: Sequence[tuple[Stage, relax.Expr]],
        x: _Value,
        begin: int,
        end: int,
    ) -> tuple[Segment, _Value]:
        """Emit all stages but the last; the last one as a segment, and what it reads."""
        x_steps, x_begin = config.x_T, begin if config.x_T > 1 else 0
        for stage, weight in stages[:-1]:
            steps = 1 if x_steps == 1 else end - begin
            part = Segment(stage, 0, steps, x_steps, x_begin, x.dtype)
            spec = ConvSpec(
                segments=(part,),
                T=steps,
                bias=False,
                residual_T=0,
                residual_dtype=config.dtype,
                lif=None,
                v0=False,
                emit=("membrane",),
                dtype=config.dtype,
                spikes_dtype=config.dtype,
                precision=self._precision(config),
            )
            (out,) = self._call(spec, config.name, [x.expr, weight])
            x, x_steps, x_begin = _Value(out, config.dtype), steps, 0
        return Segment(stages[-1][0], begin, end, x_steps, x_begin, x.dtype), x

    def _weights(
        self, config: LayerConfig, weights: list[relax.Expr]
    ) -> list[tuple[Stage, relax.Expr]]:
        """Stages and weights with padded ranks, without useless taps."""
        lanes = self.gpu.vector(config.dtype)
        out = []
        for stages in (config.stages, config.half_stages):
            for i, stage in enumerate(stages):
                weight = weights.pop(0)
                cin = stage.in_channels if i == 0 else _up(stage.in_channels, lanes)
                last = i == len(stages) - 1
                cout = stage.out_channels if last else _up(stage.out_channels, lanes)
                taps = useful_taps(stage)
                new = replace(
                    stage,
                    taps=tuple(stage.taps[k] for k in taps),
                    in_channels=cin,
                    out_channels=cout,
                )
                if new != stage:
                    weight = self._pad(config, weight, taps, cin, cout)
                out.append((new, self.get(weight) if new == stage else weight))
        return out

    def _pad(
        self, config: LayerConfig, weight: relax.Expr, taps: list[int], cin: int, cout: int
    ) -> relax.Expr:
        key = (weight, tuple(taps), cin, cout)
        if key not in self._padded:
            old = self.static(weight)
            assert old is not None  # layers are made of parameters
            new = np.zeros((len(taps), cin, cout), old.dtype)
            new[:, : old.shape[1], : old.shape[2]] = old[taps]
            name = self.name_of(weight) or f"{config.name}.weight"
            self._padded[key] = self.fresh_param(f"{name}.padded", new)
        return self._padded[key]

    def _call(self, spec: ConvSpec, layer: str, operands: list[relax.Expr]) -> list[relax.Var]:
        size = known_dims(operands[0])[1]
        batch = int(size) if isinstance(size, int | IntImm) else None
        key = (spec, batch)
        if key not in self.made:
            tile = default_tile(spec, batch, self.gpu)
            func = conv_kernel(spec, batch, tile, self.gpu)
            self.made[key] = _Made(self.builder_.add_func(func, "conv"), func, [])
        made = self.made[key]
        if layer not in made.layers:
            made.layers.append(layer)
        types = [relax.TensorType(shape, dtype) for shape, dtype in result_shapes(spec, size)]
        out = self.emit(relax.call_tir(made.gvar, operands, types if len(types) > 1 else types[0]))
        if len(types) == 1:
            return [out]
        return [self.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]


def _images(call: relax.Call) -> list[relax.Expr]:
    """Operands of a layer that may be spikes: its input and its residual."""
    config = layer_config_of(call)
    out = [call.args[0]]
    if config.residual:
        at = 1 + len(config.stages) + len(config.half_stages) + config.bias
        out.append(call.args[at])
    return out


def _index(emit: Sequence[str]) -> int:
    return emit.index("spikes") if "spikes" in emit else -1


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
