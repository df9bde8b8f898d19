"""Kernels of the CPU target: the fused layer, the LIF scan."""

from ttsnn.passes.cpu.kernels.op import OP, cpu_layer, layer_config_of
from ttsnn.passes.cpu.kernels.pack import pack_layer_weights

__all__ = ["OP", "cpu_layer", "layer_config_of", "pack_layer_weights"]
