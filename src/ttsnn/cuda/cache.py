"""What is compiled once and kept: files named by a hash of their source."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ttsnn.errors import TargetError

__all__ = ["cache_folder", "cached", "key_of"]


def cache_folder() -> Path:
    """``$TTSNN_CACHE``, or ``ttsnn`` in the user's cache folder; made if need be.

    Raises:
        TargetError: it cannot be made or written.
    """
    given = os.environ.get("TTSNN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(given) if given else Path(base) / "ttsnn"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        raise TargetError(f"cache folder {folder} cannot be written; set TTSNN_CACHE to another")
    return folder


def key_of(*parts: str | bytes) -> str:
    """A file name that depends on every byte of ``parts`` and on where one ends."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file ``name`` of the cache; ``make(path)`` writes it first where it is missing.

    Processes may ask for one file at the same time: each makes its own, one stays.
    """
    path = cache_folder() / name
    if not path.exists():
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=path.parent)
        os.close(handle)
        try:
            make(Path(temporary))
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return path
