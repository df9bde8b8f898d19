"""Training programs on the CPU: channels-last kernels for forward, backward and update."""

from ttsnn.passes.cpu.training.pipeline import training_passes
from ttsnn.passes.cpu.training.to_kernels import ToTrainingKernels

__all__ = ["ToTrainingKernels", "training_passes"]
