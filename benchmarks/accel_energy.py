"""Where the accelerator's energy and time go: modes, architectures, each compiler idea by itself.

For every network, phase, mode (dense, stt, ptt; htt) and architecture: everything switched on, each
idea switched off by itself, none. Only time and events are simulated (no values): spikes are 1 as
often as ``--firing-rate`` says, no other number is zero. Writes ``NAME.json``, ``NAME.md`` (the
tables that ``docs/accelerator.md`` quotes) and ``NAME.png``.

    python benchmarks/accel_energy.py --networks ms_resnet34 --modes ptt --techs sata16 sata28 \\
        --name accel_energy_resnet34 --out benchmarks/results
    python benchmarks/accel_energy.py --networks ms_resnet34 --modes stt ptt htt \\
        --phases training --techs sata16 sata28 --ideas all 'without fusion' 'without updates'
    python benchmarks/accel_energy.py --modes dense stt --phases inference --archs sata --ideas all
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.tech import load_technology
from ttsnn.runtime.simulation import attribution, prepare
from ttsnn.sources import ModelOptions, resolve

DATASETS = {"ms_resnet18": "cifar10", "ms_resnet34": "ncaltech101"}
MODES = ("dense", "stt", "ptt", "htt")
KEPT = ("cycles", "energy_nj", "macs", "executed", "dram_bytes", "utilization", "instructions")


def simulate_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each network, phase, mode, architecture, technology and set of ideas."""
    for network in args.networks:
        source = resolve(network, ModelOptions(dataset=DATASETS.get(network)))
        for phase in args.phases:
            for mode in args.modes:
                workload = prepare(
                    source,
                    phase=phase,
                    plan=None if mode == "dense" else "paper",
                    mode="ptt" if mode == "dense" else mode,
                    init="fresh",
                    timing_only=True,
                    firing_rate=args.firing_rate,
                    operand_rate=args.operand_rate,
                )
                for arch in args.archs:
                    techs = [load_technology(t) for t in args.techs]
                    runs = attribution(workload, load_architecture(arch), techs, args.ideas)
                    for ideas, tech, report in runs:
                        yield {
                            "network": network,
                            "phase": phase,
                            "mode": mode,
                            "arch": arch,
                            "tech": tech,
                            "ideas": ideas,
                            **{name: report[name] for name in KEPT if name in report},
                            **({"error": report["error"]} if "error" in report else {}),
                        }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Tables: one for each network, phase and technology."""
    out = []
    groups = dict.fromkeys((r["network"], r["phase"], r["tech"]) for r in rows)
    for group in groups:
        mine = [r for r in rows if (r["network"], r["phase"], r["tech"]) == group]
        first = next(r for r in mine if "error" not in r)
        out += [
            f"### {group[0]}, {group[1]}, {group[2]}\n",
            "| mode | architecture | ideas | cycles | energy, µJ | compute | SRAM | DRAM | "
            "DRAM, MB | PEs in use | cycles, vs first | energy, vs first |",
            "| --- " * 12 + "|",
        ]
        for r in mine:
            if "error" in r:
                out.append(f"| {r['mode']} | {r['arch']} | {r['ideas']} | {r['error']} |")
                continue
            e = r["energy_nj"]
            out.append(
                f"| {r['mode']} | {r['arch']} | {r['ideas']} | {r['cycles']:,} | "
                f"{e['total'] / 1e3:,.1f} | {e['compute'] / 1e3:,.1f} | "
                f"{(e['sram'] + e['scratchpad'] + e['link']) / 1e3:,.1f} | "
                f"{e['dram'] / 1e3:,.1f} | {r['dram_bytes'] / 1e6:,.2f} | "
                f"{100 * r['utilization']:.0f} % | "
                f"{100 * (r['cycles'] / first['cycles'] - 1):+.1f} % | "
                f"{100 * (e['total'] / first['energy_nj']['total'] - 1):+.1f} % |"
            )
        out.append("")
    return "\n".join(out)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Energy of everything on and of nothing on, in bars."""
    from ttsnn.accel_target.plots import plot_energy

    shown = {
        f"{r['network']}\n{r['phase']}\n{r['mode']}, {r['arch']}\n{r['ideas']}": r
        for r in rows
        if "error" not in r and r["ideas"] in ("all", "none") and r["tech"] == rows[0]["tech"]
    }
    plot_energy(shown, path)


def main() -> None:
    """Simulate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["ms_resnet18"])
    parser.add_argument("--phases", nargs="+", default=["inference", "training"])
    parser.add_argument("--modes", nargs="+", default=["dense", "stt", "ptt"], choices=MODES)
    parser.add_argument("--archs", nargs="+", default=["sata", "ttsnn4"])
    parser.add_argument("--techs", nargs="+", default=["sata16"])
    parser.add_argument("--ideas", nargs="+", help='"all", "none", "without fusion" … (every one)')
    parser.add_argument("--firing-rate", type=float, default=0.1)
    parser.add_argument(
        "--operand-rate", type=float, default=1.0, help="share of other operands that are not zero"
    )
    parser.add_argument("--out", type=Path, help="folder for the files")
    parser.add_argument("--name", default="accel_energy", help="of the files")
    args = parser.parse_args()
    rows = list(simulate_all(args))
    text = markdown(rows)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        data = {
            "firing_rate": args.firing_rate,
            "operand_rate": args.operand_rate,
            "plan": "paper",
            "batch": 1,
            "runs": rows,
        }
        (args.out / f"{args.name}.json").write_text(json.dumps(data, indent=1) + "\n")
        (args.out / f"{args.name}.md").write_text(text)
        plot(rows, args.out / f"{args.name}.png")


if __name__ == "__main__":
    main()
