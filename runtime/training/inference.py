"""The inference build of a network in training, kept in step with its changing weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import tvm
import tvm_ffi

from ttsnn.driver import CompiledModel, build
from ttsnn.program import PARAMS, params_of, with_params
from ttsnn.targets import get_target

__all__ = ["InferenceBuild"]


class InferenceBuild:
    """Compiled inference code for whatever weights the network has at the moment.

    Inference code folds batch norms into weights and packs them, so it belongs to one set of
    values. When the values have changed, the passes run again; where that gives the same code for
    other numbers (it nearly always does), the machine code is kept and only the numbers change.

    Args:
        program: the imported network; its own values do not matter.
        target: as in :func:`ttsnn.compile`.
        name: of the network.
    """

    def __init__(self, program: tvm.IRModule, target: str = "cpu", name: str = "network") -> None:
        self._program, self._target, self._name = program, target, name
        self._values: dict[str, np.ndarray] | None = None
        self._net: CompiledModel | None = None
        self._lock = threading.Lock()
        self.builds = 0

    def net(self, state: Mapping[str, np.ndarray]) -> CompiledModel:
        """The network with these values (by ``state_dict`` name), which are copied."""
        with self._lock:
            names = list(params_of(self._program))
            if self._net is not None and self._values is not None:
                same = all(np.array_equal(self._values[n], state[n]) for n in names)
                if same:
                    return self._net
            values = {n: np.array(state[n], order="C") for n in names}
            program = with_params(self._program, values)
            self._net = self._rebound(program) or self._built(program)
            self._values = values
            return self._net

    def _rebound(self, program: tvm.IRModule) -> CompiledModel | None:
        """The code that is there with other numbers; None where it would be other code."""
        if self._net is None:
            return None
        lowered = get_target(self._target).lower(program)
        old = self._net
        if not tvm_ffi.structural_equal(
            lowered.without_attr(PARAMS), old.program.without_attr(PARAMS)
        ):
            return None
        return CompiledModel(old.executable, old.manifest, lowered, old.compile_s)

    def _built(self, program: tvm.IRModule) -> CompiledModel:
        self.builds += 1
        return build(program, self._target, name=self._name)
