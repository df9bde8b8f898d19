"""ttsnn: compile spiking PyTorch networks with tensor-train layers, run them, compare them.

    net = ttsnn.compile(model, example, plan="vbmf", mode="ptt", out="net.ttsnn")
    y = ttsnn.load("net.ttsnn")(x)

Importing the package loads neither PyTorch nor TVM; what needs them is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ttsnn.errors import (
    ArtifactError,
    DataError,
    ModelImportError,
    PassError,
    PlanError,
    TargetError,
    TTSNNError,
    TuningError,
)
from ttsnn.specs import TensorSpec

if TYPE_CHECKING:
    from ttsnn.driver import CompiledModel, compare, compile, plan
    from ttsnn.runtime.net import Net, load
    from ttsnn.runtime.threads import threads
    from ttsnn.runtime.training.trainer import Trainer
    from ttsnn.tuning.network import tune

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CompiledModel",
    "DataError",
    "ModelImportError",
    "Net",
    "PassError",
    "PlanError",
    "TTSNNError",
    "TargetError",
    "TensorSpec",
    "Trainer",
    "TuningError",
    "__version__",
    "compare",
    "compile",
    "load",
    "plan",
    "threads",
    "tune",
]

_LAZY = {
    "CompiledModel": "ttsnn.driver",
    "compare": "ttsnn.driver",
    "compile": "ttsnn.driver",
    "plan": "ttsnn.driver",
    "Net": "ttsnn.runtime.net",
    "load": "ttsnn.runtime.net",
    "threads": "ttsnn.runtime.threads",
    "Trainer": "ttsnn.runtime.training.trainer",
    "tune": "ttsnn.tuning.network",
}


def __getattr__(name: str) -> Any:
    """Import the lazy names on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'ttsnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
