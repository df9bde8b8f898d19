"""The simulator against what single layers cost by hand, and against what must always hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import tvm

from ttsnn.accel_target.arch import Architecture, load_architecture
from ttsnn.accel_target.codegen.choose import choose
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options, Variant
from ttsnn.accel_target.events import SimulationResult, event_index
from ttsnn.accel_target.isa import Op
from ttsnn.accel_target.report import least_cycles
from ttsnn.accel_target.simulate import simulate

PRODUCTS = ("mac8", "mac16", "acc", "gated")
T, N, SIZE, CHANNELS, RANK = 3, 2, (7, 6), (10, 14), 5


def products(result: SimulationResult) -> dict[tuple[str, str, str], int]:
    """(layer, phase, role) → products of the dense loops."""
    columns = [event_index(name) for name in PRODUCTS]
    found: dict[tuple[str, str, str], int] = {}
    for tag, count in zip(result.tags, result.counts[:, :, columns].sum(axis=(1, 2))):
        if count:
            key = (tag.layer, tag.phase, tag.role)
            found[key] = found.get(key, 0) + int(count)
    return found


def expected_products(
    forms: ModuleType, mode: str, options: Options, variants: dict[str, Variant]
) -> dict:
    """The same, by hand, of a training step of ``networks.network``.

    What is computed again is computed once more, and only what the layer's variant names: the
    chain's result in the forward (``again``), its intermediates (``recompute``) and its result
    (``output``) in the backward. A batch norm on the cores (``norm``) has small products of its
    own, and does not compute the last intermediate again.
    """
    c1, c2 = CHANNELS
    chains = {}
    for layer, cin, cout, stride in (("conv1", c1, c1, 1), ("conv2", c1, c2, 2)):
        kinds = {"htt": ("ptt", "half")}.get(mode, (mode, mode))
        if mode == "ptt" and not options.merge_cross:
            kinds = ("branches", "branches")
        full = (T + 1) // 2 if mode == "htt" else T
        total: dict[str, int] = {}
        inner = {}  # what the operands of a chain's last but one core are computed with
        for kind, steps in zip(kinds, (full, T - full)):
            cores = forms.chain_macs(kind, cin, RANK, cout, SIZE, stride)
            for core, macs in cores.items():
                total[core] = total.get(core, 0) + macs * steps * N
            for core in {"stt": ("g1", "g2"), "half": ()}.get(kind, ("g1",)):
                inner[core] = inner.get(core, 0) + cores[core] * steps * N
        chains[layer] = total, inner, cout
    out = {}
    for layer, (cores, inner, cout) in chains.items():
        if variants[layer].norm:
            pixels = cores["g4"] // (RANK * cout)
            square = RANK * RANK
            out[layer, "forward", "cov"] = square * pixels
            out[layer, "forward", "bn"] = (square + RANK) * cout
            # M, k, S Wᵀ, the column of Σh and its product with ȳ
            out[layer, "backward", "bn"] = (2 * square + 2 * RANK) * cout + RANK
            out[layer, "backward", "dnorm"] = square * pixels
        for core, macs in cores.items():
            out[layer, "backward", f"w{core}"] = macs
        if mode == "ptt" and not options.merge_cross:  # both branches' products in one step
            cores = {"g1": cores["g1"], "cross": cores["g2"] + cores["g3"], "g4": cores["g4"]}
        for core, macs in cores.items():
            v = variants[layer]
            out[layer, "backward", f"d{core}"] = macs
            out[layer, "forward", core] = macs * (2 if v.again else 1)
            if v.norm and v.recompute and core in inner:
                out[layer, "backward", core] = inner[core]
            elif (v.fused and v.recompute and core != "g4" and not v.norm) or v.output:
                out[layer, "backward", core] = macs
    stem = T * N * forms.conv_macs(3, c1, 3, SIZE)
    short = T * N * forms.conv_macs(c1, c2, 1, SIZE, 2)
    out["stem", "forward", "conv"] = stem  # has no gradient of its input
    for phase, role in (("forward", "conv"), ("backward", "dx"), ("backward", "dw")):
        out["short", phase, role] = short
    for phase, role in (("forward", "linear"), ("head", "dx"), ("head", "dw")):
        out["fc", phase, role] = N * c2 * 4
    return out


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
@pytest.mark.parametrize("arch", ["sata", "ttsnn4"])
@pytest.mark.parametrize("off", ["", "fusion", "recompute", "merge_cross", "neurons", "norms"])
def test_every_product_is_computed_once(
    closed_forms: ModuleType, networks: ModuleType, mode: str, arch: str, off: str
) -> None:
    """Of each core, phase and layer: as many as the closed form says, gated ones included."""
    if off == "merge_cross" and mode != "ptt":
        pytest.skip("has no two branches")
    options = Options(**({off: False} if off else {}))
    mod = networks.train_step(
        networks.network(mode, T=T, N=N, size=SIZE, channels=CHANNELS, rank=RANK)
    )
    machine = load_architecture(arch)
    result = simulate(compile_program(mod, machine, options), machine)
    chosen = choose(mod, machine, options).variants
    variants = {n: chosen if isinstance(chosen, Variant) else chosen[n] for n in ("conv1", "conv2")}
    if not options.recompute:
        assert not any(v.recompute or v.output for v in variants.values())
    found = products(result)
    expected = expected_products(closed_forms, mode, options, variants)
    stem = [v for (_, phase, role), v in found.items() if (phase, role) == ("backward", "dw")]
    assert expected["stem", "forward", "conv"] in stem  # its weight's gradient
    for key, count in expected.items():
        assert found[key] == count, key
    whole = sum(expected.values()) + expected["stem", "forward", "conv"]
    assert sum(found.values()) == result.macs == whole


@pytest.mark.parametrize("dataflow", ["os", "ws"])
@pytest.mark.parametrize(
    ("size", "weight", "padding"),
    [  # SCALE-Sim's shapes, as m, n, k: (1024, 24, 64) and (960, 24, 72)
        ((32, 32), (24, 64, 1, 1), (0, 0)),
        ((30, 32), (24, 24, 3, 1), (1, 0)),
        ((5, 3), (7, 11, 1, 1), (0, 0)),
    ],
)
def test_array_cycles_are_the_closed_form(
    closed_forms: ModuleType,
    networks: ModuleType,
    dataflow: str,
    size: tuple,
    weight: tuple,
    padding: tuple,
) -> None:
    """Of every tile; together they are the layer, and no faster than it is in one piece."""
    sata = load_architecture("sata")
    arch = dataclasses.replace(
        sata, clusters=(dataclasses.replace(sata.clusters[0], dataflow=dataflow),)
    )
    program = compile_program(
        networks.convolution((1, 1, weight[1], *size), weight, padding=padding), arch
    )
    result = simulate(program, arch)
    busy = dict(zip([u.name for u in result.units], result.busy.tolist()))["compute.array"]
    k = weight[1] * weight[2] * weight[3]
    tiles = []
    for row in program.instructions[program.instructions["op"] == Op.GEMM]:
        box = program.descriptors[row["dst"]]
        tiles.append((int(box["f"] * box["h"] * box["w"]), int(box["c"])))
    assert busy == sum(closed_forms.gemm_cycles(m, n, k, 16, 8, dataflow) for m, n in tiles)
    assert sum(m * n for m, n in tiles) == size[0] * size[1] * weight[0]
    whole = closed_forms.gemm_cycles(size[0] * size[1], weight[0], k, 16, 8, dataflow)
    assert busy == whole if len(tiles) == 1 else busy >= whole


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_accumulates_are_those_of_the_spikes(
    closed_forms: ModuleType, networks: ModuleType, kernel: int, stride: int
) -> None:
    """Executed and gated, from spikes that are known: one step, far from the threshold."""
    rng = np.random.default_rng(0)
    shape, cout = (1, 2, 5, 9, 6), 7
    spikes = (rng.random(shape) < 0.3).astype(float)
    weight = (cout, 5, kernel, kernel)
    mod = networks.convolution(shape, weight, stride=stride, padding=kernel // 2, spiking=True)
    sata = load_architecture("sata")
    values = {"x": spikes * 4 - 1, "w": rng.normal(size=weight)}
    result = simulate(compile_program(mod, sata), sata, values=values)
    out = closed_forms.out_size(shape[3:], kernel, stride)
    taps = closed_forms.square_taps(kernel)
    active = closed_forms.active_accumulates(spikes, cout, taps, stride, out)
    assert result.total("acc") == active
    dense = 2 * closed_forms.conv_macs(5, cout, kernel, shape[3:], stride)
    assert result.total("gated") == dense - active
    assert result.total("mac8", "mac16") == 0
    assert list(result.density.values()) == [spikes.mean()]


Case = tuple[SimulationResult, Architecture, tvm.IRModule, Callable]


@pytest.fixture(scope="module", params=["sata", "ttsnn4"])
def case(request: pytest.FixtureRequest, networks: ModuleType) -> Case:
    """A training step, simulated with values; and a simulator of it on changed machines."""
    arch = load_architecture(request.param)
    net = networks.network("ptt", T=T, N=N, size=(12, 12), channels=(16, 24), rank=8)
    mod = networks.train_step(net)
    program = compile_program(mod, arch)

    def again(changed: Architecture) -> SimulationResult:
        """The same program; only its label is renewed."""
        same = dataclasses.replace(program, fingerprint=changed.fingerprint)
        return simulate(same, changed)

    return simulate(program, arch, values=networks.values_of(mod)), arch, mod, again


def test_values_move_products_between_executed_and_gated_only(case: Case) -> None:
    result, arch, _, again = case
    assumed = again(arch)
    assert products(result) == products(assumed)
    columns = [i for i in range(result.counts.shape[2]) if i not in map(event_index, PRODUCTS)]
    assert np.array_equal(result.counts[..., columns], assumed.counts[..., columns])
    assert result.cycles == assumed.cycles
    assert 0 < result.total("gated") < result.macs


def test_all_is_fired_or_nothing(networks: ModuleType) -> None:
    """The firing rate moves accumulates alone."""
    sata = load_architecture("sata")
    program = compile_program(networks.train_step(networks.network("ptt", T=T, N=N)), sata)
    silent, full = (simulate(program, sata, firing_rate=r) for r in (0.0, 1.0))
    assert silent.total("acc") == 0
    assert full.total("gated") == 0
    assert full.total("acc") == silent.total("gated") > 0
    assert full.total("mac8") == silent.total("mac8") > 0


def test_operands_that_are_taken_to_be_zero_are_gated(networks: ModuleType) -> None:
    """The operand rate moves multiply-accumulates alone."""
    sata = load_architecture("sata")
    program = compile_program(networks.train_step(networks.network("ptt", T=T, N=N)), sata)
    some, full = (simulate(program, sata, operand_rate=r) for r in (0.25, 1.0))
    assert some.total("acc") == full.total("acc") > 0
    assert abs(some.total("mac8") / full.total("mac8") - 0.25) < 5e-3
    assert some.cycles == full.cycles
    assert some.macs == full.macs


def test_links_lose_nothing(case: Case) -> None:
    result, _, _, _ = case
    assert result.total("link_sent") == result.total("link_received")


def test_dram_traffic_is_at_least_compulsory(case: Case, closed_forms: ModuleType) -> None:
    """Every parameter is read, and the new one written; so are input and results."""
    result, arch, mod, _ = case
    params = dict(mod.attrs["ttsnn.params"].items())
    bits = arch.words.weight
    reads = {k: (int(np.prod(v.shape)), bits) for k, v in params.items() if "running" not in k}
    read, write = closed_forms.compulsory_dram(reads, reads)
    assert result.total("dram_read") >= read
    assert result.total("dram_write") >= write


def test_cycles_lie_between_the_bounds(case: Case) -> None:
    """No faster than any unit or channel can be, no slower than one instruction at a time."""
    result, arch, _, _ = case
    bounds = least_cycles(result, arch)
    assert max(bounds.values()) <= result.cycles
    serial = int((result.end - result.start).sum()) + arch.dram.latency * len(result.start)
    assert result.cycles <= serial
    assert all(result.busy <= result.cycles)


@pytest.mark.parametrize("change", ["bandwidth", "latency", "banks", "lanes"])
def test_more_never_makes_a_program_slower(case: Case, change: str) -> None:
    result, arch, _, again = case
    changes = {
        "bandwidth": {"dram": dataclasses.replace(arch.dram, bytes_per_cycle=64.0)},
        "latency": {"dram": dataclasses.replace(arch.dram, latency=0)},
        "banks": {"clusters": tuple(dataclasses.replace(c, bank_width=128) for c in arch.clusters)},
        "lanes": {"vector": dataclasses.replace(arch.vector, lanes=64)},
    }
    faster = again(dataclasses.replace(arch, **changes[change]))
    assert faster.cycles <= result.cycles
    if change in ("bandwidth", "latency"):
        assert faster.cycles < result.cycles
    assert np.array_equal(faster.counts.sum(axis=0)[:, 4:], result.counts.sum(axis=0)[:, 4:])
