"""Kernels of the CPU target: the fused layer, the LIF scan."""
