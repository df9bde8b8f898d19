"""Training programs on the GPU: channels-last kernels for forward, backward and update."""

from ttsnn.passes.cuda.training.pipeline import training_passes
from ttsnn.passes.cuda.training.to_kernels import ToCudaTrainingKernels

__all__ = ["ToCudaTrainingKernels", "training_passes"]
