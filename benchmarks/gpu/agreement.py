"""Whether the compiled program computes what PyTorch computes.

Inference: logits, and at small batches the spikes of every neuron, by a second artifact that
returns them. Training: loss and logits of two updates; the second come after an update, so a wrong
gradient shows in them. What is expected was computed by PyTorch on the CPU where the case was
compiled, in float32; for training steps that are too large for that, on the GPU here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gpu.cases import LR, MOMENTUM, Case
from gpu.contenders import Setting

UPDATES = 2
TOLERANCE = 2e-2
"""Of max |ours − expected| / max |expected|, at least; where rounding moves the results by more,
as it does in training, what was measured: see :mod:`ttsnn.runtime.rounding`."""
DRAWS = 2
FLIPS = 1e-3
"""Of all places, that may flip where sums are rounded otherwise."""
JUDGED = ("fp32",)  # in others operands are rounded on purpose: errors are told, not judged


def expected(
    case: Case, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor, *, spikes: bool
) -> dict[str, np.ndarray]:
    """What PyTorch computes, in float32; spikes as bits."""
    from ttsnn.models import set_time_execution, spikes_of

    model = set_time_execution(copy.deepcopy(model), "folded")
    if case.phase == "inference":
        logits, layers = spikes_of(model.eval(), x)
        out = {"out.000": logits.float().cpu().numpy()}
        if spikes:
            for i, (_, fired) in enumerate(layers):
                out[f"spikes.{i:03}"] = np.packbits(fired.cpu().numpy() != 0)
        return out
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    out = {}
    for i in range(UPDATES):
        optimizer.zero_grad(set_to_none=True)
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        for k, value in enumerate((loss, logits)):
            out[f"out.{2 * i + k:03}"] = value.detach().float().cpu().numpy()
    return out


def reference(
    case: Case, model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor, *, spikes: bool
) -> dict[str, np.ndarray]:
    """What is expected, with ``limits``: the error that each result may have."""
    from ttsnn.runtime.rounding import moved_by_rounding

    want = expected(case, model, x, labels, spikes=spikes)
    outputs = [want[k] for k in sorted(want) if k.startswith("out.")]

    def run(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        changed = copy.deepcopy(model)
        changed.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        return list(expected(case, changed, x, labels, spikes=False).values())

    state = {k: v.cpu().numpy() for k, v in model.state_dict().items()}
    limits = moved_by_rounding(run, state, outputs, draws=DRAWS)
    return want | {"limits": np.maximum(limits, TOLERANCE)}


def check(setting: Setting) -> dict[str, Any]:
    """Run the compiled program and compare.

    Returns:
        ``max_rel_error`` and its ``limit``, of the result that comes closest to it or is farthest
        beyond; ``flipped_spikes`` of ``spike_places`` (where they are recorded), ``other_top1`` of
        ``samples`` (inference), ``against``, ``ok`` (None where not judged).
    """
    from ttsnn.runtime.agreement import max_rel_error

    case, folder = setting.case, setting.folder
    stored = case.file(folder, "check.safetensors")
    if stored.exists():
        from safetensors.numpy import load_file

        want, against = load_file(stored), "stored"
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = setting.twin()
        want = reference(case, model, setting.x, setting.labels, spikes=False)
        against = "PyTorch here"
        del model
    got, spikes = _computed(setting)
    outputs = [want[k] for k in sorted(want) if k.startswith("out.")]
    errors = [max_rel_error(a, b) for a, b in zip(got, outputs, strict=True)]
    judged = [(e, float(limit)) for e, limit in zip(errors, want["limits"], strict=True)]
    ok = all(e <= limit for e, limit in judged)  # not where it is no number
    error, limit = max(judged, key=lambda pair: pair[0] / pair[1])
    found: dict[str, Any] = {"against": against, "max_rel_error": error, "limit": limit}
    if case.phase == "inference":
        other = int((got[0].argmax(-1) != outputs[0].argmax(-1)).sum())
        found |= {"samples": case.batch, "other_top1": other}
    if spikes:
        wanted = [want[k] for k in sorted(want) if k.startswith("spikes.")]
        flipped = sum(_flips(a, b) for a, b in zip(spikes, wanted, strict=True))
        places = sum(a.size for a in spikes)
        found |= {"flipped_spikes": flipped, "spike_places": places}
        ok = ok and flipped <= FLIPS * places
    return found | {"ok": ok if case.precision in JUDGED else None}


def _computed(setting: Setting) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Results of the compiled program, and spikes where they are recorded."""
    program = setting.compiled()
    if setting.case.phase == "train":
        told = [program(setting.x, setting.labels, LR) for _ in range(UPDATES)]
        return [_array(v) for pair in told for v in pair], []
    program(setting.x)  # with graph=on the first call captures, the second replays
    logits = [_array(program(setting.x))]
    if "spikes.ttsnn" not in setting.about["artifacts"]:
        return logits, []
    net = setting.compiled("spikes.ttsnn")
    results = dict(zip((s.name for s in net.outputs), net(setting.x), strict=True))
    return logits, [_array(results[name]) != 0 for name in net.manifest.spikes]


def _array(value: torch.Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()


def _flips(fired: np.ndarray, bits: np.ndarray) -> int:
    return int(np.unpackbits(np.packbits(fired) ^ bits).sum())


def text(found: dict[str, Any]) -> str:
    """For a line of output."""
    if "error" in found:
        return f"not compared: {found['error']}"
    parts = []
    if "flipped_spikes" in found:
        parts.append(f"{found['flipped_spikes']} of {found['spike_places']} spikes flipped")
    parts.append(f"max rel error {found['max_rel_error']:.1e} (of {found['limit']:.1e})")
    if found.get("other_top1"):
        parts.append(f"other top-1 in {found['other_top1']} of {found['samples']}")
    verdict = {True: "right", False: "WRONG", None: "not judged"}[found["ok"]]
    return f"{verdict} ({', '.join(parts)}; {found['against']})"
