"""Taps for everybody: the one reader of an engine's sightings, who hands each to the stream that asked for it.

    engine ── sightings ──► reader thread ──► a bounded queue a stream ──► capture, flows, trace
    event log ── Pods come and go, tables change ──► follower thread: the taps are set anew

Both threads run only while some stream is open; without one, nothing here costs anything. A stream follows its party by
its key: of a Pod that is attached anew, as a runtime does that repairs it, packets go on; when it stays away the stream
ends and says why.
"""
# A stream and its taps are one thing.
# ruff: noqa: SLF001

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType

from router.engine.interface import Engine, Instruction, Side, Sighting, Source, Tap
from router.errors import Kind, Refusal
from router.events import Event, EventKind, EventLog, Subscription
from router.model import AttachmentKey

MOST_STREAMS = 64
"""Streams at a time: what asks for them has narrower bounds of its own."""
STREAM_SIGHTINGS = 16384
"""Sightings that may wait in a stream …"""
STREAM_BYTES = 8 << 20
"""… and bytes of packets in them; what finds no room is counted as lost."""
STOPPING = "the router is stopping"
"""What `Stream.ended` says then."""
AWAY_S = 5.0
"""How long a party may be away before its streams end."""

BOTH_SIDES = frozenset(Side)

_READ_S = 1.0
_REST_S = 0.005
"""Between two reads: many at once cost less than each one when it comes."""
_JOIN_S = 10.0
_LEFT = {
    EventKind.DETACHED: "was detached",
    EventKind.RELEASED: "was released",
    EventKind.ATTACHMENT_LOST: "lost its device",
}
_TABLE_KINDS = frozenset((EventKind.TABLE_CHANGED, EventKind.LEASE_TAKEN, EventKind.LEASE_LOST))
_AWAY = "is not there any more"
_CLOSED = "closed"

log = logging.getLogger(__name__)


class Stream:
    """What one tap sees. One thread reads; `close` may be called from another and ends the wait at once."""

    def __init__(self, taps: Taps, tap: Tap) -> None:
        self.tap = tap
        self._taps = taps
        self._changed = threading.Condition()
        self._waiting: deque[Sighting] = deque()
        self._waiting_bytes = 0
        self._lost = 0
        self._closed = False
        self._ended = ""
        self._left = ""
        self._left_at_s = 0.0

    @property
    def lost(self) -> int:
        """Sightings that were lost so far for lack of room, here or in the engine."""
        return self._lost

    @property
    def ended(self) -> str:
        """Why nothing will come any more, in words; empty while something may."""
        with self._changed:
            return self._ended if not self._waiting else ""

    def read(self, timeout_s: float, most_bytes: int = STREAM_BYTES) -> list[Sighting]:
        """Return what was seen since the last call, oldest first; wait for the first at most so long.

        Of more bytes of packets than `most_bytes` the rest waits for the next call, which it is worth to make at once.
        Nothing comes after the end, of which `ended` tells.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._waiting and not self._ended:
                now_s = time.monotonic()
                if self._left and now_s >= self._left_at_s + AWAY_S:
                    self._end(f"{self.tap.party} {self._left}")
                    break
                if now_s >= deadline_s:
                    break
                until_s = min(deadline_s, self._left_at_s + AWAY_S) if self._left else deadline_s
                self._changed.wait(until_s - now_s)
            if self._waiting_bytes <= most_bytes:
                seen = list(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
                return seen
            seen, taken_bytes = [], 0
            while self._waiting and taken_bytes < most_bytes:
                seen.append(self._waiting.popleft())
                taken_bytes += len(seen[-1].packet)
            self._waiting_bytes -= taken_bytes
        return seen

    def end(self) -> None:
        """Let `read` return, nothing comes any more; waits for nobody, and `close` is still to be called."""
        self._end(_CLOSED)
        self._drop_all()

    def close(self) -> None:
        """See nothing any more. Can be repeated."""
        self._taps._close(self)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What the threads of the taps do with it

    def _take(self, seen: Iterable[Sighting], lost: int) -> None:
        with self._changed:
            self._lost += lost
            for sighting in seen:
                size_bytes = len(sighting.packet)
                if self._ended or (
                    len(self._waiting) >= STREAM_SIGHTINGS or self._waiting_bytes + size_bytes > STREAM_BYTES
                ):
                    self._lost += 1
                    continue
                self._waiting.append(sighting)
                self._waiting_bytes += size_bytes
            self._changed.notify_all()

    def _leave(self, why: str) -> None:
        with self._changed:
            if not self._left:
                self._left_at_s = time.monotonic()
            self._left = why
            self._changed.notify_all()

    def _come_back(self) -> None:
        with self._changed:
            self._left = ""

    def _end(self, why: str) -> None:
        with self._changed:
            self._ended = self._ended or why
            self._changed.notify_all()

    def _drop_all(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._waiting_bytes = 0


class Taps:
    """Opens streams over one engine. Thread-safe; `close` ends them all, before the engine is closed."""

    def __init__(self, engine: Engine, events: EventLog | None = None) -> None:
        """`events` tells when parties come and go; without it a stream sees its party as it was when it was opened."""
        self._engine = engine
        self._events = events
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._last_number = 0
        self._closed = False
        self._reader: threading.Thread | None = None
        self._follower: threading.Thread | None = None
        self._following: Subscription | None = None

    def open(
        self,
        *,
        party: Source | None = None,
        program: tuple[Instruction, ...] = (),
        snap_bytes: int = 0xFFFF,
        every: int = 1,
        sides: frozenset[Side] = BOTH_SIDES,
        dropped_only: bool = False,
    ) -> Stream:
        """See packets from now on, as `engine.interface.Tap` says. Refusal when too many look, or the router stops."""
        with self._lock:
            if self._closed:
                raise Refusal(Kind.UNAVAILABLE, "the router is stopping; try again when it has started")
            if len(self._streams) >= MOST_STREAMS:
                raise Refusal(
                    Kind.EXHAUSTED, f"packets are looked at by {MOST_STREAMS} already: end a capture or watch of flows"
                )
            self._last_number += 1
            tap = Tap(self._last_number, party, program, snap_bytes, every, sides, dropped_only)
            stream = Stream(self, tap)
            self._run(stream)
            if not self._is_there(party):
                stream._leave("is not there")
        return stream

    def close(self) -> None:
        """End every stream and both threads; none can be opened any more."""
        with self._lock:
            self._closed = True
            threads = (self._reader, self._follower)
            for stream in tuple(self._streams.values()):
                stream._end(STOPPING)
                self._remove(stream)
        for thread in threads:
            if thread is not None:
                thread.join(_JOIN_S)

    def _close(self, stream: Stream) -> None:
        with self._lock:
            self._remove(stream)
        stream._end(_CLOSED)
        stream._drop_all()

    def _remove(self, stream: Stream) -> None:
        if self._streams.pop(stream.tap.number, None) is None:
            return
        if not self._streams and self._following is not None:
            self._following.close()
            self._following = self._follower = None
        self._watch()  # wakes the reader too, who ends when there is no stream

    def _watch(self) -> None:
        self._engine.watch(tuple(stream.tap for stream in self._streams.values()))

    def _run(self, stream: Stream) -> None:
        """See for a stream, and have both threads; the lock is the caller's."""
        if self._following is None and self._events is not None:
            # Before the engine looks for the party: who comes or goes from now on is told of.
            self._following = self._events.subscribe()
            self._follower = threading.Thread(
                target=self._follow, args=(self._following,), name="taps-follow", daemon=True
            )
            self._follower.start()
        self._streams[stream.tap.number] = stream
        try:
            self._watch()
        except BaseException:
            self._remove(stream)
            raise
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="taps", daemon=True)
            self._reader.start()

    # The reader

    def _read(self) -> None:
        while True:
            with self._lock:
                if not self._streams:
                    self._reader = None
                    return
            try:
                seen, lost = self._engine.sightings(_READ_S)
            except Exception as error:  # the engine's bug must not leave readers waiting for ever
                log.exception("reading what the engine saw failed: a bug; captures and flows end")
                self._fail(f"the engine failed: {error}")
                return
            self._hand_out(seen, lost)
            if seen:
                time.sleep(_REST_S)

    def _hand_out(self, seen: Iterable[Sighting], lost: Mapping[int, int]) -> None:
        by_tap: dict[int, list[Sighting]] = {}
        for sighting in seen:
            by_tap.setdefault(sighting.tap, []).append(sighting)
        with self._lock:
            streams = dict(self._streams)
        for number in by_tap.keys() | lost.keys():
            stream = streams.get(number)
            if stream is not None:  # else it was closed meanwhile
                stream._take(by_tap.get(number, ()), lost.get(number, 0))

    def _fail(self, why: str) -> None:
        with self._lock:
            self._reader = None
            for stream in tuple(self._streams.values()):
                stream._end(why)
                self._remove(stream)

    # The follower

    def _follow(self, events: Subscription) -> None:
        missed = 0
        for event in events:
            with self._lock:
                if events.missed != missed:
                    missed = events.missed
                    self._look_again()
                elif event.kind in _TABLE_KINDS:
                    self._look_again()
                elif event.key is not None and (event.kind in _LEFT or event.kind is EventKind.ATTACHED):
                    self._of_pod(event, event.key)

    def _of_pod(self, event: Event, key: AttachmentKey) -> None:
        concerned = [stream for stream in self._streams.values() if stream.tap.party == key]
        if not concerned:
            return
        if event.kind is EventKind.ATTACHED:
            self._watch()
        for stream in concerned:
            if event.kind is EventKind.ATTACHED:
                stream._come_back()
            else:
                stream._leave(_LEFT[event.kind])

    def _look_again(self) -> None:
        """Find every party anew: peers and the node itself come and go with the table."""
        concerned = [stream for stream in self._streams.values() if stream.tap.party is not None]
        if not concerned:
            return
        self._watch()
        for stream in concerned:
            if self._is_there(stream.tap.party):
                stream._come_back()
            else:
                stream._leave(_AWAY)

    def _is_there(self, party: Source | None) -> bool:
        if party is None:
            return True
        try:
            self._engine.decide(b"", party)  # of what is no packet: the engine only looks whether it knows the party
        except KeyError:
            return False
        return True
