"""A token bucket in bytes, which may fall into debt: how a Pod's limits are kept. Pure, time is an argument.

A frame may pass while there are tokens at all, however large it is; what it takes beyond them is paid off before the next
one. So a bucket smaller than a super-packet still lets traffic through, and no window of t seconds sees more than burst +
rate × t + one frame.
"""

from __future__ import annotations

from router.model import Limit


class Bucket:
    """One way's limit. For one thread at a time."""

    __slots__ = ("_burst_bytes", "_counted_s", "_per_s", "_tokens")

    def __init__(self, limit: Limit, now_s: float) -> None:
        """Begin full."""
        self._per_s = limit.bytes_per_s
        self._burst_bytes = limit.burst_bytes
        self._tokens = float(limit.burst_bytes)
        self._counted_s = now_s

    def tokens(self, now_s: float) -> int:
        """Return how many bytes may pass; less than one when nothing may."""
        if now_s > self._counted_s:
            self._tokens = min(self._burst_bytes, self._tokens + (now_s - self._counted_s) * self._per_s)
            self._counted_s = now_s
        return int(self._tokens)

    def take(self, size_bytes: int) -> None:
        """Count bytes that passed."""
        self._tokens -= size_bytes

    def admit(self, size_bytes: int, now_s: float) -> bool:
        """Take the bytes of a frame, or return False when there are no tokens at all."""
        if self.tokens(now_s) < 1:
            return False
        self._tokens -= size_bytes
        return True

    def wait_s(self) -> float:
        """Return the seconds from the last count until a byte may pass again."""
        return max(0.0, (1.0 - self._tokens) / self._per_s)
