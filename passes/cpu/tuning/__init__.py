"""What the tuner may change in a layer of the CPU target, and how one candidate is built."""

from ttsnn.passes.cpu.tuning.choice import LayerChoice
from ttsnn.passes.cpu.tuning.task import LayerTask, layer_tasks

__all__ = ["LayerChoice", "LayerTask", "layer_tasks"]
