"""The dialect: Relax operators for spiking neurons and tensor-train layers.

Importing this package registers ``relax.snn.lif``, ``relax.tt.conv2d``, ``relax.tt.linear``,
``relax.snn.batch_norm_train`` and their backward operators, and those of a dense convolution, with
type inference, reference legalisation and gradients.
"""

from ttsnn.ops import gradients, legalize_lif, legalize_tt_conv, legalize_tt_linear  # noqa: F401
from ttsnn.ops.batch_norm import (
    BATCH_NORM_TRAIN,
    BATCH_NORM_TRAIN_BACKWARD,
    batch_norm_train,
    batch_norm_train_backward,
)
from ttsnn.ops.conv_backward import (
    CONV2D_BACKWARD_DATA,
    CONV2D_BACKWARD_WEIGHT,
    conv2d_backward_data,
    conv2d_backward_weight,
)
from ttsnn.ops.neuron import (
    LIF,
    LIF_BACKWARD,
    lif,
    lif_attrs_of,
    lif_backward,
    operand_names,
)
from ttsnn.ops.registry import make_call, register_attr, register_op
from ttsnn.ops.tt_conv import (
    TT_CONV2D,
    TT_CONV2D_BACKWARD,
    TTConvAttrs,
    tt_conv2d,
    tt_conv2d_backward,
    tt_conv_attrs_of,
)
from ttsnn.ops.tt_linear import TT_LINEAR, TT_LINEAR_BACKWARD, tt_linear, tt_linear_backward

__all__ = [
    "BATCH_NORM_TRAIN",
    "BATCH_NORM_TRAIN_BACKWARD",
    "CONV2D_BACKWARD_DATA",
    "CONV2D_BACKWARD_WEIGHT",
    "LIF",
    "LIF_BACKWARD",
    "TT_CONV2D",
    "TT_CONV2D_BACKWARD",
    "TT_LINEAR",
    "TT_LINEAR_BACKWARD",
    "TTConvAttrs",
    "batch_norm_train",
    "batch_norm_train_backward",
    "conv2d_backward_data",
    "conv2d_backward_weight",
    "lif",
    "lif_attrs_of",
    "lif_backward",
    "make_call",
    "operand_names",
    "register_attr",
    "register_op",
    "tt_conv2d",
    "tt_conv2d_backward",
    "tt_conv_attrs_of",
    "tt_linear",
    "tt_linear_backward",
]
