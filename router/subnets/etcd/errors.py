"""What can go wrong between a router and its store: one exception, with words for people and a reason for code."""

from __future__ import annotations

from enum import Enum, unique


@unique
class Reason(Enum):
    """What the caller can make of it."""

    AWAY = "away"
    """No server answers, or none that has a leader: try again. What was asked may have been done."""
    REFUSED = "refused"
    """Wrong user, password, permission or certificate: trying again helps once somebody has mended that."""
    LEASE_GONE = "lease gone"
    """The lease has ended; what depends on it was not done."""
    COMPACTED = "compacted"
    """The revision asked for is no longer kept."""
    FULL = "full"
    """No subnet is to be had."""
    BUSY = "busy"
    """Others were faster each time: try again."""


class EtcdError(Exception):
    """A call that failed. The message says which store, and what was wrong with it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
