"""Training: compiled networks under ``torch.autograd``, and whole compiled steps.

Needs PyTorch and the compiler, unlike the rest of :mod:`ttsnn.runtime`.

- :mod:`~ttsnn.runtime.training.module`: ``ttsnn.compile(…, training=True)``;
- :mod:`~ttsnn.runtime.training.trainer`: ``ttsnn.Trainer``;
- :mod:`~ttsnn.runtime.training.gradcheck`, :mod:`~ttsnn.runtime.training.compare_train`: checks
  against PyTorch.
"""
