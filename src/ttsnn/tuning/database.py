"""The tuning database: MetaSchedule's, in a folder that says which target it is of.

``database_workload.json`` and ``database_tuning_record.json`` are MetaSchedule's, one entry a
line, only ever appended to. ``target.json`` is ours. A process that is killed while it writes
leaves half a line at the end, which readers leave out and the next writer cuts off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttsnn.errors import TuningError, first_line

__all__ = ["TuningDatabase", "default_folder"]

_WORKLOADS, _RECORDS = "database_workload.json", "database_tuning_record.json"
_TARGET, _LOCK = "target.json", "lock"
FORMAT = 1


def default_folder(identity: Mapping[str, str]) -> Path:
    """Where the records of a target are kept, where nobody says.

    In ``$TTSNN_TUNE_DIR``, else ``$XDG_CACHE_HOME/ttsnn/tune``, else ``~/.cache/ttsnn/tune``.

    Args:
        identity: what the target says it is, ``Target.tuning_identity``.
    """
    said = os.environ.get("TTSNN_TUNE_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = Path(said) if said else cache / "ttsnn" / "tune"
    words = [v for v in identity.values() if v]
    return base / "-".join("".join(c if c.isalnum() else "_" for c in w) for w in words)


class TuningDatabase:
    """What was measured for one target.

    Args:
        folder: its place; need not exist for :meth:`writing`.
        identity: the target that it must be of.

    Raises:
        TuningError: the folder holds something else, or records of another target.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.identity = dict(identity)
        if self.folder.exists() and not self.folder.is_dir():
            raise TuningError(f"{self.folder}: a tuning database is a folder, this is a file")
        self._check_target()

    @property
    def exists(self) -> bool:
        """Whether something was ever recorded."""
        return (self.folder / _RECORDS).is_file()

    def records(self) -> list[Any]:
        """All records, MetaSchedule's ``TuningRecord``.

        Raises:
            TuningError: the files are damaged.
        """
        if not self.exists:
            return []
        with tempfile.TemporaryDirectory(prefix="ttsnn-tune-") as copy:
            # records first: what they refer to is in the other file by then
            for name in (_RECORDS, _WORKLOADS):
                whole = _whole_lines(self._read(name))
                (Path(copy) / name).write_bytes(whole)
            return list(self._open(Path(copy)).get_all_tuning_records())

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """MetaSchedule's database, to append to; one process at a time.

        Raises:
            TuningError: another process tunes into it, it cannot be written, or is damaged.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise TuningError(f"{self.folder}: cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TuningError(
                    f"{self.folder}: another `ttsnn tune` writes to it; wait for its end, or name "
                    "another --database"
                ) from error
            self._claim()
            for name in (_WORKLOADS, _RECORDS):
                self._repair(name)
            yield self._open(self.folder)
        finally:
            os.close(lock)

    def _claim(self) -> None:
        """Say whose records these are."""
        from ttsnn.artifact import replacing

        path = self.folder / _TARGET
        if not path.exists():
            data = {"format": FORMAT, "target": self.identity}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(data, indent=1) + "\n")

    def _check_target(self) -> None:
        path = self.folder / _TARGET
        if not path.exists():
            if self.exists:
                raise TuningError(f"{self.folder}: has records but no {_TARGET}; of which target?")
            return
        try:
            data = json.loads(path.read_text())
            found, version = dict(data["target"]), int(data["format"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TuningError(f"{path}: damaged ({first_line(error)}); tune again") from error
        if version > FORMAT:
            raise TuningError(f"{path}: format {version} of a newer ttsnn; update it")
        if found != self.identity:
            differing = [
                k for k in {**found, **self.identity} if found.get(k) != self.identity.get(k)
            ]
            said = ", ".join(
                f"{k} {found.get(k)!r}, not {self.identity.get(k)!r}" for k in differing
            )
            raise TuningError(
                f"{self.folder}: records of another target ({said}); name another --database, "
                "or tune for this target"
            )

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise TuningError(f"{self.folder / name}: {error.strerror}") from error

    def _repair(self, name: str) -> None:
        """Cut half a line off the end."""
        path = self.folder / name
        data = self._read(name)
        whole = len(_whole_lines(data))
        if whole < len(data):
            os.truncate(path, whole)

    def _open(self, folder: Path) -> Any:
        from tvm.s_tir import meta_schedule as ms

        try:
            return ms.database.JSONDatabase(work_dir=str(folder))
        except Exception as error:
            raise TuningError(
                f"{self.folder}: damaged ({first_line(error)}); remove the folder and tune again, "
                "or go without it (--no-database)"
            ) from error


def _whole_lines(data: bytes) -> bytes:
    """The lines that were written to their end."""
    return data[: data.rfind(b"\n") + 1]
