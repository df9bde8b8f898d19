"""What the tuner decides for one layer: the form of its chain, and the tiles of its kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ttsnn.errors import PassError
from ttsnn.passes.cpu.kernels.tiles import LayerTiles

__all__ = ["LayerChoice"]


@dataclass(frozen=True)
class LayerChoice:
    """One point of a layer's search space.

    Attributes:
        form: as ``ScheduleContractions`` takes it, ``ptt=g1*cross|g4``; empty where the layer
            is no tensor train.
        tiles: tile parameters of the kernel of that form.
    """

    form: str
    tiles: LayerTiles

    def to_json(self) -> str:
        """One line of JSON; equal choices give equal text."""
        return json.dumps({"form": self.form, "tiles": self.tiles.to_json()})

    @classmethod
    def from_json(cls, text: str) -> LayerChoice:
        """Inverse of :meth:`to_json`.

        Raises:
            PassError: the text is nothing of the kind.
        """
        try:
            data = json.loads(text)
            return cls(str(data["form"]), LayerTiles.from_json(data["tiles"]))
        except (ValueError, TypeError, KeyError) as error:
            raise PassError(f"no choice for a layer: {text[:100]!r} ({error})") from error
