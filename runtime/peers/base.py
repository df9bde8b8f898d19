"""What peers share."""

from __future__ import annotations

__all__ = ["PeerUnavailable"]


class PeerUnavailable(Exception):
    """A peer cannot run here, or not this network; the message says why."""
