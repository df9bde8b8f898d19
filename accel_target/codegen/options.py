"""What the code generator may do; each idea can be switched off by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ttsnn.accel_target.isa import Format
from ttsnn.errors import TargetError

__all__ = ["Options", "Variant"]


@dataclass(frozen=True)
class Variant:
    """How one tensor-train layer is cut into nests.

    Attributes:
        fused: all cores in one nest; else each in its own.
        recompute: the backward computes the chain's intermediates again.
        output: and its result too.
        again: the forward computes the result twice, for the statistics of its batch norm and for
            what follows, rather than read it back.
        whole: the nest of the backward has all timesteps at once and takes in the neuron's
            gradient.
        norm: the batch norm works on the chain's last intermediate, and chains go on in the nest
            that makes their operand.
    """

    fused: bool
    recompute: bool
    whole: bool
    again: bool = False
    output: bool = False
    norm: bool = False


@dataclass(frozen=True)
class Options:
    """Ideas of the code generator.

    Attributes:
        fusion: the cores of a tensor train run in one nest, their intermediates stay on the chip.
            Off: every core is a layer of its own, which reads from DRAM and writes to it.
        merge_cross: both branches of ptt as one cross of Kh + Kw - 1 taps.
        recompute: the backward computes the intermediates of a chain again. Off: they are written
            in the forward and read in the backward.
        pack_spikes: a spike is one bit in DRAM and buffers. Off: as wide as an activation.
        neurons: the backward of a chain goes on through the neuron before it, whose gradient then
            never is in DRAM.
        norms: statistics and gradients of the batch norm behind a chain are computed from the
            chain's last intermediate; neither its result nor that result's gradient are in DRAM.
        updates: the optimizer works on a weight's gradient where its sum lies, at the end of the
            nest that makes it; the gradient then never is in DRAM. It is a fusion too.
        orient: a product lies on its array the way that reads fewer bytes. Off: pixels along the
            rows, output channels along the columns.
        clusters: use all clusters. Off: the first alone.
        lockstep: four equal clusters work as one array, whose operands are read once and sent
            through links. Off: each works on a part of the chain.
    """

    fusion: bool = True
    merge_cross: bool = True
    recompute: bool = True
    pack_spikes: bool = True
    neurons: bool = True
    norms: bool = True
    updates: bool = True
    orient: bool = True
    clusters: bool = True
    lockstep: bool = True

    @property
    def spikes(self) -> Format:
        """Format of spikes."""
        return Format.SPIKE if self.pack_spikes else Format.ACTIVATION

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From names and values ``true``, ``false``, ``1``, ``0`` …

        Raises:
            TargetError: an unknown name or value.
        """
        known = {f.name.replace("_", "-"): f.name for f in fields(cls)}
        out = {}
        for key, value in given.items():
            name = known.get(key.replace("_", "-"))
            if name is None:
                raise TargetError(
                    f"target ttsnn-accel has no option {key!r}; there are {', '.join(known)}"
                )
            text = str(value).lower()
            if text not in {"true", "false", "1", "0", "on", "off", "yes", "no"}:
                raise TargetError(f"target ttsnn-accel: {key} must be true or false, got {value!r}")
            out[name] = text in {"true", "1", "on", "yes"}
        return cls(**out)

    def variants(self) -> list[Variant]:
        """What the code generator chooses from for each layer."""
        split = Variant(False, False, False)
        if not self.fusion:
            return [split]
        whole = [True, False] if self.neurons else [False]
        chains = [Variant(True, self.recompute, w) for w in whole]
        twice = [Variant(True, True, True, True, True)] if self.recompute and self.neurons else []
        if self.recompute and self.neurons:
            chains.append(Variant(True, False, True))
        return [*twice, *chains, split]

    def cores(self) -> list[Variant]:
        """Those whose batch norms work on the cores."""
        if not (self.fusion and self.norms and self.neurons):
            return []
        kept = Variant(True, False, True, norm=True)
        return [replace(kept, recompute=True), kept] if self.recompute else [kept]

    def to_json(self) -> dict[str, bool]:
        """Plain dict."""
        return asdict(self)
