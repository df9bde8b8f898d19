"""Tuning tasks: the layers of a program, equal ones once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import tvm
from tvm.s_tir import Schedule

from ttsnn.errors import PassError
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.passes.cpu.event_choice import event_limit
from ttsnn.passes.cpu.isa import Isa, isa_of
from ttsnn.passes.cpu.kernels.pack import packed_config, panel_vectors
from ttsnn.passes.cpu.kernels.tiles import default_tiles
from ttsnn.passes.cpu.pipeline import fuse_passes
from ttsnn.passes.cpu.tuning.choice import LayerChoice
from ttsnn.passes.cpu.tuning.features import features_of
from ttsnn.passes.cpu.tuning.forms import cheapest_form, form_costs, forms_of_layer
from ttsnn.passes.cpu.tuning.kernel import CHOICE, choice_of
from ttsnn.passes.cpu.tuning.knobs import Knob, knobs_of, tiles_of
from ttsnn.passes.cpu.tuning.rates import rate_step
from ttsnn.passes.cpu.tuning.workload import WorkloadKey, anonymous, workload, workload_key
from ttsnn.passes.layer_calls import layer_calls
from ttsnn.passes.layers import OP, layer_config_of
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.pipelines import graph_passes
from ttsnn.passes.rewriter import bindings_of
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.static_values import op_name

__all__ = ["LayerTask", "layer_tasks", "unmerged_layers"]

HOPELESS = 4.0
"""Forms whose cost by the model is so many times the cheapest's are not searched."""

DOUBTFUL = 1.5
"""Of forms up to so many times the cheapest, the analytic default is measured in any case."""

FORM, KNOB = "ttsnn.form", "ttsnn.knob."
"""Annotations under which the search leaves its decisions."""

DEFAULT_WEIGHT = 0.7
"""Chance that a random candidate has the default at a knob: most knobs matter little, and a
candidate that differs from the default everywhere is a bad one."""


@dataclass(frozen=True)
class LayerTask:
    """One layer to tune.

    Attributes:
        config: the layer with an unmerged chain, plain weights and no name.
        batch: images.
        target: the CPU.
        threads: CPU threads that it is measured with.
        layers: names of the network's layers that it is.
        rate: share of ones in its input, a step of :mod:`~ttsnn.passes.cpu.tuning.rates`; None:
            not known.
    """

    config: LayerConfig
    batch: int
    target: tvm.target.Target
    threads: int
    layers: tuple[str, ...] = ()
    rate: float | None = None

    @property
    def key(self) -> WorkloadKey:
        """What the layer is looked up by."""
        return workload_key(self.config, self.batch, self.rate)

    @cached_property
    def isa(self) -> Isa:
        """Of the target."""
        return isa_of(self.target)

    @cached_property
    def module(self) -> tvm.IRModule:
        """What MetaSchedule knows it by."""
        return workload(self.config, self.batch, self.isa, self.threads, self.rate)

    @cached_property
    def forms(self) -> dict[str, LayerConfig]:
        """The forms that are searched, cheapest by the model first."""
        return self._forms_up_to(HOPELESS)

    def _forms_up_to(self, times: float) -> dict[str, LayerConfig]:
        costs = form_costs(self.config, self._cost)
        configs, most = forms_of_layer(self.config), times * min(costs.values())
        return {f: configs[f] for f in sorted(costs, key=costs.__getitem__) if costs[f] <= most}

    @property
    def _cost(self) -> CpuCost:
        return CpuCost(lanes=self.isa.lanes("float32"))

    @cached_property
    def default(self) -> LayerChoice:
        """What the layer gets without tuning."""
        form = cheapest_form(self.config, self._cost)
        plain = forms_of_layer(self.config)[form]
        config = packed_config(plain, self.isa)
        tiles = default_tiles(config, self.batch, self.isa, self.threads)
        events = self.rate is not None and self.rate < event_limit(plain, self.isa)
        vectors = panel_vectors(self.isa)
        return LayerChoice(form, replace(tiles, panel_vectors=vectors, events=events))

    @staticmethod
    def choice(text: str) -> LayerChoice:
        """A choice from its JSON."""
        return LayerChoice.from_json(text)

    # -- what MetaSchedule asks ----------------------------------------------------------------

    def spaces(self, sch: Schedule, seed: bool = False) -> list[Schedule]:
        """One design space for each form: a decision for each knob.

        Args:
            sch: a fresh schedule of :attr:`module`.
            seed: decide for the analytic default at every knob; only forms for which that
                may be a good choice. Where it is a question, once with an event-driven first
                stage and once without.
        """
        forms = self._forms_up_to(DOUBTFUL) if seed else self.forms
        out = []
        for form, config in forms.items():
            knobs = knobs_of(config, self.batch, self.isa, self.threads, self.rate)
            if not seed:
                out.append(self._space(sch.copy(), form, knobs))
                continue
            default = {k.name: k.default for k in knobs}
            for events in (0, 1) if "events" in default else (0,):
                out.append(self._space(sch.copy(), form, knobs, default | {"events": events}))
        return out

    def _space(
        self,
        sch: Schedule,
        form: str,
        knobs: Sequence[Knob],
        decided: Mapping[str, int] | None = None,
    ) -> Schedule:
        block = sch.get_sblock("root")
        sch.annotate(block, FORM, form)
        for knob in knobs:
            others = (1.0 - DEFAULT_WEIGHT) / (len(knob.values) - 1)
            chances = [DEFAULT_WEIGHT if v == knob.default else others for v in knob.values]
            chosen = None if decided is None else knob.values.index(decided[knob.name])
            value = sch.sample_categorical(list(knob.values), chances, decision=chosen)
            sch.annotate(block, KNOB + knob.name, value)
        return sch

    def settle(self, sch: Schedule) -> None:
        """Turn the decisions of a schedule into the choice that it is built by."""
        block = sch.get_sblock("root")
        notes = dict(sch.get(block).annotations)
        values = {k.removeprefix(KNOB): int(v) for k, v in notes.items() if k.startswith(KNOB)}
        form = str(notes[FORM])
        config = forms_of_layer(self.config)[form]
        tiles = tiles_of(config, self.batch, self.isa, self.threads, values, self.rate)
        for name in values:
            sch.unannotate(block, KNOB + name)
        sch.unannotate(block, FORM)
        sch.annotate(block, CHOICE, LayerChoice(form, tiles).to_json())

    def mutate(self, trace: tvm.s_tir.schedule.Trace, rng: random.Random):
        """The trace with one decision changed, as often as not to a neighbour of its value."""
        decided = [i for i in trace.insts if i.kind.name == "SampleCategorical"]
        if not decided:
            return None
        inst = rng.choice(decided)
        count, now = len(inst.attrs[0]), int(trace.get_decision(inst))
        if rng.random() < 0.5:
            new = min(max(now + rng.choice((-1, 1)), 0), count - 1)
        else:
            new = rng.randrange(count)
        return trace.with_decision(inst, new, True)

    def features(self, mod: tvm.IRModule) -> np.ndarray:
        """Numbers for the cost model, of a candidate's module."""
        choice = choice_of(mod)
        config = forms_of_layer(self.config)[choice.form]
        return features_of(config, self.batch, self.isa, self.threads, choice.tiles, self.rate)


def layer_tasks(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    threads: int,
    firing_rates: Mapping[str, float] | None = None,
) -> list[LayerTask]:
    """The tasks of a program, in order of first execution.

    Args:
        mod: a program as ``CpuTarget.lower`` takes it.
        target: the CPU.
        threads: CPU threads to tune for.
        firing_rates: layer → share of ones in its input, where that is known.

    Raises:
        PassError: for a batch that varies: it is measured with one.
    """
    found: dict[WorkloadKey, list[LayerConfig]] = {}
    for config, batch in unmerged_layers(mod, target):
        if batch is None:
            raise PassError(
                f"layer {config.name} has a batch that varies; tune it with --batch N, "
                "the tiles serve other batches too"
            )
        rate = (firing_rates or {}).get(config.name) if config.byte_x else None
        key = workload_key(config, batch, None if rate is None else rate_step(rate))
        found.setdefault(key, []).append(config)
    return [
        LayerTask(
            anonymous(same[0]),
            key.batch or 1,
            target,
            threads,
            tuple(c.name for c in same),
            key.rate,
        )
        for key, same in found.items()
    ]


def unmerged_layers(
    mod: tvm.IRModule, target: tvm.target.Target
) -> list[tuple[LayerConfig, int | None]]:
    """Config and batch of each layer, fused, where no chain is merged and no weight packed."""
    with target:
        mod = tvm.transform.Sequential(graph_passes())(mod)
        chains = {
            name: "chain"
            for name, calls in layer_calls(mod).items()
            if calls[0].kind == "tt.conv2d"
        }
        mod = tvm.transform.Sequential(fuse_passes(target, chains))(mod)
    out = []
    for value in bindings_of(mod["main"]).values():
        if op_name(value) == OP:
            batch = known_dims(value.args[0])[1]
            out.append((layer_config_of(value), batch if isinstance(batch, int) else None))
    return out
