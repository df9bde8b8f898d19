"""Mathematics of tensor-train layers: cores from dense weights and back, ranks, errors.

NumPy and SciPy only, float64 inside. The compiler's pass and the PyTorch twin both take their
cores from here.
"""

from ttsnn.tt.cores import (
    ConvCores,
    FitErrors,
    conv_errors,
    cross_part,
    reconstruct_conv,
    reconstruct_linear,
    relative_error,
)
from ttsnn.tt.fit import CrossFit, cross_slices, fit_conv, fit_cross, fit_linear, tt_svd
from ttsnn.tt.fresh import fresh_conv, fresh_linear
from ttsnn.tt.shapes import (
    MODES,
    Mode,
    check_conv_ranks,
    check_conv_shape,
    check_factors,
    check_linear_ranks,
    check_mode,
    clip_conv_ranks,
    clip_linear_ranks,
    conv_core_shapes,
    factorize_sizes,
    linear_core_shapes,
)
from ttsnn.tt.subspace import singular_values
from ttsnn.tt.vbmf import evbmf_rank

__all__ = [
    "MODES",
    "ConvCores",
    "CrossFit",
    "FitErrors",
    "Mode",
    "check_conv_ranks",
    "check_conv_shape",
    "check_factors",
    "check_linear_ranks",
    "check_mode",
    "clip_conv_ranks",
    "clip_linear_ranks",
    "conv_core_shapes",
    "conv_errors",
    "cross_part",
    "cross_slices",
    "evbmf_rank",
    "factorize_sizes",
    "fit_conv",
    "fit_cross",
    "fit_linear",
    "fresh_conv",
    "fresh_linear",
    "linear_core_shapes",
    "reconstruct_conv",
    "reconstruct_linear",
    "relative_error",
    "singular_values",
    "tt_svd",
]
