"""What a router and its successor say to each other: either side, with the other gone mad."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from router.engine.interface import EngineCounters
from router.errors import Refusal
from router.model import NODE_KEY, Endpoint, Tally
from router.takeover import counts, successor
from router.takeover.channel import PROTOCOL, Channel, Gone
from router.takeover.predecessor import Predecessor
from router.takeover.successor import Successor
from router.values import parse_address
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

_HEADER = struct.Struct(">II")
_HELLO = {"say": "hello", "protocol": PROTOCOL, "node": "alpha", "state": "x"}
_HEARD = [_HELLO, {"say": "ready"}, {"say": "running"}, {"say": "leave", "control": "stop"}]
_COUNTERS = counts.encode(
    EngineCounters(
        {NODE_KEY: Tally(1, 2, 3)}, {Endpoint(parse_address("192.0.2.1")): Tally(1)}, Tally(), Tally(), batches=(1, 2)
    )
)
_ESTATE = {
    "say": "estate", "count": 0, "counters_epoch": "e", "switches": {},
    "offloads": {"tun_checksum": True, "tun_tso": True, "tun_uso": False, "udp_segment": True, "udp_gro": True, "max_segments": 64},
}  # fmt: skip
_TOLD = [
    _ESTATE,
    {"say": "stopped"},
    {"say": "counters", "counters": _COUNTERS},
    {"say": "left"},
]
_KEYS = ("say", "protocol", "count", "names", "offloads", "switches", "counters", "counters_epoch", "why", "control")


class _Owner:
    """Counts what it is told, so that what was begun is seen to be undone."""

    def __init__(self) -> None:
        self.frozen = self.stopped = 0
        self.let_go_of = False

    def check(self, hello: dict[str, Any]) -> None:
        return None

    def freeze(self) -> None:
        self.frozen += 1

    def estate(self) -> tuple[dict[str, Any], dict[str, int], int]:
        return {"counters_epoch": "e", "offloads": {}, "switches": {}}, {}, 2

    def stop_engine(self) -> None:
        self.stopped += 1

    def start_engine(self) -> None:
        self.stopped -= 1

    def counters(self) -> dict[str, Any]:
        return _COUNTERS

    def let_go(self) -> None:
        self.let_go_of = True

    def thaw(self, ended: threading.Event) -> None:
        self.frozen -= 1


class _Sides(Target):
    """Makes messages, some damaged in their JSON, some in their bytes."""

    reached_by = "processes of the router's own user, at the socket beside the control socket"
    _messages: list[dict[str, Any]]
    _first_fds = 0
    """How many go along with the first message."""

    def __enter__(self) -> Self:
        self._log = logging.getLogger("router.takeover")
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.setLevel(self._level)

    def make(self, random: Random) -> bytes:
        out = b""
        at = random.randrange(len(self._messages) + 1)
        for number, message in enumerate(self._messages):
            body = json.dumps(message).encode()
            if number == at:
                body = mutate.document(random, (message,), _KEYS)
            fds = 0 if number else self._first_fds
            out += _HEADER.pack(len(body), fds if random.random() < 0.95 else random.randrange(300)) + body
        return mutate.damaged(random, out) if random.random() < 0.2 else out

    @contextmanager
    def _hears(self, given: bytes, fd: int = -1) -> Iterator[Channel]:
        """Yield a channel at whose other end somebody has said this and hung up, with an fd beside it."""
        ours, theirs = socket.socketpair()
        before = len(os.listdir("/proc/self/fd"))
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            theirs.setblocking(False)
            channel = Channel(ours)
            try:
                if given:
                    try:
                        sent = socket.send_fds(theirs, [given[:8]], [fd]) if fd >= 0 else theirs.send(given[:8])
                        theirs.send(given[sent:])
                    except BlockingIOError:
                        pass
                theirs.shutdown(socket.SHUT_WR)
                yield channel
            finally:
                channel.close()
        assert len(os.listdir("/proc/self/fd")) <= before, "it keeps an fd that was sent"


class MadSuccessors(_Sides):
    """A predecessor listens to what is no successor: whatever it hears, it goes on as before, or has let go of everything."""

    name = "takeover-old"
    _messages = _HEARD

    def __enter__(self) -> Self:
        super().__enter__()
        self._directory = tempfile.TemporaryDirectory(prefix="podwire-fuzz-")
        self._owner = _Owner()
        socket_path = Path(self._directory.name) / "router.sock"
        self._predecessor = Predecessor(socket_path, self._owner, lambda _: None, lambda: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._predecessor.stop()
        self._directory.cleanup()
        super().__exit__(kind, error, trace)

    def feed(self, given: bytes) -> None:
        owner = self._owner
        owner.frozen = owner.stopped = 0
        owner.let_go_of = False
        with self._hears(given) as channel:
            done = self._predecessor._serve(channel)
        assert done == owner.let_go_of
        assert done or (owner.frozen, owner.stopped) == (0, 0), "it does not go on as before"


class MadPredecessors(_Sides):
    """A successor listens to what is no router: it refuses in words, or starts as ever."""

    name = "takeover-new"
    _messages = _TOLD
    _first_fds = 1

    def __enter__(self) -> Self:
        super().__enter__()
        self._death_s = successor._DEATH_S
        successor._DEATH_S = 0.0  # whether the other process has ended: here it is this one
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        successor._DEATH_S = self._death_s
        super().__exit__(kind, error, trace)

    def feed(self, given: bytes) -> None:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._hears(given, null) as channel:
                self._listen(Successor(channel))
        finally:
            os.close(null)

    @staticmethod
    def _listen(made: Successor) -> None:
        inherited = None
        try:
            inherited = made.inherit({"node": "alpha"}, {})
            made._hear("stopped", 1)
            counters = made.after_start()
            if counters is not None:
                counts.decode(counters)
        except (Refusal, Gone, ValueError, KeyError, TypeError):
            pass
        finally:
            if inherited is not None:
                for fd in (*inherited.fds.values(), inherited.take_lock()):
                    if fd >= 0:
                        os.close(fd)
            made.close()
