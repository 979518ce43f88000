"""How large a packet a path carries, found by probes that are that large. Pure: times are arguments.

    every two seconds   as much as the path is known to carry; if that is not all, also all of it and half-way there
    one lost            twice more at once: was it the size, or chance?
    those too           the path has become smaller: sizes in between, all at once, until it is known to a few bytes

Each of these is a round, judged after a short patience, and only by whether small probes came through meanwhile: where
nothing does, nothing is known of sizes. From a hole's first moment to a smaller MTU in force are 3 s at most on a path of short
round trips, the search of a path of 1500 bytes included; of a larger one the last bytes are found later.
"""

from __future__ import annotations

MTU_PERIOD_S = 2.0
"""Between two looks at whether a path still carries what it did."""
MTU_STEP_BYTES = 4
"""The search ends when the MTU is known to that."""
_SIZES = 6
"""Sizes that a round of the search tries, each …"""
_COPIES = 2
"""… so often: one lost by chance must not make a path small."""
_LONG_S = 0.6
"""Patience with which a search of two rounds would take too long to wait for its end."""


class PathMtu:
    """Of one peer. Sizes are those of inner packets, in bytes."""

    def __init__(self, most_bytes: int, least_bytes: int, now_s: float) -> None:
        """`most_bytes` is the overlay MTU, `least_bytes` what every path must carry."""
        self._most_bytes = most_bytes
        self._least_bytes = least_bytes
        self.mtu_bytes = 0
        """Largest packet that came through; 0 before that is known."""
        self._asked: tuple[int, ...] = ()
        """Sizes of the round under way."""
        self._next: tuple[int, ...] = ()
        """Those of the round after it, when it follows at once."""
        self._carried: set[int] = set()
        self._sent_s = now_s
        self._due_s = now_s
        self._searching = False
        self._low_bytes, self._high_bytes = least_bytes, most_bytes
        """Between them lies the MTU, while it is searched for."""

    @property
    def waiting(self) -> bool:
        """Whether a round is under way."""
        return bool(self._asked)

    def begin(self, now_s: float) -> None:
        """Look at once: the peer has just come up."""
        self._asked = self._next = ()
        self._searching = False
        self._due_s = now_s

    def sizes(self, now_s: float, came_through_s: float, patience_s: float) -> tuple[int, ...]:
        """Return which sizes to probe now. `came_through_s` is when the last small probe was sent that was answered."""
        if self._asked:
            if now_s - self._sent_s < patience_s:
                return ()
            if came_through_s < self._sent_s:
                self._next, self._asked = self._asked, ()
            else:
                self._judge(patience_s)
        if not self._next and now_s >= self._due_s:
            self._next = self._look()
        if self._next:
            self._asked, self._next = self._next, ()
            self._carried = set()
            self._sent_s, self._due_s = now_s, now_s + MTU_PERIOD_S
        return self._asked if self._sent_s == now_s else ()

    def carried(self, size_bytes: int) -> None:
        """Note that a packet of that size came through."""
        self._carried.add(size_bytes)
        if size_bytes >= self._most_bytes:
            self._known(self._most_bytes)
        elif self._searching:
            self._low_bytes = max(self._low_bytes, size_bytes)

    def refused(self, size_bytes: int, limit_bytes: int) -> None:
        """Note that the kernel refused that size, and what it says the path carries."""
        limit_bytes = max(self._least_bytes, min(limit_bytes, size_bytes - 1))
        if not self.mtu_bytes or limit_bytes < self.mtu_bytes:
            self._known(limit_bytes)
            return
        # No news, and no reason not to judge what is smaller in this round: the path may carry less than the kernel thinks.
        self._asked = tuple(size for size in self._asked if size <= limit_bytes)
        self._high_bytes = min(self._high_bytes, limit_bytes + 1)
        if self._searching and not self._asked:
            self._known(self._low_bytes)

    def _known(self, mtu_bytes: int) -> None:
        self.mtu_bytes = mtu_bytes
        self._asked = self._next = ()
        self._searching = False

    def _look(self) -> tuple[int, ...]:
        known_bytes = self.mtu_bytes or self._most_bytes
        if known_bytes == self._most_bytes:
            return (known_bytes,)
        return (known_bytes, (known_bytes + self._most_bytes) // 2, self._most_bytes)

    def _judge(self, patience_s: float) -> None:
        """Draw the conclusion from a round that is over, in which small probes came through."""
        asked, self._asked = self._asked, ()
        if self._searching:
            lost = [size for size in asked if size > self._low_bytes and size not in self._carried]
            self._high_bytes = min(lost, default=self._high_bytes)
            # Pods remember for ten minutes what they are told (RFC 1191 section 6.3): half a second more brings the true size.
            if self._high_bytes - self._low_bytes > MTU_STEP_BYTES * (_SIZES + 1) or patience_s > _LONG_S:
                self.mtu_bytes = self._low_bytes
            self._search()
        elif asked[0] in self._carried:
            grown = [size for size in self._carried if size > self.mtu_bytes]
            if grown and self.mtu_bytes:
                self._searching = True
                self._low_bytes, self._high_bytes = max(grown), self._most_bytes
                self._search()
        elif asked.count(asked[0]) == _COPIES:
            self._searching = True
            self._low_bytes, self._high_bytes = self._least_bytes, asked[0]
            self._search()
            self._next += asked[:1]  # if it does come through, all was chance
        else:
            self._next = asked[:1] * _COPIES

    def _search(self) -> None:
        """Try sizes in between, or be content."""
        low, room = self._low_bytes, self._high_bytes - self._low_bytes
        if room <= MTU_STEP_BYTES:
            self._known(low)
            return
        steps = min(_SIZES + 1, room)
        self._next = tuple(low + room * step // steps for step in range(1, steps)) * _COPIES
