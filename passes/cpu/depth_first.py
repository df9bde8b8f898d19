"""DepthFirst: layers with large values run one after the other for a few images at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import tvm
from tvm import relax

from ttsnn.passes.cpu.rules.layer import threads_of
from ttsnn.passes.layers.op import OP, layer_call, layer_config_of
from ttsnn.passes.layers.signature import operand_shapes
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, bindings_of, prune
from ttsnn.passes.shapes import nbytes
from ttsnn.passes.static_values import op_name, static_shape

__all__ = ["BATCH_BYTES", "IMAGES_BYTES", "DepthFirst"]

Run = dict[relax.Var, relax.Expr]

BATCH_BYTES = 8 << 20
"""A layer is large whose input, residual and results, of all images, need more than this.

Measured with the paper's PTT networks, one thread: nothing is won or lost at 21 MB for the largest
layer (MS-ResNet18, batch 8), where memory halves; 6 % is won at 84 MB (batch 32), 7 % at 63 MB
(MS-ResNet34, T = 6, 48×48, batch 8).
"""

IMAGES_BYTES = 8 << 20
"""What the same values may need for the images that one thread has at a time; one at least."""


@tvm.transform.module_pass(opt_level=0, name="DepthFirst")
class DepthFirst(ModulePass):
    """Cut the batch of neighbouring layers, so that values are read while they are in a cache.

    The layers are called again for each group of images; the weights are read again, too, and
    what the first of them takes and the last of them gives is copied. Memory for what is between
    them shrinks to that of one group. Results are the same bits.

    Layers with a state, and batches that are not known, stay as they are.

    Args:
        target: the CPU; a group has images for all of its threads, or there is none.
        batch_bytes: see :data:`BATCH_BYTES`.
        images_bytes: see :data:`IMAGES_BYTES`.
    """

    def __init__(
        self,
        target: tvm.target.Target,
        batch_bytes: int = BATCH_BYTES,
        images_bytes: int = IMAGES_BYTES,
    ) -> None:
        self.threads = threads_of(target)
        self.batch_bytes = batch_bytes
        self.images_bytes = images_bytes

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        runs = _runs(bindings_of(mod["main"]), self.batch_bytes)
        chosen = [(run, self._images(run)) for run in runs]
        chosen = [(run, images) for run, images in chosen if images]
        return prune(_Rewriter(mod, chosen).run()) if chosen else mod

    def _images(self, run: Run) -> int:
        """Images of a group; 0 where the batch had better stay whole."""
        layers = [value for value in run.values() if op_name(value) == OP]
        batch = _batch(layers[0])
        room = self.threads * self.images_bytes
        fit = [
            n
            for n in range(self.threads, batch, self.threads)
            if batch % n == 0
            and (n == self.threads or n * max(map(_nbytes, layers)) <= room * batch)
        ]
        return fit[-1] if fit and len(layers) > 1 else 0


def _runs(bound: Run, least: int) -> list[Run]:
    """Neighbouring bindings that are layers, or pick results of such, up to the last large one."""
    runs: list[Run] = [{}]
    for var, value in bound.items():
        picks = isinstance(value, relax.TupleGetItem) and value.tuple_value in runs[-1]
        if picks or _can_be_cut(value):
            runs[-1][var] = value
        elif runs[-1]:
            runs.append({})
    return [cut for run in runs if (cut := _to_last_large(run, least))]


def _to_last_large(run: Run, least: int) -> Run:
    layers = {var: value for var, value in run.items() if op_name(value) == OP}
    large = [i for i, value in enumerate(layers.values()) if _nbytes(value) > least]
    kept = set([*layers][: large[-1] + 1] if large else [])
    return {k: v for k, v in run.items() if k in kept or getattr(v, "tuple_value", None) in kept}


def _can_be_cut(value: relax.Expr) -> bool:
    if op_name(value) != OP or static_shape(value.args[0]) is None:
        return False
    config = layer_config_of(value)
    return not config.v0 and "v_last" not in config.emit


def _batch(layer: relax.Call) -> int:
    return int(layer.args[0].ty.shape.values[1])


def _operands(layer: relax.Call) -> list[tuple[relax.Expr, bool]]:
    """Each operand of a layer, and whether it has the images of a batch."""
    names = [name for name, _ in operand_shapes(layer_config_of(layer), 1)]
    return [(arg, name in ("x", "residual")) for name, arg in zip(names, layer.args, strict=True)]


def _nbytes(layer: relax.Call) -> int:
    """Bytes of a layer's input, residual and results."""
    taken = sum(nbytes(arg.ty) for arg, images in _operands(layer) if images)
    return taken + nbytes(layer.ty)


class _Rewriter(BindingRewriter):
    """Each run group by group, where the first of its results is read."""

    def __init__(self, mod: tvm.IRModule, runs: Sequence[tuple[Run, int]]) -> None:
        super().__init__(mod)
        self._runs = {var: (run, images) for run, images in runs for var in run}
        self._joined: dict[relax.Var, relax.Expr] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        return None if var in self._runs else self.get(value)

    def materialise(self, var: relax.Var) -> relax.Expr:
        """A result for all images."""
        if var not in self._joined:
            self._emit_run(*self._runs[var])
        return self._joined[var]

    def _emit_run(self, run: Run, images: int) -> None:
        wanted = self._read_outside(run)
        parts: dict[relax.Var, list[relax.Expr]] = {var: [] for var in wanted}
        batch = _batch(next(iter(run.values())))
        for start in range(0, batch, images):
            group = self._emit_group(run, start, start + images)
            for var in wanted:
                parts[var].append(group[var])
        for var in wanted:
            self._joined[var] = self.emit(relax.op.concat(parts[var], axis=1))

    def _emit_group(self, run: Run, start: int, end: int) -> dict[relax.Expr, relax.Expr]:
        """The results of a run for the images from ``start`` to ``end``."""
        here: dict[relax.Expr, relax.Expr] = {}
        for var, value in run.items():
            if isinstance(value, relax.TupleGetItem):
                here[var] = self.emit(relax.TupleGetItem(here[value.tuple_value], value.index))
                continue
            operands = []
            for arg, images in _operands(value):
                if images and arg not in here:
                    part = relax.op.strided_slice(self.get(arg), [1], [start], [end])
                    here[arg] = self.emit(part)
                operands.append(here[arg] if images else self.get(arg))
            tiles = value.attrs.get("tiles", None)
            here[var] = self.emit(layer_call(layer_config_of(value), operands, tiles))
        return here

    def _read_outside(self, run: Run) -> list[relax.Var]:
        inside = Counter(arg for value in run.values() for arg in _arguments(value))
        return [var for var in run if self.uses[var] > inside[var]]


def _arguments(value: relax.Expr) -> Sequence[relax.Expr]:
    return [value.tuple_value] if isinstance(value, relax.TupleGetItem) else value.args
