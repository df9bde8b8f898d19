"""The CPU target."""

from __future__ import annotations

import os
from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.target import codegen

from ttsnn.cpus import available_cpus
from ttsnn.debugging import instruments
from ttsnn.errors import TargetError
from ttsnn.passes.cpu.any_alignment import ALIGNMENT
from ttsnn.passes.cpu.event_choice import EventChoice
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.lower_kernels import KERNEL_PIPELINE
from ttsnn.passes.cpu.pack_weights import TilesOf
from ttsnn.passes.cpu.pipeline import lower_passes
from ttsnn.passes.cpu.planned_memory import planned_bytes
from ttsnn.passes.cpu.rules.layer import DEFAULT_THREADS, threads_of
from ttsnn.passes.cpu.training.pipeline import training_passes
from ttsnn.passes.cpu.tuning import LayerTask, layer_tasks
from ttsnn.passes.cpu.tuning.tuned import BestOf, TunedLayers, tuned_layers
from ttsnn.passes.expose_spikes import ExposeSpikes
from ttsnn.passes.kernel_list import kernel_list
from ttsnn.passes.machine_code import machine_code
from ttsnn.passes.pipelines import all_checked, build_passes
from ttsnn.program import PARAMS
from ttsnn.targets import KernelInfo, Target

__all__ = ["CpuTarget"]


class CpuTarget(Target):
    """A CPU, by LLVM.

    Args:
        options: ``mcpu`` (as LLVM names it: ``x86-64-v3``, ``znver4``, ``apple-m1``; default:
            this machine's), ``mtriple`` (default: this machine's, or the one of ``mcpu``'s
            architecture where given), ``mattr`` (``+avx2,-avx512f``), ``num-cores`` (threads that
            the work of one image is cut for; default: this process's CPUs, 2 for another
            ``mcpu`` or ``mtriple``).

    Raises:
        TargetError: for an unknown option or CPU.
    """

    name = "cpu"
    description = "CPU by LLVM: fused channels-last kernels, for this machine or any mcpu"
    constraints = (
        "inference and training; float32 and float64; static T; symbolic batch for inference"
    )
    option_names = ("mcpu", "mtriple", "mattr", "num-cores")
    input_alignment = ALIGNMENT
    takes_firing_rates = True

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__(options)
        given = dict(self.options)
        # LLVM's level 2 takes 15 % less time than 3, for code that is as fast
        config: dict = {"kind": "llvm", "opt-level": 2}
        config["mtriple"] = given.get("mtriple") or codegen.llvm_get_system_triple()
        config["mcpu"] = given.get("mcpu") or codegen.llvm_get_system_cpu()
        probe = tvm.target.Target({"kind": "llvm", "mtriple": config["mtriple"]})
        if not codegen.llvm_is_valid_cpu(config["mcpu"], config["mtriple"]):
            known = codegen.llvm_get_cpu_archlist(probe)
            hint = self.close_matches(config["mcpu"], [str(k) for k in known])
            raise TargetError(
                f"target cpu: LLVM knows no mcpu {config['mcpu']!r} for {config['mtriple']}{hint}"
            )
        if given.get("mattr"):
            config["mattr"] = [a for a in given["mattr"].replace(";", ",").split(",") if a]
        cores = given.get("num-cores") or self._default_cores()
        if not str(cores).isdigit() or int(cores) < 1:
            raise TargetError(
                f"target cpu: num-cores must be a number of at least 1, got {cores!r}"
            )
        config["num-cores"] = int(cores)
        self.tvm_target = tvm.target.Target(config, host=config)

    def _default_cores(self) -> int:
        there = self.options.get("mcpu") or self.options.get("mtriple")
        return DEFAULT_THREADS if there else available_cpus()

    def for_threads(self, count: int) -> CpuTarget:
        """See :meth:`Target.for_threads`."""
        if self.options.get("num-cores"):
            return self
        return CpuTarget(self.options | {"num-cores": str(count)})

    def lower(
        self,
        mod: tvm.IRModule,
        *,
        record_spikes: bool = False,
        dump_ir: str | os.PathLike | None = None,
        forms: str | Mapping[str, str] | None = None,
        tuned: TunedLayers | None = None,
        firing_rates: Mapping[str, float] | None = None,
        expose_rates: bool = False,
    ) -> tvm.IRModule:
        """Program → scheduled kernels; ``forms`` as in ``ScheduleContractions``.

        ``tuned``, of :meth:`look_up`, has its own forms, and tiles. By ``firing_rates``, layer →
        share of ones in its input, layers become event-driven, but for those of which ``tuned``
        knows whether they should; ``expose_rates`` appends the rates to the results.
        """
        tiles: TilesOf | None = None
        if tuned is not None:
            forms, tiles = tuned.forms, tuned.tiles
        if firing_rates:
            target, known = self.tvm_target, () if tuned is None else tuned.events
            asked = {n: r for n, r in firing_rates.items() if n not in known}
            tiles = EventChoice(asked, isa_of(target), threads_of(target), tiles)
        passes = [*([ExposeSpikes()] if record_spikes else [])]
        passes += lower_passes(self.tvm_target, forms=forms, tiles=tiles, expose_rates=expose_rates)
        with instruments(dump_ir), self.tvm_target:
            for step in passes:
                mod = step(mod)
        return mod

    def tuning_identity(self) -> dict[str, str]:
        """What records of the tuner depend on."""
        attrs = self.tvm_target.attrs
        return {
            "name": self.name,
            "mtriple": str(attrs["mtriple"]),
            "mcpu": str(attrs["mcpu"]),
            "mattr": ",".join(str(a) for a in attrs.get("mattr", ())),
            "isa": isa_of(self.tvm_target).name,
        }

    def tuning_tasks(
        self, mod: tvm.IRModule, threads: int, firing_rates: Mapping[str, float] | None = None
    ) -> list[LayerTask]:
        """The layers of a program, equal ones once."""
        return layer_tasks(mod, self.tvm_target, threads, firing_rates)

    def look_up(self, mod: tvm.IRModule, best: BestOf) -> TunedLayers:
        """What a tuning database has for the layers of a program."""
        return tuned_layers(mod, self.tvm_target, best)

    def lower_training(
        self, mod: tvm.IRModule, *, dump_ir: str | os.PathLike | None = None
    ) -> tvm.IRModule:
        """Training program (:mod:`ttsnn.passes.training`) → scheduled kernels for :meth:`build`.

        Args:
            mod: all its Relax functions are lowered; their arguments and results stay.
            dump_ir: folder for the module after each pass.

        Raises:
            PassError: for sizes that vary.
        """
        functions = [g.name_hint for g, f in mod.functions_items() if isinstance(f, relax.Function)]
        with instruments(dump_ir), self.tvm_target:
            for step in training_passes(self.tvm_target, functions):
                mod = step(mod)
        return mod

    def build(self, lowered: tvm.IRModule) -> relax.VMExecutable:
        """Scheduled kernels → executable."""
        mod = all_checked(lowered.without_attr(PARAMS))
        with self.tvm_target:
            mod = tvm.transform.Sequential(build_passes())(mod)
        return machine_code(mod, self.tvm_target, KERNEL_PIPELINE, parts=16)

    def planned_bytes(self, lowered: tvm.IRModule) -> dict[str, int]:
        """Function → bytes of the buffers between its kernels; all sizes must be known."""
        return planned_bytes(lowered.without_attr(PARAMS))

    def kernels(self, lowered: tvm.IRModule) -> list[KernelInfo]:
        """The kernels, in the order in which the module's functions call them first."""
        return kernel_list(lowered)

    def describe(self) -> dict:
        """What ``ttsnn targets`` and manifests say of it."""
        return super().describe() | {
            "mcpu": str(self.tvm_target.attrs["mcpu"]),
            "isa": isa_of(self.tvm_target).name,
        }
