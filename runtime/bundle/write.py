"""Writing a bundle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttsnn.artifact import read_artifact
from ttsnn.errors import ArtifactError
from ttsnn.runtime.bundle.collect import copy_runtime, copy_wheels, this_python

__all__ = ["BundledNet", "check_folder", "write_bundle"]

_HERE = Path(__file__).resolve().parent
_LOADER = "ttsnn_bundle.py"


@dataclass(frozen=True)
class BundledNet:
    """An artifact and how to know on another machine that it works.

    Attributes:
        path: the ``.ttsnn`` file.
        inputs: arguments of a call.
        outputs: what it must give; of a training step loss and logits of one update, or more.
        tolerance: largest max |result − output| / max |output|, of each output or of all.
    """

    path: Path
    inputs: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]
    tolerance: float | Sequence[float]


def write_bundle(
    folder: str | os.PathLike,
    nets: Mapping[str, BundledNet],
    *,
    python: Sequence[str] = (),
    extra: Sequence[Path] = (),
) -> int:
    """Write a bundle, see :mod:`ttsnn.runtime.bundle`.

    Args:
        folder: must not exist, or be empty.
        nets: name → network.
        python: more Python versions, ``"3.12"``, for which pip downloads what is compiled.
        extra: further files and folders to take along.

    Returns:
        The sum of its files' sizes, bytes.

    Raises:
        ArtifactError: it cannot be written; nothing half-written stays.
    """
    folder = Path(folder)
    check_folder(folder)
    temporary = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent)
    try:
        place = Path(temporary)
        place.chmod(0o755)
        _fill(place, nets, python, extra)
        size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
        return size
    except OSError as error:
        raise ArtifactError(f"{folder}: not written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Refuse an impossible folder before minutes of work.

    Raises:
        ArtifactError: it has something in it, or its parent does not exist.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder}: not written, it exists; name a new folder")
    if not folder.absolute().parent.is_dir():
        raise ArtifactError(f"{folder}: not written, {folder.parent} does not exist")


def _fill(
    place: Path, nets: Mapping[str, BundledNet], python: Sequence[str], extra: Sequence[Path]
) -> None:
    from safetensors.numpy import save_file

    library = place / "lib"
    copy_runtime(library)
    versions = [this_python(), *(v for v in python if v != this_python())]
    for version in versions[1:]:
        copy_wheels(library, version, _pins())
    (place / "nets").mkdir()
    entries: dict[str, Any] = {}
    for name, net in nets.items():
        manifest = read_artifact(net.path, contents=False).manifest
        shutil.copyfile(net.path, place / "nets" / f"{name}.ttsnn")
        stored = {f"in.{i:03}": np.asarray(a, order="C") for i, a in enumerate(net.inputs)}
        stored |= {f"out.{i:03}": np.asarray(a, order="C") for i, a in enumerate(net.outputs)}
        save_file(stored, place / "nets" / f"{name}.check.safetensors")
        entries[name] = {
            "kind": "step" if "train" in manifest.info else "net",
            "model": manifest.model,
            "target": manifest.target["name"],
            "archs": manifest.target.get("archs", []),
            "tolerance": _each(net.tolerance, len(net.outputs)),
        }
        _copy_device_libraries(library, manifest.target["name"])
    shutil.copyfile(_HERE / _LOADER, place / _LOADER)
    for path in extra:
        if path.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(path, place / path.name, ignore=unwanted)
        else:
            shutil.copyfile(path, place / path.name)
    sizes = {
        str(file.relative_to(place)): file.stat().st_size
        for part in (library, place / "nets")
        for file in sorted(part.rglob("*"))
        if file.is_file()
    }
    data = {"format": 1, "python": versions, "nets": entries, "files": sizes}
    (place / "bundle.json").write_text(json.dumps(data, indent=1) + "\n")


def _each(tolerance: float | Sequence[float], count: int) -> list[float]:
    return list(tolerance) if isinstance(tolerance, Sequence) else [tolerance] * count


def _pins() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("apache-tvm-ffi", "ml_dtypes")]


def _copy_device_libraries(library: Path, target: str) -> None:
    """The emulated driver, or CUDA's runtime library where it is here."""
    if target == "cuda-emulated":
        from ttsnn.cuda.emulator.stand_in import LIBRARIES, prepare

        folder = library / "ttsnn" / "cuda" / "emulator" / "prebuilt"
        folder.mkdir(exist_ok=True)
        for source, name in zip(prepare(), LIBRARIES, strict=True):
            shutil.copyfile(source, folder / name)
    if target == "cuda":
        from ttsnn.cuda.runtime import CUDART
        from ttsnn.cuda.toolkit import find_library

        found = find_library(CUDART)
        if found is not None:
            shutil.copyfile(found, library / "tvm" / "lib" / CUDART)
