"""Kernels of the CUDA target, written by hand in TIR with their threads bound."""
