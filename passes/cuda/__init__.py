"""The CUDA target: fused kernels written for NVIDIA GPUs."""
