"""TT plans: which layers become tensor trains, in which form, with which ranks."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttsnn.errors import PlanError
from ttsnn.files import check_replaceable
from ttsnn.plans.info import Kind, LayerInfo, find_layer
from ttsnn.tt import (
    check_conv_ranks,
    check_factors,
    check_linear_ranks,
    check_mode,
)

__all__ = ["PLAN_VERSION", "TTLayer", "TTPlan"]

PLAN_VERSION = 1
_SCHEMA = "ttsnn.plan"


def _integers(value: Any, what: str, low: int) -> tuple[int, ...]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(v, int) and not isinstance(v, bool) and v >= low for v in value)
    ):
        raise PlanError(f"{what} {value!r}: give a list of integers ≥ {low}")
    return tuple(value)


def _unknown_keys(data: Mapping, known: Sequence[str], where: str) -> None:
    import difflib

    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise PlanError(f"{where}: unknown key {key!r}{hint} (known: {', '.join(known)})")


@dataclass(frozen=True)
class TTLayer:
    """How one layer is factorised.

    Attributes:
        kind: ``"conv2d"`` or ``"linear"``.
        mode: ``"stt"``, ``"ptt"`` or ``"htt"`` of a convolution; ``"tt"`` of a linear layer.
        ranks: (r1, r2, r3) of a convolution; the ranks between the cores of a linear layer.
        timesteps: htt: how many leading timesteps run in full; otherwise None.
        out_factors, in_factors: linear: factors of the output and the input size, one of each a
            core; otherwise empty.
    """

    kind: Kind
    mode: str
    ranks: tuple[int, ...]
    timesteps: int | None = None
    out_factors: tuple[int, ...] = ()
    in_factors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key, low in (("ranks", 1), ("out_factors", 1), ("in_factors", 1)):
            object.__setattr__(self, key, _integers(getattr(self, key), key, low))
        if self.kind == "conv2d":
            check_mode(self.mode)
            if len(self.ranks) != 3:
                raise PlanError(
                    f"ranks {list(self.ranks)}: a TT convolution has three, r1, r2 and r3"
                )
            if self.out_factors or self.in_factors:
                raise PlanError("factors are for linear layers: drop them from this convolution")
        elif self.kind == "linear":
            if self.mode != "tt":
                raise PlanError(f"mode {self.mode!r} of a linear layer: the only one is 'tt'")
            if len(self.out_factors) != len(self.in_factors) or len(self.ranks) != max(
                len(self.out_factors) - 1, 0
            ):
                raise PlanError(
                    f"a TT-matrix of d cores has d out_factors, d in_factors and d − 1 ranks, got "
                    f"{len(self.out_factors)}, {len(self.in_factors)} and {len(self.ranks)}"
                )
        else:
            raise PlanError(f"kind {self.kind!r} of a layer: use 'conv2d' or 'linear'")
        if self.mode == "htt":
            if not isinstance(self.timesteps, int) or self.timesteps < 0:
                raise PlanError(
                    f"timesteps {self.timesteps!r}: htt says how many leading timesteps run in full"
                )
        elif self.timesteps is not None:
            raise PlanError(f"timesteps are for mode 'htt': drop them from mode {self.mode!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain dict; keys that do not apply are left out."""
        out: dict[str, Any] = {"kind": self.kind, "mode": self.mode, "ranks": list(self.ranks)}
        if self.timesteps is not None:
            out["timesteps"] = self.timesteps
        if self.kind == "linear":
            out["out_factors"] = list(self.out_factors)
            out["in_factors"] = list(self.in_factors)
        return out

    @classmethod
    def from_json(cls, data: Any) -> TTLayer:
        """Inverse of :meth:`to_json`; PlanError on unknown or missing keys."""
        known = ("kind", "mode", "ranks", "timesteps", "out_factors", "in_factors")
        if not isinstance(data, Mapping):
            raise PlanError(f"expected an object with the keys {', '.join(known)}, got {data!r}")
        _unknown_keys(data, known, "layer")
        missing = [k for k in known[:3] if k not in data]
        if missing:
            raise PlanError(f"missing {', '.join(missing)}")
        return cls(**data)

    def check(self, info: LayerInfo, T: int | None = None) -> None:
        """Raise PlanError, naming the layer, where this does not fit the dense layer."""
        try:
            self._check(info, T)
        except PlanError as error:
            raise PlanError(f"layer {info.name!r}: {error}") from None

    def _check(self, info: LayerInfo, T: int | None) -> None:
        if self.kind != info.kind:
            raise PlanError(f"the plan says {self.kind}, the network has a {info.kind} there")
        if info.groups != 1:
            raise PlanError(
                f"a convolution with {info.groups} groups cannot be factorised: "
                "drop it from the plan"
            )
        if self.kind == "conv2d":
            check_conv_ranks(info.weight_shape, check_mode(self.mode), self.ranks)
        else:
            check_factors(info.weight_shape, self.out_factors, self.in_factors)
            check_linear_ranks(self.out_factors, self.in_factors, self.ranks)
        if self.timesteps is not None and T is not None and self.timesteps > T:
            raise PlanError(
                f"{self.timesteps} timesteps in full, but the network has {T}: give at most {T}"
            )


@dataclass(frozen=True)
class TTPlan:
    """Layers to factorise, by name in network order; all others stay dense.

    Attributes:
        layers: layer name → :class:`TTLayer`.
        rule: where the ranks come from, e.g. ``"rank=16"``; for people only.
        T: number of timesteps that the plan was made for (htt's fit weighs its two kinds of
            timestep by it); None where no layer is htt.
        notes: remarks of the rule, for people only.
    """

    layers: Mapping[str, TTLayer]
    rule: str = ""
    T: int | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", dict(self.layers))
        object.__setattr__(self, "notes", tuple(self.notes))
        for name, layer in self.layers.items():
            if not isinstance(name, str) or not isinstance(layer, TTLayer):
                raise PlanError(f"layers map names to TTLayer, got {name!r}: {layer!r}")
        if self.T is not None and (not isinstance(self.T, int) or self.T < 1):
            raise PlanError(f"T {self.T!r}: the number of timesteps is an integer ≥ 1")
        for name, layer in self.layers.items():
            if layer.mode == "htt" and self.T is None:
                raise PlanError(f"layer {name!r} is htt: the plan must give T")
            if self.T is not None and layer.timesteps is not None and layer.timesteps > self.T:
                raise PlanError(
                    f"layer {name!r}: {layer.timesteps} timesteps in full, but T is {self.T}"
                )

    def __len__(self) -> int:
        return len(self.layers)

    def check(self, infos: Sequence[LayerInfo], T: int | None = None) -> None:
        """Raise PlanError where the plan does not fit the network.

        Args:
            infos: the network's dense layers.
            T: the network's timesteps, where known.
        """
        for name, layer in self.layers.items():
            layer.check(find_layer(infos, name), T)
        if T is not None and self.T is not None and T != self.T:
            raise PlanError(
                f"the plan was made for T = {self.T}, the network has T = {T}: make a new plan"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dict with the schema's name and version."""
        return {
            "schema": _SCHEMA,
            "version": PLAN_VERSION,
            "rule": self.rule,
            "T": self.T,
            "notes": list(self.notes),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> TTPlan:
        """Inverse of :meth:`to_json`.

        Raises:
            PlanError: another schema or version, unknown or missing keys, impossible values;
                the message names the layer.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            raise PlanError(f'not a TT plan: expected an object with "schema": "{_SCHEMA}"')
        if data.get("version") != PLAN_VERSION:
            raise PlanError(
                f"a TT plan of version {data.get('version')!r}; this ttsnn reads version "
                f"{PLAN_VERSION}: make the plan again with `ttsnn plan`"
            )
        _unknown_keys(data, ("schema", "version", "rule", "T", "notes", "layers"), "plan")
        layers = data.get("layers")
        if not isinstance(layers, Mapping):
            raise PlanError('a TT plan has "layers": an object from layer name to its ranks')
        parsed = {}
        for name, layer in layers.items():
            try:
                parsed[name] = TTLayer.from_json(layer)
            except PlanError as error:
                raise PlanError(f"layer {name!r}: {error}") from None
        notes = data.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
            raise PlanError('"notes" is a list of strings')
        return cls(parsed, rule=str(data.get("rule", "")), T=data.get("T"), notes=tuple(notes))

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan as JSON; the file is replaced as a whole or not at all."""
        path = Path(path)
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        temporary = None
        try:
            check_replaceable(path)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise PlanError(f"cannot write the plan {str(path)!r}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> TTPlan:
        """Read a plan; PlanError names the file and what is wrong with it."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {str(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise PlanError(f"the plan {str(path)!r} is not valid JSON: {error}") from error
        try:
            return cls.from_json(data)
        except PlanError as error:
            raise PlanError(f"the plan {str(path)!r}: {error}") from None
