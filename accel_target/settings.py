"""TOML files as frozen dataclasses: unknown keys are refused, every value is checked.

A dataclass says what its keys mean: its fields' types, with :class:`Range` and
``Literal`` for the values they may have, and their defaults. :func:`read_settings` needs nothing
else.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import tomllib
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ttsnn.errors import TargetError

__all__ = ["Range", "fingerprint", "parse_settings", "read_settings", "shipped", "to_plain"]

T = TypeVar("T")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may have: ``rows: Annotated[int, Range(1, 4096)]``."""

    at_least: float
    at_most: float = math.inf


def shipped(folder: str) -> dict[str, Any]:
    """Name → file of the TOML files that ship in ``ttsnn.accel_target/<folder>``."""
    base = resources.files("ttsnn.accel_target").joinpath(folder)
    files = [f for f in base.iterdir() if f.name.endswith(".toml")]
    return {f.name.removesuffix(".toml"): f for f in sorted(files, key=lambda f: f.name)}


def read_settings(cls: type[T], what: str, folder: str, source: str | os.PathLike) -> T:
    """Read one settings file.

    Args:
        cls: frozen dataclass; may have ``check(where)`` for what no single field can say.
        what: what the file describes, for messages: ``"architecture"``.
        folder: where the shipped ones lie.
        source: name of a shipped one, or path of a ``.toml`` file.

    Raises:
        TargetError: no such file, no TOML, an unknown or missing key, an impossible value; the
            message names file, key and cure.
    """
    name = os.fspath(source)
    known = shipped(folder)
    if name in known:
        text, where = known[name].read_text("utf-8"), f"{name}.toml"
    elif name.endswith(".toml"):
        where = name
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise TargetError(f"{what} file {name}: {reason}; give a readable .toml file") from None
    else:
        close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f", did you mean {' or '.join(close)}?" if close else ""
        raise TargetError(
            f"unknown {what} {name!r}{hint}; there are {', '.join(known)}, or give a .toml file"
        )
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"{what} file {where} is no valid TOML: {error}; correct it") from None
    return parse_settings(cls, data, where)


def parse_settings(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Plain dict → dataclass; errors as :func:`read_settings`, ``where`` names the file."""
    return _table(cls, data, where, "")


def _table(cls: type[T], data: Any, where: str, key: str) -> T:
    if not isinstance(data, Mapping):
        raise _bad(where, key, f"must be a table of keys, got {data!r}", f"write [{key}]")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{key}." if key else ""
    for name in data:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            cure = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields)}"
            raise _bad(where, prefix + name, "is no known key", cure)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], where, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _bad(where, prefix + name, "is missing", "add it")
    made = cls(**values)
    check = getattr(made, "check", None)
    if check is not None:
        check(lambda name, problem, cure: _bad(where, prefix + name, problem, cure))
    return made


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """One value of a table, checked against its field's type."""
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast(type, hint), value, where, key)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise _bad(where, key, f"must be a list, got {value!r}", f"write [[{key}]]")
        return tuple(_value(inner[0], v, where, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _bad(where, key, f"must be a table of keys, got {value!r}", f"write [{key}]")
        return {k: _value(inner[1], v, where, f"{key}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in inner:
            raise _bad(where, key, f"has no setting {value!r}", f"choose {' or '.join(inner)}")
        return value
    allowed = None
    if origin is typing.Annotated:
        hint, allowed = inner
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise _bad(where, key, f"must be {_KINDS[hint]}, got {value!r}", "correct its value")
    if allowed is not None and value < allowed.at_least:
        raise _bad(where, key, f"is {value}", f"it must be at least {allowed.at_least}")
    if allowed is not None and value > allowed.at_most:
        raise _bad(where, key, f"is {value}", f"it must be at most {allowed.at_most}")
    return value


def _bad(where: str, key: str, problem: str, cure: str) -> TargetError:
    return TargetError(f"{where}: {key} {problem}; {cure}")


def to_plain(value: Any) -> Any:
    """A settings dataclass as plain dicts and lists, in the order of its fields."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return value


def fingerprint(value: Any) -> str:
    """16 hex digits that change with every value of a settings dataclass and nothing else.

    The same on every machine and Python: the start of the SHA-256 of its canonical JSON.
    """
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
