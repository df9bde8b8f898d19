"""Networks and data that compile in a second."""

import numpy as np
import torch

from ttsnn import models


def vgg(seed=0, T=2):
    """Convolutions, pooling, batch norms, linear layers; the second convolution takes a plan."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.SpikingVGG((4, "M", 6, 5), (1, 8, 8), 3, T, hidden=(7,)).double()


def mlp(seed=0, T=2, hidden=(12,)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.SpikingMLP((1, 4, 4), 3, T, hidden=hidden).double()


def samples(n, shape=(1, 4, 4), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.standard_normal((n, *shape)) + y[:, None, None, None] * 0.7
    return torch.from_numpy(x), torch.from_numpy(y)
