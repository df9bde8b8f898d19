"""NumPy arrays and PyTorch tensors to TVM tensors and back, through DLPack."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm_ffi

from ttsnn.errors import DataError
from ttsnn.specs import TensorSpec

if TYPE_CHECKING:
    from ttsnn.runtime.devices import Place

__all__ = ["aligned_copy", "as_tensor", "from_tensor", "kind_of"]


def kind_of(value: Any) -> str:
    """``"torch"`` or ``"torch_cuda"`` for a PyTorch tensor, else ``"numpy"``."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return "numpy"
    return "torch_cuda" if value.device.type == "cuda" else "torch"


def as_tensor(
    value: Any,
    spec: TensorSpec,
    sizes: dict[str, int],
    alignment: int,
    place: Place | None = None,
) -> Any:
    """An input as a TVM tensor on a device, sharing its memory where it is there already.

    A copy is made where the memory is not contiguous, or not aligned to ``alignment`` bytes, or
    read-only (DLPack cannot say that).

    Args:
        value: NumPy array or PyTorch tensor.
        spec: what it must be.
        sizes: values of symbolic sizes; new ones are added.
        alignment: bytes.
        place: where the network runs; the CPU by default.

    Raises:
        DataError: type, dtype, shape or device do not fit.
    """
    if place is not None and not place.host:
        return _on_gpu(value, spec, sizes, alignment, place)
    if kind_of(value) != "numpy":
        dtype = str(value.dtype).removeprefix("torch.")
        _check(spec, dtype, tuple(value.shape), sizes)
        if value.device.type != "cpu":
            raise DataError(
                f"input {spec.name} is on {value.device}; a network compiled for the CPU takes "
                "CPU tensors: use x.cpu()"
            )
        value = value.detach()
        if not value.is_contiguous() or value.data_ptr() % alignment:
            value = value.clone(memory_format=_contiguous_format())
        if value.data_ptr() % alignment:
            return tvm_ffi.from_dlpack(aligned_copy(value.numpy(), alignment))
        return tvm_ffi.from_dlpack(value)
    if not isinstance(value, np.ndarray):
        raise DataError(
            f"input {spec.name} must be a NumPy array or a PyTorch tensor, "
            f"got {type(value).__name__}"
        )
    _check(spec, value.dtype.name, value.shape, sizes)
    if value.dtype.byteorder not in "=|" and not value.dtype.isnative:
        raise DataError(f"input {spec.name} has another byte order; use x.astype({spec.dtype!r})")
    contiguous = value.flags.c_contiguous and value.flags.writeable
    if not contiguous or value.ctypes.data % alignment:
        value = aligned_copy(value, alignment)
    return tvm_ffi.from_dlpack(value)


def _on_gpu(
    value: Any, spec: TensorSpec, sizes: dict[str, int], alignment: int, place: Place
) -> Any:
    """As :func:`as_tensor`: PyTorch's CUDA tensors are shared, others are copied there."""
    if kind_of(value) != "torch_cuda":
        return place.upload(as_tensor(value, spec, sizes, 1).numpy())
    _check(spec, str(value.dtype).removeprefix("torch."), tuple(value.shape), sizes)
    if place.emulated or value.device.index != place.device.index:
        where = "the emulated GPU" if place.emulated else f"GPU {place.device.index}"
        raise DataError(f"input {spec.name} is on {value.device}, the network on {where}")
    value = value.detach()
    if not value.is_contiguous() or value.data_ptr() % alignment:
        value = value.clone(memory_format=_contiguous_format())
    return tvm_ffi.from_dlpack(value)


def aligned_copy(value: np.ndarray, alignment: int) -> np.ndarray:
    """A contiguous copy whose first byte is at a multiple of ``alignment``."""
    buffer = np.empty(value.nbytes + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    out = buffer[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    np.copyto(out, value)
    return out


def from_tensor(tensor: Any, kind: str, place: Place | None = None) -> Any:
    """A TVM tensor as NumPy array or PyTorch tensor: sharing its memory, but for results of a GPU
    that go to the CPU.
    """
    if place is not None and not place.host and kind != "torch_cuda":
        with place.errors():
            array = tensor.numpy()
        return array if kind == "numpy" else sys.modules["torch"].from_numpy(array)
    if kind != "numpy":
        return sys.modules["torch"].from_dlpack(tensor)
    return np.from_dlpack(tensor)


def _contiguous_format() -> Any:
    return sys.modules["torch"].contiguous_format


def _check(spec: TensorSpec, dtype: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    expected = f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
    if dtype != spec.dtype:
        cure = f", or compile with dtype={dtype!r}" if dtype in ("float32", "float64") else ""
        raise DataError(
            f"input {spec.name} must be {expected}, got dtype {dtype}; convert it{cure}"
        )
    fits = len(shape) == len(spec.shape)
    fresh: dict[str, int] = {}
    for want, got in zip(spec.shape, shape):
        if isinstance(want, str):
            known = sizes.get(want, fresh.get(want))
            fits = fits and got > 0 and known in (None, got)
            fresh[want] = got
        else:
            fits = fits and want == got
    if not fits:
        bound = {k: v for k, v in sizes.items() if k in spec.shape}
        where = f" with {', '.join(f'{k} = {v}' for k, v in bound.items())}" if bound else ""
        raise DataError(f"input {spec.name} must be {expected}{where}, got shape {list(shape)}")
    sizes.update(fresh)
