"""The results in short: how many times faster than each peer, and the published claim's ratio."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from gpu.agreement import text as agreement_text
from gpu.cases import Case
from gpu.names import ORDER, OURS

CLAIM = 0.823
"""A training step of PTT takes at most this part of the dense network's, says the TT-SNN paper."""
DENSE = ("dense_loop", "dense_folded")
COMPILED = ("inductor", "inductor_graph")


def text(report: dict[str, Any]) -> str:
    """A table of peer ÷ ttsnn, then the claim, what went wrong and what was left out."""
    rows = [r for r in report["rows"] if r["results"]]
    shown = [n for n in ORDER if n != OURS and any(n in r["results"] for r in rows)]
    width = max((len(Case.of(r).name) for r in rows), default=4)
    heads = ["ttsnn ms", "spread", *shown]
    lines = [
        f"{report['device']}, PyTorch {report['torch']}: time of each peer / time of ttsnn",
        " ".join([f"{'case':{width}}", *(f"{h:>{max(len(h), 8)}}" for h in heads)]),
    ]
    for row in rows:
        found = row["results"]
        ours = found.get(OURS)
        cells = [f"{ours['ms']:.3f}", f"{ours['spread']:.2f}"] if ours else ["-", "-"]
        for name in shown:
            there = name in found
            if ours:
                cells.append(f"{found[name]['ms'] / ours['ms']:.2f}" if there else "-")
            else:
                cells.append(f"{found[name]['ms']:.3f} ms" if there else "-")
        padded = [f"{c:>{max(len(h), 8)}}" for c, h in zip(cells, heads, strict=True)]
        lines.append(" ".join([f"{Case.of(row).name:{width}}", *padded]))
    lines += [*_steps(rows), *_latencies(rows)]
    lines += [
        f"{Case.of(r).name}: {agreement_text(r['check'])}"
        for r in report["rows"]
        if not r.get("check", {"ok": True}).get("ok", False)
    ]
    lines += _errors(report["rows"])
    if report.get("left"):
        lines.append(f"not run, time was over: {', '.join(report['left'])}")
    return "\n".join(lines)


def _steps(rows: list[dict[str, Any]]) -> list[str]:
    """Training steps of tensor trains beside the dense network's in eager PyTorch."""
    lines = []
    for row in rows:
        found = row["results"]
        if row["phase"] != "train" or OURS not in found:
            continue
        for dense in (n for n in DENSE if n in found):
            ratio = found[OURS]["ms"] / found[dense]["ms"]
            claim = f", {'within' if ratio <= CLAIM else 'ABOVE'} {CLAIM:.1%}"
            lines.append(
                f"{Case.of(row).name}: a step takes {ratio:.1%} of the dense network's in "
                f"PyTorch ({dense}){claim if row['mode'] == 'ptt' else ''}"
            )
    return lines


def _latencies(rows: list[dict[str, Any]]) -> list[str]:
    """Inference of one image beside the fastest that torch.compile makes of the same network."""
    lines = []
    for row in rows:
        found = row["results"]
        peers = {n: found[n]["ms"] for n in COMPILED if n in found}
        if row["phase"] == "inference" and row["batch"] == 1 and OURS in found and peers:
            best = min(peers, key=lambda n: peers[n])
            lines.append(
                f"{Case.of(row).name}: {found[OURS]['ms']:.3f} ms an image, torch.compile "
                f"({best}) {peers[best]:.3f} ms: {peers[best] / found[OURS]['ms']:.2f} times"
            )
    return lines


def _errors(rows: list[dict[str, Any]]) -> list[str]:
    """Each error once, with the cases that had it."""
    having: dict[str, list[str]] = {}
    for row in rows:
        for name, error in row["errors"].items():
            having.setdefault(f"{name}: {error}", []).append(Case.of(row).name)
    return [f"{error} ({', '.join(names)})" for error, names in having.items()]


def summary(args: argparse.Namespace) -> int:
    """Print a file of results again."""
    try:
        print(text(json.loads(args.results.read_text())))
    except (OSError, ValueError, KeyError) as error:
        print(f"gpu summary: {args.results}: no results ({error})", file=sys.stderr)
        return 2
    return 0
