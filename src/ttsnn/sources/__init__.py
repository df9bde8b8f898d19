"""What a MODEL argument means: zoo names, factories, modules and files.

Everything that takes a network (``ttsnn.compile``, ``ttsnn compare`` …) resolves it here to a
:class:`ModelSource`, which knows the network's name, where it comes from, and which input it
takes. PyTorch is imported only where a network has to be built.
"""

from ttsnn.sources.resolve import resolve
from ttsnn.sources.source import InputShape, ModelOptions, ModelSource, parse_input_shape

__all__ = ["InputShape", "ModelOptions", "ModelSource", "parse_input_shape", "resolve"]
