"""Sizes and orders of axes: of the network's tensors, and of the accelerator's."""

from __future__ import annotations

from tvm import relax

from ttsnn.errors import TargetError

__all__ = [
    "frames_of",
    "image_axes",
    "is_flat",
    "is_timed",
    "shape_of",
    "split_columns",
    "text_of",
    "weight_shape",
]


def shape_of(expr: relax.Expr) -> list[int]:
    """Static sizes of a value."""
    shape = getattr(expr.ty, "shape", None)
    try:
        return [int(s) for s in shape.values]  # type: ignore[union-attr]
    except (TypeError, AttributeError):
        raise TargetError(
            f"target ttsnn-accel: {text_of(expr)} has a size that varies; compile for a fixed batch"
        ) from None


def text_of(expr: relax.Expr) -> str:
    """A value's type, for messages."""
    return str(getattr(expr, "ty", expr))


def is_flat(shape: tuple[int, ...] | list[int]) -> bool:
    """Whether a parameter has one axis that matters, the first."""
    return len(shape) == 0 or all(s == 1 for s in shape[1:])


def is_timed(rank: int) -> bool:
    """Whether the first axis of an image of so many is time."""
    return rank in (3, 5)


def frames_of(shape: list[int]) -> tuple[int, int, int, int]:
    """[frames, height, width, channels] of an image's sizes in the network."""
    match list(shape):
        case [t, n, c, h, w]:
            return t * n, h, w, c
        case [f, c, h, w]:
            return f, h, w, c
        case [t, n, c]:
            return t * n, 1, 1, c
        case [n, c]:
            return n, 1, 1, c
        case [n]:
            return n, 1, 1, 1
    raise TargetError(f"target ttsnn-accel: a value of shape {tuple(shape)}")


def image_axes(rank: int) -> tuple[int, ...]:
    """Permutation from the network's axes of an image to the accelerator's."""
    return {5: (0, 1, 3, 4, 2), 4: (0, 2, 3, 1)}.get(rank, tuple(range(rank)))


def weight_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """[1, taps, input channels, output channels] of a parameter's sizes."""
    if is_flat(shape):
        return 1, 1, 1, (shape or (1,))[0]
    match shape:
        case (o, i):
            return 1, 1, i, o
        case (o, i, k):
            return 1, k, i, o
        case (o, i, kh, kw):
            return 1, kh * kw, i, o
    raise TargetError(f"target ttsnn-accel: a parameter of shape {shape}")


def split_columns(
    shape: tuple[int, int, int, int], columns_last: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """View and permutation of a matrix on whose inputs an image was flattened.

    Args:
        shape: [1, pixels, channels, out] on the accelerator.
        columns_last: the matrix is [in, out] in the network; else [out, in].
    """
    _, pixels, channels, out = shape
    if columns_last:
        return (channels, pixels, out), (1, 0, 2)
    return (out, channels, pixels), (2, 1, 0)
