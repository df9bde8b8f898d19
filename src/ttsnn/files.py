"""What may be overwritten, and whether there is room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["check_replaceable", "check_room"]


def check_replaceable(path: str | os.PathLike) -> None:
    """Refuse to rename a finished file over a device or a pipe (``/dev/null``), which would go.

    Raises:
        OSError: it is one.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))


def check_room(folder: str | os.PathLike, size: int) -> None:
    """Make sure that a folder has room for a file of ``size`` bytes, by reserving it for a moment.

    For writers that end the process where the disk is full, as LLVM does.

    Raises:
        OSError: it has not.
    """
    probe = Path(folder) / "room"
    try:
        with open(probe, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    finally:
        probe.unlink(missing_ok=True)
