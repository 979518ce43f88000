"""How often something may happen for one source: a token bucket each. Pure, time is an argument."""

from __future__ import annotations

from collections.abc import Hashable


class RateLimit:
    """Allows each source `per_s` events a second, and `burst` at once after a rest.

    Knows at most `most_sources`; one more makes it forget who was not seen for longest, who then starts afresh.
    For one thread.
    """

    __slots__ = ("_buckets", "_burst", "_most_sources", "_per_s")

    def __init__(self, per_s: float, burst: float, most_sources: int = 4096) -> None:
        if per_s < 0 or burst < 0 or most_sources < 1:
            raise ValueError(f"a rate of {per_s}/s, a burst of {burst} or {most_sources} sources cannot be kept to")
        self._per_s = per_s
        self._burst = burst
        self._most_sources = most_sources
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        """Tokens left, and when they were counted; the source seen last is last."""

    def allow(self, source: Hashable, now_s: float) -> bool:
        """Take a token of that source, or return False when it has none. `now_s` is any monotonic clock, in seconds."""
        tokens, counted_s = self._buckets.pop(source, (self._burst, now_s))
        tokens = min(self._burst, tokens + max(0.0, now_s - counted_s) * self._per_s)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - allowed, max(now_s, counted_s))
        if len(self._buckets) > self._most_sources:
            del self._buckets[next(iter(self._buckets))]
        return allowed

    def __len__(self) -> int:
        return len(self._buckets)
