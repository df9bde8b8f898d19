"""What networks can be compiled to: a registry of targets.

>>> from ttsnn.targets import get_target
>>> cpu = get_target("cpu")                        # this machine
>>> old = get_target("cpu:mcpu=x86-64-v3")         # any machine with AVX2
>>> lowered = old.lower(program)
>>> old.build(lowered).export_library("net.so")

A target is added by a class derived from :class:`Target` and a line in the registry.
"""

from __future__ import annotations

import difflib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ttsnn.errors import TargetError

if TYPE_CHECKING:
    import tvm

__all__ = ["KernelInfo", "Target", "get", "get_target", "register_target", "target_names"]


@dataclass(frozen=True)
class KernelInfo:
    """One kernel of a lowered network.

    Attributes:
        name: name of the function.
        rule: name of the schedule rule that it got.
        layers: names of the network's layers in it; empty where it belongs to none.
        macs: multiply-accumulates of one call; with one image where the batch is symbolic.
        scheduled: False where no rule but the fallback fitted.
    """

    name: str
    rule: str
    layers: tuple[str, ...]
    macs: int
    scheduled: bool

    def to_json(self) -> dict[str, Any]:
        """Plain dict for reports."""
        return asdict(self)


class Target(ABC):
    """A machine that networks are compiled to.

    Attributes:
        name: name in the registry.
        description: one line.
        constraints: one line on what it cannot do.
        option_names: options that :func:`get_target` takes for it.
        options: those given.
        input_alignment: bytes to which the data of inputs must be aligned.
        takes_firing_rates: whether :meth:`lower` has the options ``firing_rates`` and
            ``expose_rates``, see :mod:`ttsnn.calibration`.
        tvm_target: TVM's target, where it has one.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    constraints: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ()
    input_alignment: ClassVar[int] = 64
    takes_firing_rates: ClassVar[bool] = False
    tvm_target: Any = None

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.options = {k.replace("_", "-"): str(v) for k, v in (options or {}).items()}
        for key in self.options:
            if key not in self.option_names:
                raise TargetError(
                    f"target {self.name} has no option {key!r}"
                    f"{self.close_matches(key, self.option_names)}; "
                    f"there are {', '.join(self.option_names) or 'none'}"
                )

    @abstractmethod
    def lower(
        self,
        mod: tvm.IRModule,
        *,
        record_spikes: bool = False,
        dump_ir: str | os.PathLike | None = None,
    ) -> tvm.IRModule:
        """The target's passes: program → module that :meth:`build` takes.

        Args:
            mod: a program (:mod:`ttsnn.program`); it is left as it is.
            record_spikes: append every neuron's spikes [T, N, …] to the results.
            dump_ir: folder for the module after each pass.

        Raises:
            PassError, TargetError: the network has something that the target cannot do.
        """

    def lower_training(
        self, mod: tvm.IRModule, *, dump_ir: str | os.PathLike | None = None
    ) -> tvm.IRModule:
        """The same for a training program (:mod:`ttsnn.passes.training`).

        Raises:
            TargetError: the target cannot train, which is so unless it says otherwise.
        """
        raise TargetError(f"target {self.name} cannot train; compile for cpu")

    def for_threads(self, count: int) -> Target:
        """This target for code that runs on ``count`` CPU threads, where it has such an option
        and nobody said otherwise.
        """
        return self

    def tuning_identity(self) -> dict[str, str]:
        """What the records of :func:`ttsnn.tune` depend on, as words; their database is named so.

        Raises:
            TargetError: the target cannot be tuned, which is so unless it says otherwise.
        """
        raise TargetError(f"target {self.name} cannot be tuned; tune for cpu")

    def tuning_tasks(
        self, mod: tvm.IRModule, threads: int, firing_rates: Mapping[str, float] | None = None
    ) -> list[Any]:
        """What there is to tune in a program, for so many threads (:mod:`ttsnn.tuning`).

        ``firing_rates`` is for targets that take them.
        """
        raise TargetError(f"target {self.name} cannot be tuned; tune for cpu")

    def look_up(self, mod: tvm.IRModule, best: Any) -> Any:
        """What a tuning database (:mod:`ttsnn.tuning.lookup`) has for a program, for
        :meth:`lower`'s argument ``tuned``.
        """
        raise TargetError(f"target {self.name} cannot be tuned; tune for cpu")

    @abstractmethod
    def build(self, lowered: tvm.IRModule) -> Any:
        """Generate code: an executable with ``export_library``."""

    @abstractmethod
    def kernels(self, lowered: tvm.IRModule) -> list[KernelInfo]:
        """The kernels of a lowered module, in order of execution."""

    def planned_bytes(self, lowered: tvm.IRModule) -> dict[str, int]:
        """Function → bytes of the buffers between its kernels; empty where it is not known."""
        return {}

    def manifest_entry(self) -> dict[str, Any]:
        """What the manifest's ``target`` says beside the name and the host's CPU."""
        return {}

    def build_info(self) -> dict[str, Any]:
        """What the manifest's ``info`` keeps of the last :meth:`build`."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Plain dict for ``ttsnn targets``."""
        return {
            "name": self.name,
            "description": self.description,
            "constraints": self.constraints,
            "options": dict(self.options),
        }

    @staticmethod
    def close_matches(word: str, known: Iterable[str]) -> str:
        """``", did you mean …?"`` or nothing."""
        close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
        return f", did you mean {' or '.join(close)}?" if close else ""


_REGISTRY: dict[str, str] = {
    "cpu": "ttsnn.passes.cpu.target:CpuTarget",
    "cuda": "ttsnn.passes.cuda.target:CudaTarget",
    "cuda-emulated": "ttsnn.passes.cuda.emulated:EmulatedCudaTarget",
    "ttsnn-accel": "ttsnn.accel_target.target:AccelTarget",
}


def register_target(name: str, where: str) -> None:
    """Add a target.

    Args:
        name: its name.
        where: ``module:class``, imported when it is asked for.
    """
    _REGISTRY[name] = where


def target_names() -> list[str]:
    """Names of all targets."""
    return sorted(_REGISTRY)


def get_target(spec: str | Target = "cpu", **options: Any) -> Target:
    """A target by name.

    Args:
        spec: ``name`` or ``name:option=value,option=value``; a target is returned as it is.
        options: more options; ``num_cores`` is ``num-cores``.

    Raises:
        TargetError: no such target or option.
    """
    if isinstance(spec, Target):
        return spec
    name, _, rest = str(spec).partition(":")
    if name not in _REGISTRY:
        raise TargetError(
            f"unknown target {name!r}{Target.close_matches(name, _REGISTRY)}; "
            f"there are {', '.join(target_names())}"
        )
    given: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if equals:
            given[key.strip()] = value.strip()
        elif given:  # a list, as in mattr=+avx2,-avx512f
            last = next(reversed(given))
            given[last] += f",{part.strip()}"
        else:
            raise TargetError(f"target {spec!r}: {part!r} is no option; write {name}:option=value")
    given |= {k: str(v) for k, v in options.items() if v is not None}
    module, _, cls = _REGISTRY[name].partition(":")
    return getattr(importlib.import_module(module), cls)(given)


get = get_target
