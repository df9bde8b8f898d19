"""Running compiled networks: load, call, profile, compare.

``net``, ``tensors``, ``threads`` and ``cpu`` need NumPy and TVM's runtime library alone;
``compare``, ``twins`` and ``peers`` need PyTorch and the compiler.
"""
