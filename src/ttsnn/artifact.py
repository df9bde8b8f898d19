"""The compiled network as one file: ``net.ttsnn``.

A zip, of which the library alone is compressed (to a quarter; weights hardly shrink), that holds

- ``manifest.json``: format version, versions of ttsnn, TVM and its FFI, target with the CPU
  features that the code uses, inputs, outputs, state, plan, kernels, SHA-256 of the others;
- ``lib.so``: the shared library with the machine code and the program that calls it;
- ``params.safetensors``: the parameters.

No pickles. A file is written under a temporary name and renamed, so a reader never sees half of
one. The same network compiled twice gives manifests that differ in nothing but the library's
digest: no dates, no paths.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttsnn.errors import ArtifactError
from ttsnn.files import check_replaceable
from ttsnn.specs import TensorSpec

__all__ = [
    "FORMAT",
    "Artifact",
    "KernelEntry",
    "Manifest",
    "StateEntry",
    "read_artifact",
    "replacing",
    "write_artifact",
]

FORMAT = 1
"""Version of the file format that this ttsnn writes; it reads this and older ones."""

_MANIFEST = "manifest.json"
_LIBRARY = "lib.so"
_PARAMS = "params.safetensors"
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class StateEntry:
    """One tensor that a call hands to the next: ``output`` (index) becomes input ``input``.

    ``initial`` is the number that fills it before the first call.
    """

    input: str
    output: int
    initial: float = 0.0


@dataclass(frozen=True)
class KernelEntry:
    """One compiled kernel.

    Attributes:
        name: symbol in the library.
        rule: the schedule rule that produced it.
        layers: names of the network's layers that it computes.
        macs: multiply-accumulates of one call; for one sample where the batch is symbolic.
        calls: how often one call of the network runs it.
        scheduled: False where no rule fitted, so that it runs as plain loops.
    """

    name: str
    rule: str
    layers: tuple[str, ...] = ()
    macs: int = 0
    calls: int = 1
    scheduled: bool = True


@dataclass(frozen=True)
class Manifest:
    """Everything that an artifact says about itself; see the module's docstring.

    Attributes:
        model: the network's name.
        target: ``{"name", "llvm", "arch", "features"}`` of the CPU, features as /proc/cpuinfo names
            them, and what the target adds: ``archs`` of GPU code.
        versions: ``{"ttsnn", "tvm", "tvm_ffi"}`` that compiled it.
        inputs: what ``main`` takes before the parameters, state included, in order.
        outputs: what ``main`` returns, state included, in order.
        state: which inputs and outputs are state.
        params: names of the parameters in the order of ``main``'s arguments.
        T: timesteps; None where the network did not say.
        alignment: bytes to which the code expects its inputs to be aligned.
        plan: the TT plan, or None.
        kernels: what the library contains.
        spikes: names of the outputs that record spikes, layer by layer, in execution order.
        info: more, as ``{"cuda": {"compiler", "flags", "usage"}}``: what a CUDA compiler said.
    """

    model: str
    target: dict[str, Any]
    versions: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StateEntry, ...] = ()
    params: tuple[str, ...] = ()
    T: int | None = None
    alignment: int = 64
    plan: dict | None = None
    kernels: tuple[KernelEntry, ...] = ()
    spikes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int | None:
        """Samples of one call (axis 1 of [T, N, C, H, W], else axis 0); None where it is open."""
        shape = self.inputs[0].shape if self.inputs else ()
        size = shape[1 if len(shape) == 5 else 0] if shape else 1
        return size if isinstance(size, int) else None

    @property
    def executed_macs(self) -> int:
        """Multiply-accumulates that the kernels execute for one sample."""
        return sum(k.macs * k.calls for k in self.kernels) // max(self.batch or 1, 1)

    @property
    def fallback_kernels(self) -> list[str]:
        """Names of kernels without a schedule."""
        return [k.name for k in self.kernels if not k.scheduled]

    def to_json(self) -> dict:
        """Plain dict."""
        return {
            **asdict(self),
            "inputs": [s.to_json() for s in self.inputs],
            "outputs": [s.to_json() for s in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`; keys that it doesn't know are ignored."""
        known = {k: data[k] for k in cls.__dataclass_fields__ if k in data}
        known["inputs"] = tuple(TensorSpec.from_json(s) for s in known["inputs"])
        known["outputs"] = tuple(TensorSpec.from_json(s) for s in known["outputs"])
        known["state"] = tuple(StateEntry(**s) for s in known.get("state", ()))
        known["kernels"] = tuple(
            KernelEntry(**{**k, "layers": tuple(k["layers"])}) for k in known.get("kernels", ())
        )
        for key in ("params", "spikes"):
            known[key] = tuple(known.get(key, ()))
        return cls(**known)


@dataclass(frozen=True)
class Artifact:
    """What was read from a file: the manifest, the parameters and the library's bytes."""

    path: Path
    manifest: Manifest
    params: dict[str, np.ndarray]
    library: bytes


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well.

    Raises:
        ArtifactError: where the folder is missing, not writable, or the disk is full; nothing
            is left behind then, and a file that was there before stays.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        check_replaceable(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ArtifactError(_write_error(path, error)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _write_error(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{path}: not written, the disk is full ({error.strerror}); free space and retry"
    if error.errno == errno.ENOENT:
        return f"{path}: not written, folder {path.parent} does not exist"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: not written, folder {path.parent} is not writable"
    return f"{path}: not written: {error.strerror or error}"


def write_artifact(
    path: str | os.PathLike,
    manifest: Manifest,
    params: Mapping[str, np.ndarray],
    library: bytes,
) -> int:
    """Write a ``.ttsnn`` file and return its size in bytes.

    Raises:
        ArtifactError: it cannot be written; nothing half-written stays.
    """
    from safetensors.numpy import save

    members = {_LIBRARY: library, _PARAMS: save({k: params[k] for k in manifest.params})}
    data = manifest.to_json()
    data["format"] = FORMAT
    data["sha256"] = {k: hashlib.sha256(v).hexdigest() for k, v in members.items()}
    data["digest"] = _digest(data)
    members = {_MANIFEST: json.dumps(data, indent=1).encode(), **members}
    with replacing(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members.items():
                how = zipfile.ZIP_DEFLATED if name == _LIBRARY else zipfile.ZIP_STORED
                archive.writestr(zipfile.ZipInfo(name, _DATE), content, how)
        size = temporary.stat().st_size
    return size


def _digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest."""
    plain = json.dumps({k: v for k, v in data.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def read_artifact(path: str | os.PathLike, *, contents: bool = True) -> Artifact:
    """Read and verify a ``.ttsnn`` file; neither TVM nor PyTorch is needed.

    Args:
        path: the file.
        contents: False reads and verifies the manifest alone (parameters and library empty).

    Raises:
        ArtifactError: missing, truncated, changed since it was written, or written by a newer
            ttsnn.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            manifest_bytes = archive.read(_MANIFEST)
            data = json.loads(manifest_bytes)
            _check_manifest(path, data)
            blobs = {}
            for name in (_LIBRARY, _PARAMS) if contents else ():
                blobs[name] = archive.read(name)
                if hashlib.sha256(blobs[name]).hexdigest() != data["sha256"].get(name):
                    raise ArtifactError(
                        f"{path}: {name} is not what was written (SHA-256 differs); "
                        "compile it again"
                    )
        manifest = Manifest.from_json(data)
        params: dict[str, np.ndarray] = {}
        if contents:
            from safetensors.numpy import load

            params = load(blobs[_PARAMS])
            absent = [k for k in manifest.params if k not in params]
            if absent:
                raise ArtifactError(f"{path}: parameter {absent[0]} is missing")
        return Artifact(path, manifest, params, blobs.get(_LIBRARY, b""))
    except ArtifactError:
        raise
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever zipfile, json and safetensors say of damaged bytes
        raise ArtifactError(
            f"{path}: not a compiled network, or damaged or truncated "
            f"({type(error).__name__}: {error}); compile it again"
        ) from error


def _check_manifest(path: Path, data: Any) -> None:
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ArtifactError(f"{path}: the manifest is not one of ttsnn's")
    if data["format"] > FORMAT:
        raise ArtifactError(
            f"{path}: format {data['format']} of a newer ttsnn "
            f"({data.get('versions', {}).get('ttsnn', '?')}); this one reads up to {FORMAT}: "
            "update ttsnn"
        )
    if data.get("digest") != _digest(data):
        raise ArtifactError(
            f"{path}: manifest.json is not what was written (SHA-256 differs); compile it again"
        )
