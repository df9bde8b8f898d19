"""Models of PyTorch and ONNX as programs of the compiler."""

from ttsnn.frontend.importer import import_model

__all__ = ["import_model"]
