"""How long to wait before the next try: doubling, up to a bound, and never in step with others."""

from __future__ import annotations

import random

FIRST_S = 0.1
MOST_S = 1.0
"""A second at most: a node cut off from its store is back in all tables 2 s after that is mended.

Measured: 0.3 % of a core while nothing answers (tests/test_etcd_outage.py).
"""


class Backoff:
    """Waits that grow with each failure in a row."""

    def __init__(self, most_s: float = MOST_S, first_s: float = FIRST_S) -> None:
        self._first_s = min(first_s, most_s)
        self._most_s = most_s
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Return how many seconds to wait after one more failure: between half and all of the bound now."""
        now_s, self._next_s = self._next_s, min(self._next_s * 2, self._most_s)
        return now_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Take note of a success."""
        self._next_s = self._first_s
