"""Training programs as calls of kernels: what the CPU's and the GPU's have in common.

Images are [1, T · N, H, W, C]. ``lowering.py`` walks over a program, ``calls.py`` emits calls of
the kernels between convolutions, whose loops each target writes its own way (``arrays.py``).
"""
