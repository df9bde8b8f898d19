"""Bundles: compiled networks with TVM's runtime, for machines that have no TVM.

A folder with

- ``ttsnn_bundle.py``: ``python ttsnn_bundle.py`` checks each network against stored results;
  ``import ttsnn_bundle; net = ttsnn_bundle.load("name")`` loads one;
- ``lib/``: the parts of ttsnn, TVM and tvm-ffi that running a network loads, without the compiler;
- ``nets/``: the artifacts, and for each an input and what it must give;
- ``bundle.json``: names, Python versions, tolerances.

The machine needs Python of one of those versions and NumPy; PyTorch is welcome; CUDA code needs
NVIDIA's driver.
"""

from ttsnn.runtime.bundle.network import write_network
from ttsnn.runtime.bundle.write import BundledNet, write_bundle

__all__ = ["BundledNet", "write_bundle", "write_network"]
