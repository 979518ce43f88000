"""What probes tell of one peer. Pure: times are arguments, datagrams somebody else's.

    small probes   once a period; faster while an answer is overdue → up or down, round trip, loss
    large probes   as long as the overlay lets packets be, every few seconds → does the path carry them?
                   if not, while small ones are answered: halve what is in doubt until the path MTU is known

A peer is down when it has not been heard of for `DOWN_AFTER_S` and four probes went unanswered; one answer brings it back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum, unique

PERIOD_S = 1.0
"""Between two small probes."""
HURRY_S = 0.25
"""… while one is overdue."""
OVERDUE_S = 0.5
DOWN_AFTER_S = 2.5
"""Silence before a peer is taken for dead: a router that is restarted is back by then."""
DOWN_MISSES = 4
LOST_AFTER_S = 2.0
"""When a probe without an answer counts as lost."""
WINDOW = 64
"""Small probes that the loss and the shortest round trip are of."""
MTU_PERIOD_S = 3.0
"""Between two large probes while the path carries them."""
MTU_TRIES = 3
"""Large probes without an answer, before the path is taken for smaller."""
MTU_STEP_BYTES = 4
"""The search for a path's MTU ends when it is known to that."""
_SMOOTHING = 1 / 8
"""Of a new round trip in the mean (RFC 6298 section 2)."""
_MOST_OUTSTANDING = 64


@unique
class PeerState(StrEnum):
    """How a peer stands."""

    UNKNOWN = "unknown"
    """Not asked yet, or it does not know how to answer."""
    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class _Asked:
    """A probe under way."""

    sequence: int
    sent_s: float
    mtu_bytes: int
    """Of a large probe: the inner packet it stands for; 0 for a small one."""


class Health:
    """One peer's. `due_s` says when to call `ask`; what it returns is sent, and `answered` told of the answers."""

    def __init__(self, most_bytes: int, least_bytes: int, now_s: float, period_s: float = PERIOD_S) -> None:
        """`most_bytes` is the overlay MTU, `least_bytes` what every path must carry; `period_s` grows with the cluster."""
        self._most_bytes = most_bytes
        self._least_bytes = least_bytes
        self.period_s = period_s
        self.state = PeerState.UNKNOWN
        self.heard_s: float | None = None
        """When it last answered."""
        self.rtt_s: float | None = None
        self.mtu_bytes = 0
        """Largest inner packet that came through; 0 before that is known."""
        self.error = ""
        """Why the last probe could not be sent."""
        self.due_s = now_s
        self._began_s: float | None = None
        self._misses = 0
        """Small probes without an answer since the last one."""
        self._asked: deque[_Asked] = deque()
        self._fates: deque[float] = deque(maxlen=WINDOW)
        """Of the last small probes: round trip in seconds, or -1 for lost."""
        self._large_due_s = now_s
        self._large_misses = 0
        self._low_bytes, self._high_bytes = least_bytes, most_bytes
        """Between them lies the path MTU, while it is searched for."""
        self._searching = False
        self._grow = False

    @property
    def loss(self) -> float:
        """Share of the last probes that no answer came to, 0 to 1."""
        return sum(fate < 0 for fate in self._fates) / len(self._fates) if self._fates else 0.0

    @property
    def rtt_min_s(self) -> float | None:
        """Shortest round trip of the last probes."""
        return min((fate for fate in self._fates if fate >= 0), default=None)

    def ask(self, sequence: int, now_s: float) -> list[tuple[int, int]]:
        """Return (sequence, inner packet in bytes, 0 for a small one) of each probe to send now, and put off `due_s`."""
        if self._began_s is None:
            self._began_s = now_s
        self._expire(now_s)
        probes = [(sequence, 0)]
        if self.state is PeerState.UP and now_s >= self._large_due_s:
            probes.append((sequence + 1, self._large_bytes()))
            self._large_due_s = now_s + (HURRY_S if self._searching or self._large_misses else MTU_PERIOD_S)
        for number, mtu_bytes in probes:
            self._asked.append(_Asked(number, now_s, mtu_bytes))
        while len(self._asked) > _MOST_OUTSTANDING:
            self._give_up(self._asked.popleft())
        self.due_s = now_s + self._wait_s(now_s)
        return probes

    def _wait_s(self, now_s: float) -> float:
        if self.state is PeerState.DOWN:
            return self.period_s / 2  # whoever is back should be known to be
        if self.overdue(now_s):
            return HURRY_S
        in_search = self.state is PeerState.UP and (self._searching or self._large_misses)
        return HURRY_S if in_search else self.period_s

    def overdue(self, now_s: float) -> bool:
        """Tell whether a small probe has waited long for its answer, or in vain."""
        waits = next((asked.sent_s for asked in self._asked if not asked.mtu_bytes), now_s)
        return self._misses > 0 or now_s - waits >= max(OVERDUE_S, 2 * (self.rtt_s or 0.0))

    def answered(self, sequence: int, received_s: float) -> bool:
        """Take an answer; False when it is to nothing that was asked. Changes `state`, round trip, MTU."""
        asked = next((each for each in self._asked if each.sequence == sequence), None)
        if asked is None or received_s < asked.sent_s:
            return False
        self._asked.remove(asked)
        self.heard_s = received_s
        self.error = ""
        self._misses = 0
        was_up, self.state = self.state is PeerState.UP, PeerState.UP
        rtt_s = received_s - asked.sent_s
        if asked.mtu_bytes:
            self._carried(asked.mtu_bytes, received_s)
            return True
        self._fates.append(rtt_s)
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) * _SMOOTHING
        if not was_up:
            self._large_due_s = received_s
            self.due_s = received_s
        return True

    def not_sent(self, sequence: int, why: str, limit_bytes: int = 0) -> None:
        """Note that the kernel refused a probe: `limit_bytes` is what it would have taken, if it was too long."""
        asked = next((each for each in self._asked if each.sequence == sequence), None)
        if asked is None:
            return
        self._asked.remove(asked)
        if asked.mtu_bytes:
            self._too_long(asked.mtu_bytes, max(self._least_bytes, min(limit_bytes, asked.mtu_bytes - 1)))
            return
        self.error = why
        self._misses += 1
        self._fates.append(-1.0)

    def judge(self, now_s: float, heard: bool) -> PeerState:
        """Return the state, DOWN when it has been silent for too long; `heard` says that packets came from it meanwhile."""
        self._expire(now_s)
        if heard:
            self.heard_s = now_s
            self._misses = 0
        if self.state is not PeerState.DOWN and self._began_s is not None:
            since_s = self._began_s if self.heard_s is None else max(self.heard_s, self._began_s)
            after_s = DOWN_AFTER_S * self.period_s / PERIOD_S
            if self._misses + self._waiting() >= DOWN_MISSES and now_s - since_s >= after_s:
                self.state = PeerState.DOWN
        return self.state

    def silence_s(self, now_s: float) -> float:
        """Return for how long nothing was heard of it."""
        since_s = self.heard_s if self.heard_s is not None else self._began_s
        return 0.0 if since_s is None else now_s - since_s

    def slept(self, seconds: float) -> None:
        """Take back the time in which the asker itself did not run: nobody is silent then."""
        if self._began_s is not None:
            self._began_s += seconds
        if self.heard_s is not None:
            self.heard_s += seconds

    def _waiting(self) -> int:
        return sum(not asked.mtu_bytes for asked in self._asked)

    def _expire(self, now_s: float) -> None:
        while self._asked and now_s - self._asked[0].sent_s >= self._patience_s(self._asked[0]):
            self._give_up(self._asked.popleft())

    def _patience_s(self, asked: _Asked) -> float:
        # A large probe is followed by a small one's answer soon; without that nothing is known of the size.
        return max(OVERDUE_S, 4 * (self.rtt_s or 0.0)) if asked.mtu_bytes else LOST_AFTER_S

    def _give_up(self, asked: _Asked) -> None:
        if not asked.mtu_bytes:
            self._misses += 1
            self._fates.append(-1.0)
        elif self.heard_s is not None and self.heard_s >= asked.sent_s:  # what is small came through, this did not
            self._too_long(asked.mtu_bytes, 0)

    # The path's MTU

    def _large_bytes(self) -> int:
        if self._searching:
            return (self._low_bytes + self._high_bytes + 1) // 2
        self._grow = not self._grow
        # A path known to be smaller is asked in turns whether it still carries what it did, and whether all.
        return self.mtu_bytes if self.mtu_bytes and not self._grow else self._most_bytes

    def _carried(self, mtu_bytes: int, now_s: float) -> None:
        if self._searching or mtu_bytes == self.mtu_bytes:
            self._large_misses = 0
        if mtu_bytes >= self._most_bytes:
            self.mtu_bytes, self._searching, self._large_misses = self._most_bytes, False, 0
            return
        if self._searching:
            self._low_bytes = max(self._low_bytes, mtu_bytes)
            self._settle(now_s)

    def _too_long(self, mtu_bytes: int, limit_bytes: int) -> None:
        """A size did not come through; `limit_bytes` is what the kernel says of the path, 0 when it says nothing."""
        if limit_bytes:
            self._low_bytes = self.mtu_bytes = limit_bytes
            self._searching, self._large_misses = False, 0
            return
        if not self._searching and 0 < self.mtu_bytes < mtu_bytes:  # known to be smaller, and it still is
            return
        self._large_misses += 1
        if self._large_misses < MTU_TRIES:
            return
        self._large_misses = 0
        if not self._searching:
            self._searching = True
            self._low_bytes, self._high_bytes = self._least_bytes, mtu_bytes
            return
        self._high_bytes = min(self._high_bytes, mtu_bytes)
        self._settle(None)

    def _settle(self, now_s: float | None) -> None:
        if self._high_bytes - self._low_bytes <= MTU_STEP_BYTES:
            self.mtu_bytes, self._searching = self._low_bytes, False
            if now_s is not None:
                self._large_due_s = now_s + MTU_PERIOD_S
