"""The simulated accelerator as a target."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ttsnn.accel_target.arch import Architecture, load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.container import pack
from ttsnn.accel_target.device import RUN, register
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.cost import costs
from ttsnn.debugging import instruments
from ttsnn.errors import TargetError
from ttsnn.passes.expose_spikes import ExposeSpikes
from ttsnn.passes.fold_batch_norm import FoldBatchNorm
from ttsnn.passes.hoist_time_invariant import HoistTimeInvariant
from ttsnn.passes.prune import Prune
from ttsnn.program import PARAMS
from ttsnn.targets import KernelInfo, Target

__all__ = ["AccelTarget", "inference_passes"]

_KERNELS = "ttsnn.accel.kernels"
_FLAGS = tuple(name.replace("_", "-") for name in Options().to_json())


def inference_passes() -> list[tvm.transform.Pass]:
    """Passes before the code generator."""
    return [
        Prune(),
        # before hoisting: a batch norm of a static image folds like any other
        FoldBatchNorm(),
        HoistTimeInvariant(),
    ]


class AccelTarget(Target):
    """The TT-SNN accelerator, simulated.

    The whole network becomes one program; ``main`` is a call of the simulator with the program
    as a constant.

    Args:
        options: ``arch`` (``ttsnn4``, ``sata`` or a TOML file), and the ideas of
            :class:`~ttsnn.accel_target.codegen.options.Options`, each ``true`` or ``false``.

    Raises:
        TargetError: an unknown option, an impossible architecture.
    """

    name = "ttsnn-accel"
    description = "TT-SNN accelerator, simulated: instructions for clusters of PEs"
    constraints = "inference and training; float32 and float64; fixed batch; no state"
    option_names = ("arch", *_FLAGS)

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__(options)
        given = dict(self.options)
        self.arch = load_architecture(given.pop("arch", "ttsnn4"))
        self.ideas = Options.of(given)
        self.tvm_target = tvm.target.Target({"kind": "llvm"})

    def lower(
        self,
        mod: tvm.IRModule,
        *,
        record_spikes: bool = False,
        dump_ir: str | os.PathLike | None = None,
    ) -> tvm.IRModule:
        """Program → module whose ``main`` calls the simulator."""
        with instruments(dump_ir):
            for step in [*([ExposeSpikes()] if record_spikes else []), *inference_passes()]:
                mod = step(mod)
        return self._call(mod)

    def lower_training(
        self, mod: tvm.IRModule, *, dump_ir: str | os.PathLike | None = None
    ) -> tvm.IRModule:
        """Training step (:func:`ttsnn.passes.training.build_train_step`) → the same."""
        return self._call(mod)

    def _call(self, mod: tvm.IRModule) -> tvm.IRModule:
        if [g.name_hint for g in mod.get_global_vars()] != ["main"]:
            raise TargetError(
                "target ttsnn-accel trains whole steps (build_train_step), not halves of them; "
                "compile for cpu"
            )
        program = compile_program(mod, self.arch, self.ideas)
        main = mod["main"]
        args = [relax.Var(a.name, a.ty) for a in main.params]
        arch = json.dumps(self.arch.to_json(), sort_keys=True).encode()
        blobs = [relax.const(np.frombuffer(b, np.uint8)) for b in (pack(program), arch)]
        ret = main.body.body.ty
        fields = list(ret.fields) if isinstance(ret, relax.TupleType) else [ret]
        bb = relax.BlockBuilder()
        with bb.function("main", args, attrs={"num_input": int(main.attrs["num_input"])}):
            with bb.dataflow():
                # tensors are the program's, in the order of main's arguments
                out = bb.emit_output(relax.call_dps_packed(RUN, [*blobs, *args], fields))
            bb.emit_func_output(out)
        new = tvm.IRModule({"main": bb.finalize()["main"]}, attrs=mod.attrs)
        return new.with_attr(_KERNELS, json.dumps(_kernels(program, self.arch)))

    def build(self, lowered: tvm.IRModule) -> relax.VMExecutable:
        """Executable around the program."""
        register()
        return relax.build(lowered.without_attr(PARAMS), self.tvm_target)

    def kernels(self, lowered: tvm.IRModule) -> list[KernelInfo]:
        """The layers of the program, by name and role."""
        return [
            KernelInfo(f"{layer}.{role}", "accelerator", (layer,), macs, True)
            for layer, role, macs in json.loads(str(lowered.attrs[_KERNELS]))
        ]

    def manifest_entry(self) -> dict[str, Any]:
        """What the manifest says of the machine."""
        return {"accelerator": self.arch.name, "fingerprint": self.arch.fingerprint}

    def describe(self) -> dict[str, Any]:
        """What ``ttsnn targets`` says of it."""
        return super().describe() | {"arch": self.arch.name, "pes": self.arch.pes}

    def program_of(self, mod: tvm.IRModule) -> Program:
        """The program alone, of a module that the passes have gone over."""
        return compile_program(mod, self.arch, self.ideas)


def _kernels(program: Program, arch: Architecture) -> list[tuple[str, str, int]]:
    """(layer, role, multiply-accumulates) of what has some."""
    tags = program.instructions["tag"]
    macs = np.bincount(tags, weights=costs(program, arch).macs, minlength=len(program.tags))
    return [(t.layer, t.role, int(m)) for t, m in zip(program.tags, macs) if m]
