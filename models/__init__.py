"""PyTorch networks, TT layers and datasets: what the compiled code is compared with."""

from ttsnn.models.lif import LIF
from ttsnn.models.lif_op import lif
from ttsnn.models.tt_ops import tt_conv2d, tt_linear

__all__ = ["LIF", "lif", "tt_conv2d", "tt_linear"]
