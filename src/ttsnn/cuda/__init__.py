"""CUDA around the compiler: device code without a GPU, and a GPU that is emulated.

- :mod:`ttsnn.cuda.compiler`: CUDA source to machine code, offline.
- :mod:`ttsnn.cuda.runtime`: TVM's CUDA runtime and what may be missing for it.
- :mod:`ttsnn.cuda.emulator`: TVM's CUDA runtime over a driver that runs kernels on the CPU.

Needs TVM's runtime alone.
"""
