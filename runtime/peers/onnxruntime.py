"""ONNX Runtime on the file that ``ttsnn export --to onnx`` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

__all__ = ["prepare"]


def prepare(
    network: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path
) -> Callable[[], np.ndarray]:
    """Export, then a session on the CPU with all optimisations."""
    import onnxruntime

    from ttsnn.frontend import export_onnx

    path = folder / "network.onnx"
    export_onnx(network, path, x)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}

    def call() -> np.ndarray:
        return session.run(None, feed)[0]

    return call
