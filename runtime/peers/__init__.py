"""Other ways to run the same network, one file a peer.

Each peer module has ``prepare(network, x, threads, folder) -> call``: it makes a callable
without arguments that runs the network on ``x`` and returns its output as a PyTorch tensor or
NumPy array. It may change ``network``, which is the peer's own copy. What it cannot do it says
with :class:`PeerUnavailable`.

A name with the prefix ``dense_`` means the same peer on the network without tensor trains.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.errors import DataError, first_line
from ttsnn.runtime.peers.base import PeerUnavailable

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT_PEERS", "PEERS", "PeerUnavailable", "parse_peers", "prepare"]

PEERS = {
    "eager": "PyTorch, time folded into the batch",
    "eager_loop": "PyTorch, layer by layer in a loop over time, as published code runs",
    "eager_channels_last": "PyTorch, time folded, channels last",
    "inductor": "torch.compile with frozen weights",
    "onnxruntime": "ONNX Runtime",
}
"""Peer → what it is."""

DEFAULT_PEERS = (*PEERS, "dense_eager", "dense_loop")
"""What ``compare`` measures where nothing else is asked for."""

_ALIASES = {"loop": "eager_loop", "channels_last": "eager_channels_last"}


def parse_peers(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names from ``eager,onnxruntime,dense_eager``; ``all``, ``none``.

    Raises:
        DataError: an unknown name.
    """
    if text is None:
        return DEFAULT_PEERS
    names = [n.strip() for n in text.split(",")] if isinstance(text, str) else list(text)
    out: list[str] = []
    for name in filter(None, names):
        if name == "none":
            continue
        chosen = [*PEERS, *(f"dense_{p}" for p in PEERS)] if name == "all" else [name]
        for one in chosen:
            if _kind(one) not in PEERS:
                raise DataError(
                    f"unknown peer {one!r}: use {', '.join(PEERS)}, with dense_ in front for the "
                    "network without tensor trains, all, or none"
                )
            if one not in out:
                out.append(one)
    return tuple(out)


def _kind(name: str) -> str:
    plain = name.removeprefix("dense_")
    return _ALIASES.get(plain, plain)


def prepare(
    name: str, network: torch.nn.Module, x: torch.Tensor, threads: int, folder: Path
) -> Callable[[], Any]:
    """Make a peer's callable.

    Raises:
        PeerUnavailable: with the reason, whatever went wrong.
    """
    module = importlib.import_module(f"ttsnn.runtime.peers.{_kind(name)}")
    try:
        return module.prepare(network, x, threads, folder)
    except PeerUnavailable:
        raise
    except ImportError as error:
        raise PeerUnavailable(f"not installed ({error})") from error
    except Exception as error:
        raise PeerUnavailable(f"{type(error).__name__}: {first_line(error)}") from error
