"""How long to rest after work that comes in storms: a fifth of the time is the work's, the rest is others'. Pure."""

from __future__ import annotations

MOST_S = 1.0
"""News is never older than that for a rest."""
_SHARE = 4
"""For each second of work, so many without."""


def after_s(worked_s: float) -> float:
    """Return how many seconds to rest after so many of work."""
    return min(MOST_S, _SHARE * worked_s)
