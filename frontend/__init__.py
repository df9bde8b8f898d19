"""Models of PyTorch and ONNX as programs of the compiler, and programs as ONNX files."""

from ttsnn.frontend.importer import import_model
from ttsnn.frontend.onnx_export import export_onnx

__all__ = ["export_onnx", "import_model"]
