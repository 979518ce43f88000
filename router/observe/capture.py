"""Captures: a pcapng file for each who asks, made while its reader reads.

    stream of sightings ──► recording ──► chunks ──► the reader

What a reader costs is bounded: the queue of its stream, one chunk and, of a reader who does not read on, the thread that
waits for it for `STALLED_S`; then it is let go.
"""
# A capture and its captures are one thing.
# ruff: noqa: SLF001

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from router.engine.interface import Instruction, Source
from router.errors import Kind, Refusal
from router.model import Endpoint
from router.observe.names import Names
from router.observe.recording import Recording
from router.observe.taps import STOPPING, Stream, Taps

MOST_CAPTURES = 8
STALLED_S = 30.0
"""How long a reader may leave a chunk unread."""
_READ_S = 1.0
_READ_BYTES = 1 << 20
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What to capture."""

    party: Source | None = None
    program: tuple[Instruction, ...] = ()
    snap_bytes: int = 0xFFFF
    dropped_only: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of a file; counts are those so far."""

    pcapng: bytes
    packets: int
    lost: int


class Capture:
    """One file. One thread iterates; `close` may be called from another, and ends it at once. Can be repeated."""

    def __init__(self, captures: Captures, stream: Stream, recording: Recording, let_go: Callable[[], object]) -> None:
        self._captures = captures
        self._stream = stream
        self._recording = recording
        self._let_go = let_go
        self._handed_over_at_s: float | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the file as it grows, until it is closed. Refusal when nothing will come any more, with the reason."""
        try:
            yield self._hand_over(self._recording.head())
            told = 0
            while not (why := self._stream.ended):
                self._handed_over_at_s = None
                seen = self._stream.read(_READ_S, _READ_BYTES)
                for blocks in self._recording.chunks(seen):
                    told = self._stream.lost
                    yield self._hand_over(blocks)
                if not seen and self._stream.lost != told:
                    told = self._stream.lost
                    yield self._hand_over(b"")
            yield self._hand_over(self._recording.tail(self._stream.lost))
        finally:
            self.close()
        raise Refusal(Kind.UNAVAILABLE if why == STOPPING else Kind.STATE, f"the capture ended: {why}")

    def _hand_over(self, blocks: bytes) -> Chunk:
        self._handed_over_at_s = time.monotonic()
        return Chunk(blocks, self._recording.packets, self._stream.lost)

    def end(self) -> None:
        """Let who iterates come to the end, and wait for nobody."""
        self._stream.end()

    def close(self) -> None:
        """End it."""
        self._stream.close()
        self._captures._forget(self)

    def _is_stalled(self, now_s: float) -> bool:
        at_s = self._handed_over_at_s
        return at_s is not None and now_s >= at_s + STALLED_S


class Captures:
    """Makes captures. Thread-safe; they end with the taps they look through."""

    def __init__(self, taps: Taps, names: Names, here: Endpoint) -> None:
        """`here` is where this router receives."""
        self._taps = taps
        self._names = names
        self._here = here
        self._changed = threading.Condition()
        self._open: set[Capture] = set()
        self._watching = False

    def open(self, wish: Wish, let_go: Callable[[], object]) -> Capture:
        """Begin a capture; `let_go` is called when its reader does not read on. Refusal when too many run."""
        with self._changed:
            if len(self._open) >= MOST_CAPTURES:
                raise Refusal(
                    Kind.EXHAUSTED, f"{MOST_CAPTURES} captures run, and no more fit; end one of them and try again"
                )
            stream = self._taps.open(
                party=wish.party, program=wish.program, snap_bytes=wish.snap_bytes, dropped_only=wish.dropped_only
            )
            recording = Recording(self._names.naming, self._here, wish.snap_bytes)
            capture = Capture(self, stream, recording, let_go)
            self._open.add(capture)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="captures", daemon=True).start()
        return capture

    def close(self) -> None:
        """End all."""
        with self._changed:
            captures = tuple(self._open)
        for capture in captures:
            capture.close()

    def _forget(self, capture: Capture) -> None:
        with self._changed:
            self._open.discard(capture)
            self._changed.notify_all()

    def _watch(self) -> None:
        """Let go of readers who do not read on, as long as there is any."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open, min(_LOOK_S, STALLED_S / 4))
                if not self._open:
                    self._watching = False
                    return
                now_s = time.monotonic()
                stalled = [capture for capture in self._open if capture._is_stalled(now_s)]
            for capture in stalled:
                capture.close()
                capture._let_go()
