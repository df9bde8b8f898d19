"""The CUDA target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import ClassVar

import tvm
from tvm import relax, tirx
from tvm.target import codegen

from ttsnn.cuda.callback import compile_with
from ttsnn.cuda.compiler import CudaOptions, DeviceCode, compile_cuda, parse_archs
from ttsnn.cuda.runtime import load_for_compiling
from ttsnn.debugging import instruments
from ttsnn.errors import PassError, TargetError
from ttsnn.passes.cuda.gpu import DEFAULT_ARCH, parse_arch
from ttsnn.passes.cuda.kernels.mma import PRECISIONS, with_functions
from ttsnn.passes.cuda.lower_kernels import KERNEL_PIPELINE
from ttsnn.passes.cuda.pipeline import lower_passes
from ttsnn.passes.cuda.rules.bound import all_bound
from ttsnn.passes.cuda.training.pipeline import training_passes
from ttsnn.passes.expose_spikes import ExposeSpikes
from ttsnn.passes.kernel_list import kernel_list
from ttsnn.passes.machine_code import machine_code
from ttsnn.passes.pipelines import all_checked, build_passes
from ttsnn.program import PARAMS
from ttsnn.targets import KernelInfo, Target

__all__ = ["CudaTarget"]

KERNELS_OF_AN_IMAGE = 48
"""On average, at least: compiling one costs about a second, whatever is in it."""

_SWITCHES = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


class CudaTarget(Target):
    """An NVIDIA GPU; neither a GPU nor a driver is needed to compile for it.

    Args:
        options: ``arch`` (``sm_90``, or several as ``sm_80+sm_90``: the code of all goes into
            the file, tiles are chosen for the last; default: this machine's GPU, else
            ``sm_90``), ``fmad`` (``off``: products and sums are rounded apart, as a CPU does),
            ``fast-math`` (``on``: approximate functions; spikes flip), ``compiler`` (``nvcc`` or
            ``nvrtc``), ``graph`` (``on``: capture CUDA graphs), ``precision`` (``tf32``,
            ``bf16``, ``fp16``: products of float32 networks on tensor cores, their operands
            rounded so).

    Attributes:
        archs: the architectures.
        device_code: what the CUDA compiler made in the last :meth:`build`, with its report.

    Raises:
        TargetError: for an unknown option or architecture.
    """

    name = "cuda"
    description = "NVIDIA GPU: fused channels-last kernels, compiled offline for any sm_70 or newer"
    constraints = (
        "inference and training; float32 and float64; static T; symbolic batch for inference"
    )
    option_names: ClassVar[tuple[str, ...]] = (
        "arch",
        "fmad",
        "fast-math",
        "compiler",
        "graph",
        "precision",
    )
    exact_memory = False

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__(options)
        self.archs = parse_archs(self.options.get("arch") or default_arch())
        for arch in self.archs:
            parse_arch(arch)
        self.cuda_options = CudaOptions(
            self.archs,
            fmad=self._switch("fmad", True),
            fast_math=self._switch("fast-math", False),
            compiler=self.options.get("compiler"),
        )
        self.device_code: list[DeviceCode] = []
        self.cuda_graph = self._switch("graph", False)
        self.precision = self._choice("precision", PRECISIONS)
        old = [a for a in self.archs if parse_arch(a) < 80]
        if self.precision != "fp32" and old:
            raise TargetError(
                f"target {self.name}: precision={self.precision} needs sm_80 or newer, not {old[0]}"
            )
        self.tvm_target = tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.archs[-1],
                "max_shared_memory_per_block": 48 * 1024,
                "max_threads_per_block": 1024,
                "thread_warp_size": 32,
            },
            host={"kind": "llvm", "mtriple": codegen.llvm_get_system_triple()},
        )

    def _switch(self, name: str, default: bool) -> bool:
        text = self.options.get(name)
        if text is None:
            return default
        if text.lower() not in _SWITCHES:
            raise TargetError(f"target {self.name}: {name} must be on or off, got {text!r}")
        return _SWITCHES[text.lower()]

    def _choice(self, name: str, known: tuple[str, ...]) -> str:
        text = self.options.get(name, known[0])
        if text not in known:
            raise TargetError(
                f"target {self.name}: {name} must be {' or '.join(known)}, got {text!r}"
            )
        return text

    def lower(
        self,
        mod: tvm.IRModule,
        *,
        record_spikes: bool = False,
        dump_ir: str | os.PathLike | None = None,
        forms: str | Mapping[str, str] | None = None,
    ) -> tvm.IRModule:
        """Program → kernels; ``forms`` as in ``ScheduleContractions``."""
        passes = [*([ExposeSpikes()] if record_spikes else [])]
        passes += lower_passes(self.tvm_target, forms=forms, precision=self.precision)
        with instruments(dump_ir), self.tvm_target:
            for step in passes:
                mod = step(mod)
        return _checked(mod)

    def lower_training(
        self, mod: tvm.IRModule, *, dump_ir: str | os.PathLike | None = None
    ) -> tvm.IRModule:
        """Training program (:mod:`ttsnn.passes.training`) → kernels for :meth:`build`.

        Args:
            mod: all its Relax functions are lowered; their arguments and results stay.
            dump_ir: folder for the module after each pass.

        Raises:
            PassError: for sizes that vary.
            TargetError: CUDA graphs were asked for.
        """
        if self.cuda_graph:
            raise TargetError(
                f"target {self.name}: graph=on is for inference: a captured graph keeps reading "
                "the weights of its first call, and training replaces them; leave it out"
            )
        functions = [g.name_hint for g, f in mod.functions_items() if isinstance(f, relax.Function)]
        with instruments(dump_ir), self.tvm_target:
            for step in training_passes(self.tvm_target, functions, self.precision):
                mod = step(mod)
        return _checked(mod)

    def manifest_entry(self) -> dict:
        """Architectures that there is code for, that of its PTX included."""
        ptx = self.cuda_options.ptx_arch
        return {"archs": [*self.archs, *([ptx] if ptx else [])]}

    def device_compiler(self) -> Callable[[str], bytes]:
        """What turns CUDA source into an image that the driver loads."""
        load_for_compiling()

        def compiler(source: str) -> bytes:
            self.device_code.append(compile_cuda(source, self.cuda_options))
            return self.device_code[-1].image

        return compiler

    def build(self, lowered: tvm.IRModule) -> relax.VMExecutable:
        """Kernels → executable.

        Raises:
            TargetError: no CUDA compiler in this machine.
        """
        self.device_code = []
        mod = all_checked(lowered.without_attr(PARAMS))
        passes = build_passes(cuda_graph=self.cuda_graph, plan_memory=not self.exact_memory)
        # loops that must be unrolled are left to the CUDA compiler: the source stays small
        config: dict = {
            "tirx.UnrollLoop": {"explicit_unroll": False, "auto_max_step": 0},
            # what our kernels bind to names is what is worth naming
            "tirx.disable_cse_tir": True,
            "relax.backend.use_cuda_graph": self.cuda_graph,
        }
        compiler = self.device_compiler()
        with (
            compile_with(lambda source: compiler(with_functions(source))),
            tvm.transform.PassContext(config=config),
            self.tvm_target,
        ):
            mod = tvm.transform.Sequential(passes)(mod)
            executable = machine_code(
                mod, self.tvm_target, KERNEL_PIPELINE, parts=8, at_least=KERNELS_OF_AN_IMAGE
            )
        # threads finish in any order
        self.device_code.sort(key=lambda code: code.source)
        return executable

    def kernels(self, lowered: tvm.IRModule) -> list[KernelInfo]:
        """The kernels, in the order in which the module's functions call them first."""
        return kernel_list(lowered)

    def build_info(self) -> dict:
        """Compiler, architectures, and registers, shared memory and spills of each kernel."""
        if not self.device_code:
            return {}
        first = self.device_code[0]
        usage = [u.to_json() for code in self.device_code for u in code.usage]
        return {"cuda": {"compiler": first.compiler, "flags": first.flags, "usage": usage}}

    def describe(self) -> dict:
        """What ``ttsnn targets`` and manifests say of it."""
        return super().describe() | {"arch": "+".join(self.archs)}


def _checked(mod: tvm.IRModule) -> tvm.IRModule:
    """The module, whose kernels leave nothing to the host.

    Raises:
        PassError: for one that does.
    """
    for gvar, func in mod.functions_items():
        if isinstance(func, tirx.PrimFunc) and not all_bound(func):
            raise PassError(
                f"kernel {gvar.name_hint}: some of its loops are not bound to the GPU's threads; "
                "compile for cpu, and report this network"
            )
    return mod


def default_arch() -> str:
    """The architecture of this machine's first GPU, else :data:`DEFAULT_ARCH`."""
    try:
        device = tvm.cuda(0)
        version = str(device.compute_version) if device.exist else ""
    except Exception:  # no CUDA runtime in this process
        version = ""
    return f"sm_{version.replace('.', '')}" if version else DEFAULT_ARCH
