"""Training: compiled networks under ``torch.autograd``, and whole compiled steps.

Needs PyTorch and the compiler, unlike the rest of :mod:`ttsnn.runtime`.
"""
