"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ttsnn.errors import ModelImportError
from ttsnn.files import check_replaceable

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename.

    Raises:
        ModelImportError: where the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        check_replaceable(path)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False, suffix=".part") as f:
            temporary = f.name
            f.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as err:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise ModelImportError(
            f"{path}: cannot be written ({err.strerror or err}); choose another place"
        ) from None
