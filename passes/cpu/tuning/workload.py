"""A layer as MetaSchedule knows it: a function that stands for all its forms and tiles.

MetaSchedule keys its database by a module. Ours holds the layer's config (unmerged, plain
weights, no name) as an attribute, the arguments that any form of its kernel takes, and one empty
block, on which the search leaves its decisions. The kernel itself is written when a candidate is
built (:mod:`ttsnn.passes.cpu.tuning.kernel`).

Where it is known how often the layer's input spikes, the module says that too. It is then called
with many inputs, and has one more argument, which no kernel reads: a byte for each one in them.
MetaSchedule tells those who make arguments their shapes and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import tvm
from tvm import tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.tirx import Evaluate, IntImm, PrimFunc

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.pack import packed_config
from ttsnn.passes.cpu.tuning.forms import forms_of_layer
from ttsnn.passes.cpu.tuning.rates import measured_inputs
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.signature import CONFIG_ATTR, LayerParams, layer_params

THREADS = "ttsnn.threads"
"""Function attribute: CPU threads that the layer is measured with."""

RATE = "ttsnn.rate"
"""Function attribute: share of ones in the inputs that it is measured with, where that matters."""

__all__ = [
    "WorkloadKey",
    "anonymous",
    "layer_of",
    "measured_params",
    "workload",
    "workload_key",
]


class WorkloadKey(NamedTuple):
    """Equal for layers that may share what was measured.

    Attributes:
        layer: its config as JSON, without its name.
        batch: images; None: varies.
        rate: step of the firing rate (:mod:`~ttsnn.passes.cpu.tuning.rates`) that it is measured
            at; None: not known.
    """

    layer: str
    batch: int | None
    rate: float | None


def anonymous(config: LayerConfig) -> LayerConfig:
    """A config without the layer's name: equal layers of a network are one."""
    return replace(config, name="layer")


def workload_key(config: LayerConfig, batch: int | None, rate: float | None = None) -> WorkloadKey:
    """The key of a layer."""
    return WorkloadKey(anonymous(config).to_json(), batch, rate)


def workload(
    config: LayerConfig, batch: int, isa: Isa, threads: int, rate: float | None = None
) -> tvm.IRModule:
    """The module of a layer with plain weights and an unmerged chain, run on so many threads."""
    config = anonymous(config)
    params = measured_params(config, batch, isa, rate)
    block = SBlock([], [], [], "root", Evaluate(IntImm("int32", 0)))
    func = PrimFunc(list(params.all), SBlockRealize([], IntImm("bool", 1), block))
    attrs = {
        "global_symbol": "main",
        "tirx.noalias": True,
        "s_tir": True,
        CONFIG_ATTR: config.to_json(),
        THREADS: threads,
    }
    for key, value in (attrs if rate is None else attrs | {RATE: rate}).items():
        func = func.with_attr(key, value)
    return tvm.IRModule({"main": func})


def layer_of(mod: tvm.IRModule) -> tuple[LayerConfig, int, int, float | None]:
    """Config, batch, threads and rate of a module that :func:`workload` made."""
    func = mod["main"]
    config = LayerConfig.from_json(str(func.attrs[CONFIG_ATTR]))
    rate = float(func.attrs[RATE]) if RATE in func.attrs else None
    return config, int(func.params[0].shape[-4]), int(func.attrs[THREADS]), rate


def measured_params(
    config: LayerConfig, batch: int, isa: Isa, rate: float | None = None
) -> LayerParams:
    """Arguments that serve every form: as many weights as the longest chain has, each as long as
    any form's at its place. A kernel reads the front of those that it has.

    With a rate x is [inputs, x_T, N, H, W, C], and behind it comes ``ones``, as long as there are
    to be ones in x.
    """
    declared: dict[str, tuple[tuple[int, ...], str]] = {}
    results: dict[str, tirx.Var] = {}
    for form in forms_of_layer(config).values():
        own = layer_params(packed_config(form, isa), batch)
        results = own.results
        for name, buffer in own.operands.items():
            shape = tuple(int(s) for s in buffer.shape)
            before = declared.get(name, (shape, ""))[0]
            declared[name] = (max(shape, before), str(buffer.dtype))
    # weights behind the input, as every form declares them; a longer chain has more of them
    order = sorted(declared, key=lambda n: (False, "") if n == "x" else ("w" not in n, n))
    if rate is not None:
        shape, dtype = declared["x"]
        inputs = measured_inputs(math.prod(shape))
        declared["x"] = ((inputs, *shape), dtype)
        declared["ones"] = ((round(rate * inputs * math.prod(shape)),), "uint8")
        order.insert(1, "ones")
    return LayerParams(
        {
            name: tirx.decl_buffer([IntImm("int64", s) for s in shape], dtype, name)
            for name, (shape, dtype) in ((n, declared[n]) for n in order)
        },
        results,
        IntImm("int64", batch),
    )
