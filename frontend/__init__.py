"""Models of PyTorch and ONNX as programs of the compiler, and programs as ONNX files."""

from ttsnn.frontend.importer import import_model
from ttsnn.frontend.neurons import register_neuron
from ttsnn.frontend.onnx_export import export_onnx, program_to_onnx
from ttsnn.frontend.pt2 import export_pt2, load_pt2

__all__ = [
    "export_onnx",
    "export_pt2",
    "import_model",
    "load_pt2",
    "program_to_onnx",
    "register_neuron",
]
