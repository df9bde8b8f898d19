"""Operands and results of a layer's kernel, shared by the op, its reference and its fast form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_size

__all__ = [
    "CONFIG_ATTR",
    "TILES_ATTR",
    "LayerParams",
    "layer_params",
    "operand_shapes",
    "result_shapes",
]

CONFIG_ATTR = "ttsnn.layer"
"""Function attribute with the LayerConfig as JSON, by which the rule knows its function."""

TILES_ATTR = "ttsnn.tiles"
"""Function attribute with the LayerTiles as JSON, where they were chosen before the rule."""

Shape = tuple[int | Expr, ...]


def _weight_shape(config: LayerConfig, stage: Stage) -> Shape:
    if config.packing is not None:
        return (packed_size(stage, config.packing[0]),)
    return (len(stage.taps), stage.in_channels, stage.out_channels)


def operand_shapes(config: LayerConfig, batch: int | Expr) -> list[tuple[str, Shape]]:
    """Name and shape of each operand, in order."""
    first, last = config.stages[0], config.stages[-1]
    image = (*last.out_size, last.out_channels)
    out: list[tuple[str, Shape]] = [
        ("x", (config.x_T, batch, *first.in_size, first.in_channels)),
    ]
    out += [(f"w{i}", _weight_shape(config, s)) for i, s in enumerate(config.stages)]
    out += [(f"half_w{i}", _weight_shape(config, s)) for i, s in enumerate(config.half_stages)]
    if config.bias:
        out.append(("bias", (last.out_channels,)))
    if config.residual:
        out.append(("residual", (config.residual_T, batch, *image)))
    if config.v0:
        out.append(("v0", (batch, *image)))
    return out


def result_shapes(config: LayerConfig, batch: int | Expr) -> list[tuple[str, Shape]]:
    """Name and shape of each result, in the order of ``emit``."""
    last = config.stages[-1]
    image = (batch, *last.out_size, last.out_channels)
    return [(name, image if name == "v_last" else (config.T, *image)) for name in config.emit]


@dataclass
class LayerParams:
    """Buffers of a kernel's arguments by name, and its batch size."""

    operands: dict[str, Var]
    results: dict[str, Var]
    batch: Expr

    @property
    def all(self) -> Sequence[Var]:
        """Arguments in order."""
        return [*self.operands.values(), *self.results.values()]


def layer_params(config: LayerConfig, batch: int | None) -> LayerParams:
    """Declare the arguments of a layer's function; ``batch`` None makes it symbolic."""
    n = Var("n", "int64") if batch is None else tirx.IntImm("int64", batch)

    def declare(name: str, shape: Shape) -> Var:
        shape = tuple(tirx.IntImm("int64", s) if isinstance(s, int) else s for s in shape)
        return tirx.decl_buffer(shape, config.dtype_of(name), name)

    return LayerParams(
        {name: declare(name, shape) for name, shape in operand_shapes(config, n)},
        {name: declare(name, shape) for name, shape in result_shapes(config, n)},
        n,
    )
