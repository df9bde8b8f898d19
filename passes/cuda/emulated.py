"""The CUDA target on a GPU that the CPU emulates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ttsnn.cuda import emulator
from ttsnn.passes.cuda.gpu import DEFAULT_ARCH, parse_arch
from ttsnn.passes.cuda.target import CudaTarget

__all__ = ["EmulatedCudaTarget"]


class EmulatedCudaTarget(CudaTarget):
    """The kernels of :class:`CudaTarget` on the CPU, slowly: for checks on machines without a GPU.

    Artifacts hold the same kernels, launches and memory plan, compiled by the C++ compiler of
    this machine; :mod:`ttsnn.cuda.emulator` says which mistakes show and what differs.

    Args:
        options: ``arch`` (what the kernels are made for, one architecture; ``sm_90``), ``graph``
            and ``precision`` as there,
            ``memory`` (``planned`` as on a GPU, or ``exact``: every tensor has memory of
            its own, so that an access past its end shows), ``order`` (``forward``, ``reverse``, or
            ``both``: each launch runs in both orders and must give the same bits).

    Raises:
        TargetError: for an unknown option or architecture, where there is no C++ compiler, and
            in a process that runs on a real GPU's driver.
    """

    name = "cuda-emulated"
    description = "the kernels of target cuda on the CPU, to check them where there is no GPU"
    constraints = "as cuda; slow; fragments of tensor cores are exchanged by shuffles"
    option_names = ("arch", "graph", "precision", "memory", "order")

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__({"arch": DEFAULT_ARCH, **(options or {})})
        self.exact_memory = self._choice("memory", ("planned", "exact")) == "exact"
        self.order = self._choice("order", emulator.ORDERS)
        self.archs = self.archs[-1:]

    def manifest_entry(self) -> dict:
        """The order in which threads run."""
        return {"order": self.order}

    def device_compiler(self) -> Callable[[str], bytes]:
        """Source → image for the emulated driver, by the C++ compiler."""
        emulator.enable()
        number = parse_arch(self.archs[0])
        return lambda source: emulator.compile_source(source, number)
