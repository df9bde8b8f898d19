"""Results as bars."""

from __future__ import annotations

import argparse
import json

from gpu.names import OURS, PEERS

LABEL = ("network", "mode", "batch", "T", "precision")


def plot(args: argparse.Namespace) -> int:
    """Draw how many times faster than each peer every case ran, a panel for each phase."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    report = json.loads(args.results.read_text())
    rows = [r for r in report["rows"] if len(r["results"]) > 1 and OURS in r["results"]]
    if not rows:
        print(f"gpu plot: {args.results} has no case of ttsnn beside a peer")
        return 2
    phases = list(dict.fromkeys(r["phase"] for r in rows))
    most = max(sum(r["phase"] == p for r in rows) for p in phases)
    size = (max(7.0, 0.8 * most + 2), 4.5 * len(phases))
    figure, panels = plt.subplots(len(phases), 1, figsize=size, squeeze=False)
    for axes, phase in zip(panels[:, 0], phases, strict=True):
        chosen = [r for r in rows if r["phase"] == phase]
        for i, peer in enumerate(PEERS):
            times = [(k, r["results"]) for k, r in enumerate(chosen) if peer in r["results"]]
            places = [k + (i + 0.5) / (len(PEERS) + 1) for k, _ in times]
            ratios = [t[peer]["ms"] / t[OURS]["ms"] for _, t in times]
            axes.bar(places, ratios, 1 / (len(PEERS) + 1), label=peer)
        axes.axhline(1, color="black", linewidth=0.8)
        names = ["\n".join([*(str(r[k]) for k in LABEL), *_graph(r)]) for r in chosen]
        axes.set_xticks([k + 0.5 for k in range(len(chosen))], names, fontsize=7)
        axes.set_yscale("log", base=2)
        title = f"{phase}, {report['device']}; network, mode, batch, T, precision"
        axes.set(title=title, ylabel="time of the peer / time of ttsnn")
        axes.legend()
    figure.tight_layout()
    figure.savefig(args.out or args.results.with_suffix(".png"), dpi=110)
    return 0


def _graph(row: dict) -> list[str]:
    return ["graph"] if row["graph"] else []
