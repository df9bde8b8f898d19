"""What each argument and result of a program's ``main`` is, for training."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.training.batch_norm import batch_norm_info
from ttsnn.passes.training.manifest import Slot
from ttsnn.program import num_inputs, params_of

__all__ = ["Roles", "batch_norm_entries", "trainable_params"]

META = "ttsnn.meta"


def _meta(mod: tvm.IRModule) -> dict:
    return json.loads(str(mod.attrs[META])) if mod.attrs is not None and META in mod.attrs else {}


def trainable_params(mod: tvm.IRModule, names: Collection[str] | None = None) -> list[str]:
    """Names of the parameters that training changes, in the program's order.

    Args:
        mod: a program, after ``TrainingBatchNorm`` where it has batch norms.
        names: choose among them; None for all parameters of floating-point type that are neither
            running statistics nor buffers of the PyTorch module.

    Raises:
        PassError: a name that is no trainable parameter.
    """
    buffers = batch_norm_info(mod).statistics() | set(_meta(mod).get("buffers", ()))
    found = [n for n, v in params_of(mod).items() if n not in buffers and v.dtype.kind == "f"]
    if names is None:
        return found
    unknown = [n for n in names if n not in found]
    if unknown:
        raise PassError(
            f"training: {', '.join(map(repr, unknown))} is no trainable parameter; there are "
            f"{', '.join(found)}"
        )
    return [n for n in found if n in set(names)]


def batch_norm_entries(mod: tvm.IRModule) -> tuple[dict, ...]:
    """The manifest's ``batch_norm``: layers that learn from the batch."""
    keys = ("name", "momentum", "epsilon", "calls")
    layers = batch_norm_info(mod).layers
    return tuple({k: la[k] for k in keys} for la in layers if not la["frozen"])


@dataclass(frozen=True)
class Roles:
    """The arguments and results of ``main`` as slots.

    Attributes:
        arguments: input, state and label slots, then param and buffer slots.
        results: loss, output and state slots, then the buffers' new values.
    """

    arguments: tuple[Slot, ...]
    results: tuple[Slot, ...]

    @classmethod
    def of(
        cls,
        mod: tvm.IRModule,
        results: Sequence[relax.Expr],
        trainable: Collection[str],
        *,
        loss: bool = False,
    ) -> Roles:
        """Read them off a program.

        Args:
            mod: the program, with the loss as first result and labels as last input if ``loss``.
            results: results of ``main``, flattened.
            trainable: names of the parameters that are trained.
            loss: whether ``AppendLoss`` ran.
        """
        main, meta = mod["main"], _meta(mod)
        count = num_inputs(main)
        states = {s["input"]: s["output"] + loss for s in meta.get("state", ())}
        # names of states have dots in the meta data, none as variables
        plain = {name.replace(".", "_"): name for name in states}
        arguments = []
        for i, arg in enumerate(main.params[:count]):
            if loss and i == count - 1:
                arguments.append(Slot.of("labels", "label", arg))
            elif arg.name in plain:
                arguments.append(Slot.of(plain[arg.name], "state", arg))
            else:
                arguments.append(Slot.of(arg.name, "input", arg))
        for name, arg in zip(params_of(mod), main.params[count:], strict=True):
            role = "param" if name in trainable else "buffer"
            arguments.append(Slot.of(name, role, arg))
        by_index = {i: (n, "buffer") for n, i in batch_norm_info(mod).updates.items()}
        by_index |= {i: (n, "state") for n, i in states.items()}
        if loss:
            by_index[0] = ("loss", "loss")
        outputs = [i for i in range(len(results)) if i not in by_index]
        for k, i in enumerate(outputs):
            by_index[i] = ("output" if len(outputs) == 1 else f"output_{k}", "output")
        slots = tuple(Slot.of(*by_index[i], r) for i, r in enumerate(results))
        return cls(tuple(arguments), slots)
