"""What probes tell of one peer. Pure: times are arguments, datagrams somebody else's.

    small probes   once a period; faster while an answer is overdue → up or down, round trip, loss
    large probes   as long as the overlay lets packets be, every two seconds → does the path carry them? (path_mtu.py)

A peer is down when it has not been heard of for `DOWN_AFTER_S` and four probes went unanswered; one answer brings it back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum, unique

from router.peers.path_mtu import PathMtu

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
_SMOOTHING = 1 / 8
"""Of a new round trip in the mean (RFC 6298 section 2)."""
_MOST_OUTSTANDING = 64
_DOWN_PERIOD = 0.45
"""Share of a period between two probes of a peer that is down. Not a half: a host tells once a second of a closed port, and would
tell a probe each time, and never those who look why it is silent (observe/trace/silence.py)."""


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
        self._path = PathMtu(most_bytes, least_bytes, now_s)
        self.period_s = period_s
        self.state = PeerState.UNKNOWN
        self.heard_s: float | None = None
        """When it last answered."""
        self.rtt_s: float | None = None
        self._new_rtt_s: float | None = None
        self.error = ""
        """Why the last probe could not be sent."""
        self.due_s = now_s
        self._began_s: float | None = None
        self._misses = 0
        """Small probes without an answer since the last one."""
        self._asked: deque[_Asked] = deque()
        self._fates: deque[float] = deque(maxlen=WINDOW)
        """Of the last small probes: round trip in seconds, or -1 for lost."""
        self._came_through_s = float("-inf")
        """When the last small probe that was answered was sent."""

    @property
    def mtu_bytes(self) -> int:
        """Largest inner packet that came through; 0 before that is known."""
        return self._path.mtu_bytes

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
        large: tuple[int, ...] = ()
        if self.state is PeerState.UP:
            large = self._path.sizes(now_s, self._came_through_s, self._patience_s())
        probes = list(enumerate((0, *large), sequence))
        for number, mtu_bytes in probes:
            self._asked.append(_Asked(number, now_s, mtu_bytes))
        while len(self._asked) > _MOST_OUTSTANDING:
            self._give_up(self._asked.popleft())
        self.due_s = now_s + self._wait_s(now_s)
        return probes

    def _wait_s(self, now_s: float) -> float:
        if self.state is PeerState.DOWN:
            return self.period_s * _DOWN_PERIOD  # whoever is back should be known to be
        if self.overdue(now_s):
            return HURRY_S
        return self._patience_s() if self.state is PeerState.UP and self._path.waiting else self.period_s

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
            self._path.carried(asked.mtu_bytes)
            if not self._path.waiting:  # nothing to judge: there is no hurry any more
                self.due_s = max(self.due_s, asked.sent_s + self._wait_s(received_s))
            return True
        self._came_through_s = max(self._came_through_s, asked.sent_s)
        self._fates.append(rtt_s)
        self._new_rtt_s = rtt_s
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) * _SMOOTHING
        if not was_up:
            self._path.begin(received_s)
            self.due_s = received_s
        return True

    def take_rtt_s(self) -> float | None:
        """Return the round trip of the small probe answered last, once."""
        rtt_s, self._new_rtt_s = self._new_rtt_s, None
        return rtt_s

    def not_sent(self, sequence: int, why: str, limit_bytes: int = 0) -> None:
        """Note that the kernel refused a probe: `limit_bytes` is what it would have taken, if it was too long."""
        asked = next((each for each in self._asked if each.sequence == sequence), None)
        if asked is None:
            return
        self._asked.remove(asked)
        if asked.mtu_bytes:
            self._path.refused(asked.mtu_bytes, limit_bytes)
            return
        self.error = why
        self._misses += 1
        self._fates.append(-1.0)

    def no_room(self, sequence: int) -> None:
        """Note that our own socket was full: a small probe is as good as lost, a large one tells nothing of the path."""
        asked = next((each for each in self._asked if each.sequence == sequence), None)
        if asked is not None and asked.mtu_bytes:
            self._asked.remove(asked)
            self._path.begin(asked.sent_s)

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
        while self._asked and now_s - self._asked[0].sent_s >= LOST_AFTER_S:
            self._give_up(self._asked.popleft())

    def _patience_s(self) -> float:
        """Return how long to wait before a round of large probes is judged."""
        # Shorter than for small ones: they come through meanwhile, or nothing is concluded; and a late answer counts, too.
        return max(HURRY_S, 2 * (self.rtt_s or 0.0))

    def _give_up(self, asked: _Asked) -> None:
        if not asked.mtu_bytes:
            self._misses += 1
            self._fates.append(-1.0)
