"""TT-SNN's published energies, in their own accounting and with what it leaves out.

Prints Markdown tables: the published figures beside :mod:`ttsnn.accel_target.sata_model`, closed
forms of the accounting behind them; the headline of 28.3 % with and without the fourth core of
every layer; SATA's training model for one layer. Exits with 1 where a figure is off by more than
its tolerance.

    python benchmarks/accel_published.py
    python benchmarks/accel_published.py --json
"""

from __future__ import annotations

import argparse
import json
import sys

from ttsnn.accel_target.sata_model import (
    Conv,
    InferenceEnergy,
    dense_resnet18,
    inference_energy,
    training_energy,
    tt_resnet,
)
from ttsnn.plans.paper import paper_networks

# Published results (github.com/RuokaiYin/SATA_Sim, inference-energy-cal/results/TT-SNN), mJ:
# compute, SRAM, DRAM of a forward pass.
PUBLISHED = {
    "resnet18 dense": (1.941645, 2.664071, 8.335825),
    "resnet18 stt": (0.447629, 0.610893, 3.079921),
    "resnet18 ptt": (0.447629, 0.610893, 3.152941),
    "resnet18 htt": (0.447629, 0.610893, 2.782434),
    "resnet34 stt": (1.926429, 2.367293, 9.593955),
    "resnet34 ptt, new architecture": (1.277932, 1.578410, 7.098634),
}
# SATA's training model, one 3×3 convolution 64→64 at 32×32, T 4, 8 bits, µJ.
TRAINING_SAMPLE = {
    "lif": 0.015, "mac_fwd": 0.300, "pgu": 0.071, "mac_bwd": 12.588, "mac_wup": 0.599,
    "dram_fwd": 9.220, "glb_fwd": 0.647, "spad_fwd": 0.019, "dram_bwd": 16.391, "glb_bwd": 3.778,
    "spad_bwd": 0.083, "dram_wup": 4.098, "glb_wup": 1.294, "spad_wup": 0.266,
}  # fmt: skip
HEADLINE = -28.32  # %, resnet34: "ptt on the new architecture" against stt on one array


def workloads() -> dict[str, tuple[list[Conv], int]]:
    """Name → layers, timesteps."""
    ranks = {n["name"]: n["ranks"] for n in paper_networks()}

    def resnet18(variant: str) -> tuple[list[Conv], int]:
        layers = tt_resnet(
            (2, 2, 2, 2), ranks["ms_resnet18"], size=32, in_channels=3, classes=10, variant=variant
        )
        return layers, 4

    def resnet34(variant: str) -> tuple[list[Conv], int]:
        layers = tt_resnet(
            (3, 4, 6, 3), ranks["ms_resnet34"], size=48, in_channels=2, classes=101, variant=variant
        )
        return layers, 6

    return {
        "resnet18 dense": (dense_resnet18(), 4),
        "resnet18 stt": resnet18("stt"),
        "resnet18 ptt": resnet18("ptt"),
        "resnet18 htt": resnet18("htt"),
        "resnet34 stt": resnet34("stt"),
        "resnet34 ptt": resnet34("ptt"),
        "resnet34 ptt, new architecture": resnet34("no_fourth"),
    }


def percent(new: float, old: float) -> float:
    """Change in %."""
    return 100 * (new / old - 1)


def figures() -> dict:
    """Everything that is printed."""
    model = {name: inference_energy(*workload) for name, workload in workloads().items()}
    stt34 = model["resnet34 stt"].total
    every = {n: inference_energy(*w, every_step=True).total for n, w in workloads().items()}
    single = training_energy(64, 64, (3, 3), 32, 4)
    cores = [
        training_energy(64, 24, (1, 1), 32, 4),
        training_energy(24, 24, (3, 1), 32, 4),
        training_energy(24, 24, (1, 3), 32, 4),
        training_energy(24, 64, (1, 1), 32, 4),
    ]
    return {
        "inference": {name: parts(e) for name, e in model.items()},
        "published": {
            name: {"compute": c, "sram": s, "dram": d, "total": c + s + d}
            for name, (c, s, d) in PUBLISHED.items()
        },
        "headline": {
            "published": HEADLINE,
            "fourth core left out": percent(model["resnet34 ptt, new architecture"].total, stt34),
            "fourth core charged": percent(model["resnet34 ptt"].total, stt34),
            "fourth core and the traffic of every timestep charged": percent(
                every["resnet34 ptt"], every["resnet34 stt"]
            ),
        },
        "stt against dense": {
            "published": percent(sum(PUBLISHED["resnet18 stt"]), sum(PUBLISHED["resnet18 dense"])),
            "model": percent(model["resnet18 stt"].total, model["resnet18 dense"].total),
            "the traffic of every timestep charged": percent(
                every["resnet18 stt"], every["resnet18 dense"]
            ),
        },
        "training": single,
        "training sample": TRAINING_SAMPLE,
        "training, four separate cores": {k: sum(c[k] for c in cores) for k in single},
    }


def parts(energy: InferenceEnergy) -> dict[str, float]:
    """Energies in mJ and the counts behind them."""
    return {
        "compute": energy.compute,
        "sram": energy.sram,
        "dram": energy.dram,
        "total": energy.total,
        "cycles": energy.cycles,
        "macs": energy.macs,
    }


def failures(data: dict) -> list[str]:
    """What is off: figures by more than 1 %, the headline by a point, the sample by its digits."""
    found = []
    for name, published in data["published"].items():
        for part, value in published.items():
            off = percent(data["inference"][name][part], value)
            if abs(off) > 1:
                found.append(f"{name}, {part}: {off:+.2f} %")
    if abs(data["headline"]["fourth core left out"] - HEADLINE) > 1:
        found.append(f"headline: {data['headline']['fourth core left out']:.2f} %")
    for name, value in TRAINING_SAMPLE.items():
        if abs(data["training"][name] - value) > 6e-4:
            found.append(f"training, {name}: {data['training'][name]:.4f} µJ")
    return found


def show(data: dict) -> None:
    """Print the tables."""
    print("| mJ, forward pass | compute | SRAM | DRAM | total | published | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, e in data["inference"].items():
        total = data["published"].get(name, {}).get("total")
        end = f"{total:.3f} | {percent(e['total'], total):+.1f} %" if total else "– | "
        print(
            f"| {name} | {e['compute']:.3f} | {e['sram']:.3f} | {e['dram']:.3f} | "
            f"{e['total']:.3f} | {end} |"
        )
    print("\n| resnet34, ptt against stt | |\n| --- | --- |")
    for name, value in data["headline"].items():
        print(f"| {name} | {value:+.2f} % |")
    print("\n| resnet18, stt against dense | |\n| --- | --- |")
    for name, value in data["stt against dense"].items():
        print(f"| {name} | {value:+.2f} % |")
    print("\n| µJ, training, 64→64 at 32×32 | dense | SATA's sample | rank 24, four cores |")
    print("| --- | --- | --- | --- |")
    for name, value in data["training"].items():
        four = data["training, four separate cores"][name]
        print(f"| {name} | {value:.3f} | {TRAINING_SAMPLE[name]:.3f} | {four:.3f} |")
    sums = [sum(data[k].values()) for k in ("training", "training sample")]
    four = sum(data["training, four separate cores"].values())
    print(f"| total | {sums[0]:.2f} | {sums[1]:.2f} | {four:.2f} |")


def main() -> int:
    """Print, and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    data = figures()
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        show(data)
    wrong = failures(data)
    for line in wrong:
        print(f"off: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
