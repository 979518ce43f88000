"""What happened lately: a bounded log that any thread may write to and any number of subscribers may follow.

The log is a ring of the last events, and a subscription is only a place in it: a reader that is too slow costs no
memory and holds nobody up, it loses the oldest events and sees that by the gap in their sequence.
"""
# A subscription and its log are one thing with one lock.
# ruff: noqa: SLF001

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum, unique
from types import TracebackType

from router.model import AttachmentKey

HELD_EVENTS = 1024
"""Events a log holds for those who come later or read slowly."""


@unique
class EventKind(StrEnum):
    """What sort of thing happened."""

    ATTACHED = "attached"
    DETACHED = "detached"
    ATTACHMENT_LOST = "attachment_lost"
    """Its device or namespace vanished."""
    TABLE_CHANGED = "table_changed"
    TABLE_REFUSED = "table_refused"
    OFFLOAD_OFF = "offload_off"
    ENGINE_ERROR = "engine_error"
    STARTED = "started"
    STOPPING = "stopping"
    RELEASED = "released"
    """Without being asked for one by one: its sandbox is gone."""
    LEASE_TAKEN = "lease_taken"
    LEASE_LOST = "lease_lost"
    """Of the node's subnets; with a key: that Pod's address is another node's now."""
    SOURCE_LOST = "source_lost"
    """The store of the subnet table went away."""
    SOURCE_FOUND = "source_found"
    PEER_DOWN = "peer_down"
    PEER_UP = "peer_up"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    sequence: int
    """Counts up by one from 1."""
    at_s: float
    """Unix time."""
    kind: EventKind
    key: AttachmentKey | None
    node: str
    message: str


class EventLog:
    """The last events, and those who wait for the next. All methods may be called from any thread."""

    def __init__(self, held: int = HELD_EVENTS, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ring: deque[Event] = deque(maxlen=held)
        self._newest = 0
        self._closed = False
        self._changed = threading.Condition()

    def record(self, kind: EventKind, message: str = "", *, key: AttachmentKey | None = None, node: str = "") -> Event:
        """Add an event and wake all subscribers. Never blocks on a reader."""
        with self._changed:
            self._newest += 1
            event = Event(self._newest, self._clock(), kind, key, node, message)
            self._ring.append(event)
            self._changed.notify_all()
            return event

    def subscribe(self, after: int | None = None) -> Subscription:
        """Follow the log from now on, or first replay what it holds after that sequence.

        A sequence not reached yet comes from a router that was restarted since: then everything held is replayed.
        """
        with self._changed:
            start = self._newest if after is None else after if after <= self._newest else 0
        return Subscription(self, start)

    def close(self) -> None:
        """End every subscription, present and future, once it has read what is held. Can be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _after(self, sequence: int) -> Event | None:
        """Return the oldest event held after a sequence; the lock is the caller's."""
        if sequence >= self._newest:
            return None
        # Sequences in the ring are without gaps, so the place is arithmetic.
        return self._ring[max(0, sequence + 1 - self._ring[0].sequence)]


class Subscription:
    """A reader's place in a log. Iterate it for events until it, or the log, is closed.

    One thread reads; `close` may be called from another and ends the wait at once.
    """

    def __init__(self, log: EventLog, start: int) -> None:
        self._log = log
        self._last = start
        self._closed = False
        self.missed = 0
        """Events lost so far because they were read too slowly."""

    def next(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event; None when there is none within the time (0: do not wait), or after the end."""
        log = self._log
        with log._changed:
            log._changed.wait_for(lambda: self._ended or log._newest > self._last, timeout_s)
            if self._closed or (event := log._after(self._last)) is None:
                return None
            self.missed += event.sequence - self._last - 1
            self._last = event.sequence
            return event

    @property
    def ended(self) -> bool:
        """Whether no event will come any more."""
        with self._log._changed:
            return self._ended and (self._closed or self._log._newest <= self._last)

    @property
    def _ended(self) -> bool:
        return self._closed or self._log._closed

    def close(self) -> None:
        """End the subscription and wake its reader. Can be repeated."""
        with self._log._changed:
            self._closed = True
            self._log._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        while (event := self.next()) is not None:
            yield event

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
