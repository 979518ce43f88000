"""Questions to the routers of other nodes about a packet, and answers to theirs.

    engine's thread ── take: a bounded queue ──► own thread ── a question → decide → a reply by the tunnel's socket
                                                            └─ a reply    → whoever waits for it

They leave by the engine's own socket, as packets do. A peer gets so many replies a second and no more.
"""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import threading
import time
from contextlib import suppress

from router.engine.interface import QUESTIONS_KEPT, Engine
from router.model import Endpoint, VerdictKind
from router.observe.names import Names
from router.observe.trace.decision import LATELY_NS, Decision, dropped_lately, judge
from router.wire import question

REPLIES_PER_S = 100
"""Most to one peer."""
TRIES = 3
TRY_S = 0.4
_STALE_NS = int(TRIES * TRY_S * 1e9)
_MOST_PEERS = 4096
"""Whose replies are counted; past it counting begins anew."""
_NUMBERS = {VerdictKind.LOCAL: 1, VerdictKind.TUNNEL: 2, VerdictKind.REJECT: 3, VerdictKind.DROP: 4}
_KINDS = {number: kind for kind, number in _NUMBERS.items()}

_log = logging.getLogger(__name__)


class Questions:
    """Asks, and answers between `start` and `stop`. Thread-safe."""

    def __init__(self, underlay: socket.socket, vni: int, names: Names) -> None:
        """`underlay` is the tunnel's socket."""
        self._socket = underlay
        self._vni = vni
        self.names = names
        self._engine: Engine | None = None
        self._came: queue.Queue[tuple[Endpoint, bytes, int] | None] = queue.Queue(QUESTIONS_KEPT)
        self._lock = threading.Lock()
        self._waiting: dict[tuple[Endpoint, int], queue.SimpleQueue[question.Reply]] = {}
        self._replied: dict[Endpoint, tuple[int, int]] = {}
        """In which second how many."""
        self._thread: threading.Thread | None = None
        self._ended = False

    def take(self, endpoint: Endpoint, datagram: bytes, received_ns: int) -> None:
        """Take what a peer asks or replies, from an engine's thread, at once; what finds no room is lost.

        `received_ns` is of CLOCK_MONOTONIC: what has waited until nobody waits for its reply is not replied to.
        """
        if not self._ended:
            with suppress(queue.Full):
                self._came.put_nowait((endpoint, datagram, received_ns))

    def start(self, engine: Engine) -> None:
        """Begin to answer as this engine decides."""
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="questions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. May be called twice."""
        self._ended = True
        thread, self._thread = self._thread, None
        while thread is not None and thread.is_alive():
            with suppress(queue.Full):
                self._came.put_nowait(None)
            thread.join(0.1)

    def ask(self, endpoint: Endpoint, packet: bytes) -> Decision | None:
        """Return what the router at an endpoint decides about a packet that comes from this one; None: no answer."""
        sequence, sent_ns = secrets.randbits(32), time.monotonic_ns()
        asked = question.Question(sequence, sent_ns, packet[: question.MOST_PACKET_BYTES], len(packet))
        datagram = question.encode_question(self._vni, asked)
        replies: queue.SimpleQueue[question.Reply] = queue.SimpleQueue()
        with self._lock:
            self._waiting[endpoint, sequence] = replies
        try:
            for _ in range(TRIES):
                with suppress(OSError):  # as good as lost on the way
                    self._socket.sendto(datagram, (str(endpoint.address), endpoint.port))
                with suppress(queue.Empty):
                    reply = replies.get(timeout=TRY_S)
                    if reply.sent_ns == sent_ns:
                        return _decision(reply)
            return None
        finally:
            with self._lock:
                del self._waiting[endpoint, sequence]

    # The thread

    def _run(self) -> None:
        while not self._ended:
            came = self._came.get()
            if came is None:
                continue
            endpoint, datagram, received_ns = came
            if time.monotonic_ns() - received_ns > _STALE_NS:
                continue
            try:
                self._see_to(endpoint, question.decode(datagram))
            except Exception:  # noqa: BLE001 - a bug must not end the answers
                _log.exception("a question of %s failed: a bug of the router", endpoint)

    def _see_to(self, endpoint: Endpoint, message: question.Question | question.Reply | None) -> None:
        if isinstance(message, question.Reply):
            with self._lock:
                replies = self._waiting.get((endpoint, message.sequence))
            if replies is not None:
                replies.put(message)
        elif message is not None and self._may_reply(endpoint) and (reply := self._reply(endpoint, message)):
            with suppress(OSError):  # as good as lost on the way
                self._socket.sendto(question.encode_reply(self._vni, reply), (str(endpoint.address), endpoint.port))

    def _may_reply(self, endpoint: Endpoint) -> bool:
        second = int(time.monotonic())
        began, count = self._replied.get(endpoint, (second, 0))
        if began != second:
            count = 0
        if count >= REPLIES_PER_S:
            return False
        if len(self._replied) >= _MOST_PEERS:
            self._replied.clear()
        self._replied[endpoint] = (second, count + 1)
        return True

    def _reply(self, endpoint: Endpoint, asked: question.Question) -> question.Reply | None:
        """Decide; None for a peer that the engine does not know any more."""
        assert self._engine is not None
        packet = asked.packet.ljust(asked.packet_bytes, b"\0")
        try:
            found = judge(self._engine, self.names, packet, endpoint).decision
        except KeyError:
            return None
        reason = found.reason or dropped_lately(self._engine, packet, endpoint, time.time_ns() - LATELY_NS)
        number = _NUMBERS[found.verdict] if found.verdict is not None else 0
        return question.Reply(asked.sequence, asked.sent_ns, number, found.mtu_bytes, reason, found.target, found.node)


def _decision(reply: question.Reply) -> Decision:
    return Decision(reply.node, _KINDS.get(reply.verdict), reply.reason, reply.target, reply.mtu_bytes)
