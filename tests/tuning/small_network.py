"""A network tuned in seconds: a dense convolution, two that a plan makes equal, and a last one.

The last one is another task: its spikes are the result, as floats, the others' are bytes.
"""

from __future__ import annotations

from torch import Tensor, nn

from ttsnn.models import LIF


class Small(nn.Module):
    """Four equal 3×3 convolutions with neurons, for event frames [2, N, 6, 5, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.T, self.input_shape, self.static_input = 2, (6, 5, 4), False
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(4))
        self.lif = LIF(tau=2.0)

    def forward(self, x: Tensor) -> Tensor:
        """[2, N, 6, 5, 4] → spikes of the same shape."""
        for conv in self.convs:
            y = conv(x.flatten(0, 1))
            x = self.lif(y.reshape(2, -1, *y.shape[1:]))
        return x


def build() -> Small:
    """The network with random weights."""
    return Small().eval()
