"""A layer as MetaSchedule knows it: a function that stands for all its forms and tiles.

MetaSchedule keys its database by a module. Ours holds the layer's config (unmerged, plain
weights, no name) as an attribute, the arguments that any form of its kernel takes, and one empty
block, on which the search leaves its decisions. The kernel itself is written when a candidate is
built (:mod:`ttsnn.passes.cpu.tuning.kernel`).
"""

from __future__ import annotations

import json
from dataclasses import replace

import tvm
from tvm import tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.tirx import Evaluate, IntImm, PrimFunc

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.pack import packed_config
from ttsnn.passes.cpu.kernels.signature import (
    CONFIG_ATTR,
    LayerParams,
    operand_shapes,
    result_shapes,
)
from ttsnn.passes.cpu.layer_config import LayerConfig
from ttsnn.passes.cpu.tuning.forms import forms_of_layer

THREADS = "ttsnn.threads"
"""Function attribute: CPU threads that the layer is measured with."""

__all__ = ["anonymous", "layer_of", "measured_params", "workload", "workload_key"]


def anonymous(config: LayerConfig) -> LayerConfig:
    """A config without the layer's name: equal layers of a network are one."""
    return replace(config, name="layer")


def workload_key(config: LayerConfig, batch: int | None) -> str:
    """Text that is equal for layers that may share what was measured."""
    return json.dumps([batch, anonymous(config).to_json()])


def workload(config: LayerConfig, batch: int, isa: Isa, threads: int) -> tvm.IRModule:
    """The module of a layer with plain weights and an unmerged chain, run on so many threads."""
    config = anonymous(config)
    params = measured_params(config, batch, isa)
    block = SBlock([], [], [], "root", Evaluate(IntImm("int32", 0)))
    func = PrimFunc(list(params.all), SBlockRealize([], IntImm("bool", 1), block))
    for key, value in {
        "global_symbol": "main",
        "tirx.noalias": True,
        "s_tir": True,
        CONFIG_ATTR: config.to_json(),
        THREADS: threads,
    }.items():
        func = func.with_attr(key, value)
    return tvm.IRModule({"main": func})


def layer_of(mod: tvm.IRModule) -> tuple[LayerConfig, int, int]:
    """Config, batch and threads of a module that :func:`workload` made."""
    func = mod["main"]
    config = LayerConfig.from_json(str(func.attrs[CONFIG_ATTR]))
    return config, int(func.params[0].shape[1]), int(func.attrs[THREADS])


def measured_params(config: LayerConfig, batch: int, isa: Isa) -> LayerParams:
    """Arguments that serve every form: as many weights as the longest chain has, each as long as
    any form's at its place. A kernel reads the front of those that it has.
    """
    sizes: dict[str, tuple] = {}
    for form in forms_of_layer(config).values():
        for name, shape in operand_shapes(packed_config(form, isa), batch):
            if len(shape) > 1 or name == "bias":
                sizes[name] = shape
            else:
                sizes[name] = (max(shape[0], *sizes.get(name, shape)),)
    # weights first, as every form declares them: a longer chain has more of them than the first
    order = sorted(sizes, key=lambda n: ("w" not in n, n) if n != "x" else (False, ""))

    def declare(name: str, shape: tuple) -> tirx.Var:
        return tirx.decl_buffer([IntImm("int64", s) for s in shape], config.dtype, name)

    return LayerParams(
        {name: declare(name, sizes[name]) for name in order},
        {name: declare(name, shape) for name, shape in result_shapes(config, batch)},
        IntImm("int64", batch),
    )
