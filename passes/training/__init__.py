"""From an imported program to training programs, independent of the target.

Three ways in, each ``IRModule → IRModule``; the program is what
:func:`ttsnn.frontend.import_model` gives for a fixed batch size, dense or after
:class:`ttsnn.passes.DecomposeToTT`:

- :func:`build_autograd`: ``forward`` and ``backward``, for ``torch.autograd.Function``;
- :func:`build_train_step`: one whole step, ``main``;
- :func:`build_gradients` and :func:`build_update`: its two halves, for data-parallel training.

All results are one flat tuple. :meth:`Manifest.of` says what every argument and result is::

    step = build_train_step(program, CrossEntropy(), SGD(momentum=0.9))
    signature = Manifest.of(step).functions["main"]
    for slot in signature.arguments: slot.name, slot.role, slot.shape, slot.dtype

An argument and a result of the same role (``param``, ``buffer``, ``optimizer``, ``state``) and
name are the old and the new value. ``params_of(step)`` has the values to start from.

The bodies are at the level of the dialect: ``snn.lif``, ``snn.lif_backward``, ``tt.conv2d``,
``tt.conv2d_backward``, ``tt.linear``, ``tt.linear_backward``, ``snn.batch_norm_train``,
``snn.batch_norm_train_backward``, ``nn.conv2d``, ``dense.conv2d_backward_data``,
``dense.conv2d_backward_weight`` and Relax's own operators; all have a reference legalisation.
"""

from ttsnn.passes.training.append_loss import AppendLoss
from ttsnn.passes.training.batch_norm import TrainingBatchNorm
from ttsnn.passes.training.differentiate import Differentiate
from ttsnn.passes.training.losses import CrossEntropy, Loss, TETLoss
from ttsnn.passes.training.manifest import MANIFEST, Manifest, Signature, Slot
from ttsnn.passes.training.optimizers import SGD, Adam, AdamW, Optimizer
from ttsnn.passes.training.step import (
    build_autograd,
    build_gradients,
    build_train_step,
    build_update,
)

__all__ = [
    "MANIFEST",
    "SGD",
    "Adam",
    "AdamW",
    "AppendLoss",
    "CrossEntropy",
    "Differentiate",
    "Loss",
    "Manifest",
    "Optimizer",
    "Signature",
    "Slot",
    "TETLoss",
    "TrainingBatchNorm",
    "build_autograd",
    "build_gradients",
    "build_train_step",
    "build_update",
]
