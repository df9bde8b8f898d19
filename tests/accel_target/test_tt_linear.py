"""Tensor-train linear layers: values against PyTorch, products and cycles against closed forms."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from tvm import relax

from ttsnn import models
from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.events import SimulationResult, event_index
from ttsnn.accel_target.isa import DRAM, Flag, Format, Op, Pool
from ttsnn.accel_target.program import format_bits
from ttsnn.accel_target.sim.convolution import pool, pool_back
from ttsnn.accel_target.sim.cost import costs
from ttsnn.accel_target.sim.memory import Box, Memory
from ttsnn.accel_target.simulate import simulate
from ttsnn.errors import TargetError
from ttsnn.models.vgg import SpikingMLP, SpikingVGG
from ttsnn.ops import tt_linear
from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
from ttsnn.plans import TTLayer, TTPlan
from ttsnn.program import make_program, params_of
from ttsnn.runtime.training.network import Network, network_of


def _layer(out: tuple[int, ...], into: tuple[int, ...], ranks: tuple[int, ...]) -> TTLayer:
    return TTLayer("linear", "tt", ranks, out_factors=out, in_factors=into)


# Chains of one, two and three cores, odd sizes, behind an input, a neuron, a mean and an image.
PLANS = {
    "mlp": {
        "hidden.0.linear": _layer((3, 2, 2), (4, 3, 4), (3, 4)),
        "hidden.1.linear": _layer((10,), (12,), ()),
        "fc": _layer((2, 2), (2, 5), (2,)),
    },
    "vgg": {
        "classifier.0.linear": _layer((3, 5), (6, 8), (5,)),
        "classifier.1.linear": _layer((2, 1, 3), (3, 5, 1), (4, 2)),
    },
}
SIZES = {"mlp": (4, 6), "vgg": (12, 8)}


def _network(kind: str, T: int, N: int) -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    size, net = SIZES[kind], None
    if kind == "mlp":
        net = SpikingMLP((2, *size), 4, T, static_input=False, hidden=(12, 10))
    else:
        channels = (6, "M", 8, "M")  # six pixels of eight channels are flattened
        net = SpikingVGG(channels, (2, *size), 4, T, static_input=False, hidden=(15, 6))
    net = net.double()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.bias, 0.3, 0.1)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
    net = models.apply_plan(net, TTPlan(PLANS[kind]), init="fresh")
    x = torch.randn(T, N, 2, *size, dtype=torch.float64)
    return network_of(net, x, dtype="float64"), x


LABELS = torch.tensor([3, 1, 2])
CASES = [
    ("mlp", 3, 2, "ttsnn4", 1),
    ("mlp", 1, 2, "sata", 1),
    ("mlp", 2, 3, "sata", 256),
    ("vgg", 3, 2, "sata", 1),
    ("vgg", 2, 1, "ttsnn4", 32),
]


@pytest.mark.parametrize(("kind", "T", "N", "name", "share"), CASES)
def test_inference_is_that_of_pytorch(
    networks: ModuleType, pytorch: ModuleType, kind: str, T: int, N: int, name: str, share: int
) -> None:
    arch = networks.small(load_architecture(name), share)
    _, result = pytorch.check_inference(*_network(kind, T, N), arch)
    assert all(0 < d < 1 for d in result.density.values())


@pytest.mark.parametrize(("kind", "T", "N", "name", "share"), CASES)
def test_a_training_step_is_that_of_pytorch(
    networks: ModuleType, pytorch: ModuleType, kind: str, T: int, N: int, name: str, share: int
) -> None:
    arch = networks.small(load_architecture(name), share)
    pytorch.check_step(*_network(kind, T, N), LABELS[:N], arch)


@pytest.mark.parametrize("off", ["fusion", "recompute", "neurons", "updates", "lockstep"])
def test_ideas_can_be_switched_off(pytorch: ModuleType, off: str) -> None:
    options = Options(**{off: False})
    pytorch.check_step(*_network("vgg", 2, 1), LABELS[:1], load_architecture("ttsnn4"), options)


def _linear(out: tuple, into: tuple, ranks: tuple, T: int = 3, N: int = 2):
    """One layer on an input that is no spikes, T timesteps of N samples."""
    full = (1, *ranks, 1)
    shapes = [(full[k], m, n, full[k + 1]) for k, (m, n) in enumerate(zip(out, into))]
    x = relax.Var("x", relax.TensorType([T, N, int(np.prod(into))], "float64"))
    cores = [
        relax.Var(f"fc_cores_{k}", relax.TensorType(s, "float64")) for k, s in enumerate(shapes)
    ]
    bb = relax.BlockBuilder()
    with bb.function("main", [x, *cores], attrs={"num_input": 1}):
        with bb.dataflow():
            y = bb.emit_output(tt_linear(x, *cores))
        bb.emit_func_output(y)
    rng = np.random.default_rng(0)
    params = {f"fc.cores.{k}": rng.normal(size=s) for k, s in enumerate(shapes)}
    return make_program(bb.finalize()["main"], params).with_attr("ttsnn.meta", f'{{"T": {T}}}')


def test_products_are_those_of_the_closed_form(closed_forms: ModuleType) -> None:
    """Of each core, forward and both gradients, in a training step without recomputation."""
    T, N = 3, 2
    network, x = _network("mlp", T, N)
    mod = build_train_step(network.program(x), CrossEntropy(), SGD(momentum=0.9), hoist=False)
    arch = load_architecture("sata")
    result = simulate(compile_program(mod, arch, Options(recompute=False)), arch)
    found: dict[tuple[str, str], int] = {}
    for tag, macs in zip(result.tags, _macs_by_tag(result)):
        found[tag.layer, tag.role] = found.get((tag.layer, tag.role), 0) + macs
    for layer, plan in PLANS["mlp"].items():
        times = N if layer == "fc" else T * N  # behind the mean over time
        macs = closed_forms.linear_chain_macs(plan.out_factors, plan.in_factors, plan.ranks)
        for core, count in macs.items():
            assert found[layer, core] == found[layer, f"w{core}"] == times * count
            if (layer, core) != ("hidden.0.linear", "g1"):
                assert found[layer, f"d{core}"] == times * count
    assert result.macs == sum(found.values())


def _macs_by_tag(result: SimulationResult) -> list[int]:
    columns = [event_index(n) for n in ("mac8", "mac16", "acc", "gated")]
    return result.counts[:, :, columns].sum(axis=(1, 2)).astype(int).tolist()


def test_cycles_are_the_closed_form(closed_forms: ModuleType, networks: ModuleType) -> None:
    """Towards the input, a pixel is reached by one tap alone."""
    T, N, (m1, m2), (n1, n2), r = 1, 1, (6, 5), (7, 4), 3
    program = compile_program(_linear((m1, m2), (n1, n2), (r,), T, N), load_architecture("sata"))
    sata = load_architecture("sata")
    busy = simulate(program, sata).busy[6]
    want = closed_forms.gemm_cycles(n2, m1 * r, n1, 16, 8, "os")
    want += closed_forms.gemm_cycles(m1, m2, n2 * r, 16, 8, "os")
    assert busy == want
    back = program.instructions.copy()  # the first core's, from its result to its operand
    (first, _) = np.flatnonzero(back["op"] == Op.GEMM).tolist()
    back["flags"][first] |= int(Flag.TRANSPOSE)
    back["dst"][first], back["src0"][first] = back["src0"][first], back["dst"][first]
    busy = costs(program.with_instructions(back), sata).busy[first]
    assert busy == closed_forms.gemm_cycles(n1 * n2, 1, m1 * r, 16, 8, "os")


def test_values_of_a_layer_alone() -> None:
    """Against the dense weight."""
    mod = _linear((2, 3, 2), (3, 1, 4), (4, 5))
    arch = load_architecture("ttsnn4")
    cores, x = params_of(mod), np.random.default_rng(1).normal(size=(3, 2, 12))
    result = simulate(compile_program(mod, arch), arch, values={"x": x, **cores}, dtype="float64")
    weight = np.einsum("amnb,bpqc,crsd->mprnqs", *cores.values()).reshape(12, 12)
    (got,) = result.outputs.values()
    assert np.abs(got - x @ weight.T).max() <= 1e-13


def test_more_pixels_than_a_tap_can_reach_are_refused_by_name() -> None:
    mod = _linear((2, 2), (256, 256), (3,), 1, 1)
    with pytest.raises(TargetError, match=r"layer 'fc', tt.linear: core 0 .*65536.*exclude it"):
        compile_program(mod, load_architecture("sata"))


def test_flattening_has_the_order_of_the_network() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    taps = tuple((i, j) for i in range(3) for j in range(4))
    g = (3, 4, taps, 3, 4, 1, 1)
    y = pool(x, g, 0, 1, 0, Pool.FLAT)
    assert np.array_equal(y.reshape(2, -1), x.transpose(0, 3, 1, 2).reshape(2, -1))
    assert np.array_equal(pool_back(y, None, g, 0, 3, 0, Pool.FLAT), x)
    assert np.array_equal(pool_back(y, None, g, 1, 2, 0, Pool.FLAT), x[:, 1:])
    with pytest.raises(TargetError, match="all rows"):
        pool(x[:, 1:], g, 0, 1, 1, Pool.FLAT)


def test_bytes_can_be_read_in_another_width_once_they_are_there() -> None:
    arch = load_architecture("sata")
    memory = Memory((), format_bits(arch), "float64")
    builder = Builder(arch)

    def box(width: int, channels: int, c: int | None = None) -> Box:
        size, all_of_it = (2, 1, width, channels), (0, width)
        row = builder.tile(
            1, Format.GRADIENT, 64, size, (0, 2), (0, 1), all_of_it, (0, c or channels)
        )
        return Box.of(list(builder._descriptors)[row])

    assert box(3, 4).memory != DRAM
    value = np.arange(24.0).reshape(2, 1, 3, 4)
    memory.write(box(3, 4, 2), value[..., :2])
    with pytest.raises(TargetError, match="nothing of this shape"):
        memory.read(box(6, 2))  # half of it is not there
    memory.write(box(3, 4), value)
    assert np.array_equal(memory.read(box(6, 2)), value.reshape(2, 1, 6, 2))
    assert np.array_equal(memory.read(box(1, 12)), value.reshape(2, 1, 1, 12))
    with pytest.raises(TargetError, match="nothing of this shape"):
        memory.read(box(5, 2))
