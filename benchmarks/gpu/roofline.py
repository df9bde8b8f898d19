"""What bounds a program on a GPU of the data sheets, without one."""

from __future__ import annotations

import argparse

from gpu.cases import Case
from gpu.compile import imported, lowered_of
from gpu.limits import LAUNCH, LIMITS, RATE_OF


def roofline(args: argparse.Namespace) -> int:
    """Print what bounds each kind of kernel of one case, on a GPU of the data sheets."""
    from ttsnn.passes.traffic import traffic
    from ttsnn.targets import get_target

    sizes = (args.batch, args.timesteps, args.precision, args.dataset)
    case = Case(args.phase, args.network, args.mode, *sizes)
    _, program, _ = imported(case, args.plan)
    target = get_target(f"cuda:arch=sm_90,precision={case.precision}")
    lowered = lowered_of(case, program, target)
    limit = LIMITS[args.gpu]
    rates = limit[RATE_OF.get(case.precision, 2)] / 2, limit[3]
    rows: dict[str, list[float]] = {}
    for k in traffic(lowered):
        row = rows.setdefault(k.rule, [0, 0, 0, 0])
        for i, value in enumerate((k.calls, k.bytes, k.macs, k.seconds(*rates, LAUNCH))):
            row[i] += value
    print(f"{case.name} on {args.gpu}: a time that no run can beat, by kind of kernel")
    print(f"{'kind':18} {'calls':>6} {'GB':>9} {'GMAC':>9} {'ms':>8}")
    total = [sum(column) for column in zip(*rows.values())]
    ordered = sorted(rows.items(), key=lambda item: -item[1][3])
    for name, (calls, size, macs, seconds) in [*ordered, ("all", total)]:
        print(f"{name:18} {calls:6} {size / 1e9:9.2f} {macs / 1e9:9.1f} {seconds * 1e3:8.2f}")
    return 0
