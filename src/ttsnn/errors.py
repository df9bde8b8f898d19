"""The one tree of errors that ttsnn raises on purpose.

A message names the layer, the op and the shape where there is one, and ends with what to do.
The command line prints the message alone and exits with 2.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "DataError",
    "DeviceError",
    "ModelImportError",
    "PassError",
    "PlanError",
    "TTSNNError",
    "TargetError",
    "TuningError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """The first line of another library's message, for use inside one of ours; may be empty."""
    return (str(error).strip().splitlines() or [""])[0][:300]


class TTSNNError(Exception):
    """Base of every error that ttsnn raises for bad input or an impossible request."""


class ModelImportError(TTSNNError):
    """A model, its weights or its operators cannot be imported."""


class PlanError(TTSNNError):
    """A TT plan is malformed, or does not fit the network."""


class PassError(TTSNNError):
    """A compiler pass cannot handle the module that it was given."""


class TargetError(TTSNNError):
    """A target is unknown, or cannot run the module."""


class ArtifactError(TTSNNError):
    """A compiled artifact or a checkpoint is missing, damaged, or of another version."""


class DataError(TTSNNError):
    """A dataset or an input array is missing, malformed, or of the wrong shape or dtype."""


class DeviceError(TTSNNError):
    """A device is missing, or failed while it ran a network."""


class TuningError(TTSNNError):
    """A tuning database is damaged, in use or of another target, or the tuner cannot run."""
