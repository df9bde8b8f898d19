"""Tensors that the artifacts and networks of a folder share: each content once.

Artifacts here hold code alone; names and contents of their parameters stand in the index. Else the
weights of one network would be stored with each batch size, precision and phase.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

FILE = "tensors.safetensors"
Names = dict[str, str]
"""Name of a tensor → its content's."""


class Store:
    """The tensors of a folder; those that are there stay.

    Raises:
        SafetensorError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self._file = folder / FILE
        self._tensors = load_file(self._file) if self._file.exists() else {}

    def add(self, values: Mapping[str, np.ndarray]) -> Names:
        """Keep tensors."""
        names = {}
        for name, value in values.items():
            array = np.asarray(value, order="C")
            about = f"{array.dtype.str}{array.shape}".encode()
            key = hashlib.sha256(about + array.tobytes()).hexdigest()[:24]
            self._tensors[key], names[name] = array, key
        return names

    def get(self, names: Names) -> dict[str, np.ndarray]:
        """Tensors by their own names.

        Raises:
            KeyError: one is not there.
        """
        return {name: self._tensors[key] for name, key in names.items()}

    def save(self) -> None:
        """Write them."""
        from safetensors.numpy import save_file

        from ttsnn.artifact import replacing

        with replacing(self._file) as temporary:
            save_file(self._tensors, temporary)


def write_json(path: Path, data: Any) -> None:
    """Write a file; one that was there stays where that fails."""
    from ttsnn.artifact import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1))


def strip(file: Path, store: Store) -> Names:
    """Move the parameters of an artifact into a store; their names in the order of arguments."""
    from ttsnn.artifact import read_artifact, write_artifact

    artifact = read_artifact(file)
    write_artifact(file, replace(artifact.manifest, params=()), {}, artifact.library)
    return store.add({name: artifact.params[name] for name in artifact.manifest.params})


def loaded(file: Path, names: Names, store: Store) -> Any:
    """A network or training step whose parameters are in a store, ready to be called."""
    from ttsnn.artifact import read_artifact
    from ttsnn.runtime.cpu import check_cpu
    from ttsnn.runtime.devices import place_of
    from ttsnn.runtime.net import Net, load_library
    from ttsnn.runtime.step_file import Step

    artifact = read_artifact(file)
    params = store.get(names)
    manifest = replace(artifact.manifest, params=tuple(names))
    check_cpu(file, manifest.target)
    place_of(manifest.target, str(file))
    kind = Step if "train" in manifest.info else Net
    return kind(load_library(artifact), manifest, params)
