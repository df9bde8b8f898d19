"""Whole layers as one operator, ``relax.snn.layer``: what the CPU's and the GPU's kernels share."""

from ttsnn.passes.layers.op import OP, layer_call, layer_config_of

__all__ = ["OP", "layer_call", "layer_config_of"]
