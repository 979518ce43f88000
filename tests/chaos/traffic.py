"""Everybody's traffic in one loop: a few Mbit/s of everything, each byte checked where it arrives.

One thread holds the sockets of all Pods: 24 programs of their own would leave two processors nothing for routers. Other
threads hand it work (`add`, `remove`, `spoof`, `send_reach`) and wait for it.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
import selectors
import socket
import struct
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.chaos import icmp, payload
from tests.chaos.flows import SIZES, Connection, Datagrams
from tests.chaos.payload import Who, WrongBytes, WrongPod
from tests.chaos.pod import TCP_PORT, UDP_PORT, PodSockets

T = TypeVar("T")
Complain = Callable[[str, str], None]
"""Tell of an invariant that is broken: which, and how."""

UDP_PERIOD_S, PING_PERIOD_S, STREAM_PERIOD_S, ASK_PERIOD_S = 0.12, 0.6, 0.4, 0.35
_ENSURE_PERIOD_S = 0.5
_CONNECT_TIMEOUT_S = 3.0
_MOST_PENDING_BYTES = 1 << 18
_REQUEST = struct.Struct("!II")
_ANSWERS = 1 << 31
"""What flow numbers of answers differ by."""
_GONE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL)
_KINDS = (("udp", 4), ("udp", 6), ("ping", 0), ("stream", 0), ("ask", 0))
"""What every Pod sends, with the IP version; 0: either."""


class _Writer:
    """What is still to go out of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pending = bytearray()

    def flush(self) -> None:
        while self.pending:
            try:
                sent = self.sock.send(self.pending)
            except BlockingIOError:
                return
            del self.pending[:sent]


@dataclass(slots=True, eq=False)
class _Side:
    """One end of a connection."""

    writer: _Writer
    who: Who
    connection: Connection | None
    """None at the end that was called, until the caller has said who it is."""
    is_caller: bool
    read: bytearray
    asked: int = 0
    """Bytes of an answer still to come; at the caller of requests."""


class Traffic:
    """All traffic. `datagrams` and `connections` hold every flow there ever was, by its number."""

    def __init__(self, seed: int, complain: Complain) -> None:
        self._dice = random.Random(f"traffic {seed}")
        self._complain = complain
        self.datagrams: dict[int, Datagrams] = {}
        self.connections: dict[int, Connection] = {}
        self.counts: Counter[str] = Counter()
        self.receive_drops: Counter[str] = Counter()
        """By node: datagrams that found a Pod's socket full."""
        self.refused: Counter[str] = Counter()
        """Connections that were not established, by why."""
        self._pods: dict[str, PodSockets] = {}
        self._paths: dict[str, Path] = {}
        self._flows: dict[tuple[str, str, int], Datagrams | Connection] = {}
        """What each Pod sends, by its uid, kind and IP version."""
        self._sides: dict[int, list[_Side]] = {}
        self._reached: set[tuple[int, str, str, int]] = set()
        self._numbers = itertools.count(1)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._work: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._take_work)
        self._ending = False
        self._making = True
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    # From other threads

    def start(self) -> None:
        self._thread.start()
        self._call(self._ensure)

    def stop(self) -> None:
        """Close everything."""

        def end() -> None:
            self._ending = True
            for uid in list(self._pods):
                self._remove(uid)

        if self._thread.is_alive():
            self._call(end)
            self._thread.join()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def add(self, who: Who, path: Path) -> None:
        """Have a Pod that is attached talk and be talked to."""
        made = PodSockets(who, path)

        def add() -> None:
            self._pods[who.uid], self._paths[who.uid] = made, path
            for family, sock in made.udp.items():
                self._register(sock, lambda sock=sock, family=family: self._hear_datagrams(made, sock, family))
            for family, sock in made.ping.items():
                self._register(sock, lambda sock=sock, family=family: self._hear_pings(made, sock, family))
            for sock in made.listeners.values():
                self._register(sock, lambda sock=sock: self._accept(made, sock))
            self._register(made.stray, lambda: self._hear_strays(made))

        self._call(add)

    def remove(self, uid: str) -> None:
        """End a Pod with all that it says, before it is taken away."""
        self._call(lambda: self._remove(uid))

    def spoof(self, attacker: str, claimed: Who, target: Who, family: int, count: int) -> int:
        """Have a Pod send datagrams with somebody else's source address; return how many went out."""

        def send() -> int:
            pod, sent = self._pods.get(attacker), 0
            for number in range(count if pod else 0):
                data = payload.datagram(payload.SPOOF, 0, number, claimed, target, family, 120)
                packet = icmp.datagram(str(claimed.address(family)), str(target.address(family)), UDP_PORT, data)
                assert pod is not None
                with suppress(OSError):
                    pod.forging[family].sendto(packet, (str(target.address(family)), 0))
                    sent += 1
            self.counts["spoofed"] += sent
            return sent

        return self._call(send)

    def send_reach(self, round_: int, pairs: list[tuple[str, str, int]]) -> None:
        """Send one datagram for each (sender, receiver, IP version)."""

        def send() -> None:
            for source, target, family in pairs:
                one, other = self._pods.get(source), self._pods.get(target)
                if one and other:
                    data = payload.datagram(payload.REACH, 0, round_, one.who, other.who, family, 400)
                    with suppress(OSError):
                        one.udp[family].sendto(data, (str(other.who.address(family)), UDP_PORT))

        self._call(send)

    def reached(self, round_: int) -> set[tuple[str, str, int]]:
        """Return which of them came."""
        return {(source, target, family) for number, source, target, family in list(self._reached) if number == round_}

    def hold(self) -> None:
        """Begin nothing new and send no more; what is under way arrives."""

        def hold() -> None:
            self._making = False

        self._call(hold)

    def drops(self) -> Counter[str]:
        """Return by node how many datagrams found a Pod's socket full so far."""

        def count() -> Counter[str]:
            found = Counter(self.receive_drops)
            for pod in self._pods.values():
                found[pod.who.node] += pod.receive_drops()
            return found

        return self._call(count)

    def _call(self, work: Callable[[], T]) -> T:
        done = threading.Event()
        result: list[T] = []
        failure: list[Exception] = []

        def do() -> None:
            try:
                result.append(work())
            except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
                failure.append(error)
            done.set()

        self._work.append(do)
        self._wake.send(b"x")
        if not done.wait(60):
            raise RuntimeError("the traffic loop does not answer")
        if failure:
            raise failure[0]
        return result[0]

    # The loop

    def _run(self) -> None:
        while not self._ending:
            try:
                self._once()
            except Exception:  # noqa: BLE001 - told as what it is, and the run goes on
                self._complain("the harness works", traceback.format_exc())

    def _once(self) -> None:
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            heapq.heappop(self._timers)[2]()
        wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 1.0
        for key, events in self._selector.select(wait_s):
            now = self._selector.get_map().get(key.fd)
            if now is None or now.data is not key.data:
                continue  # closed by what came before it
            if isinstance(key.data, _Side):
                self._serve(key.data, events)
            else:
                key.data()

    def _take_work(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._work:
            self._work.popleft()()

    def _after(self, wait_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + wait_s, next(self._order), action))

    def _register(self, sock: socket.socket, data: Any, events: int = selectors.EVENT_READ) -> None:
        self._selector.register(sock, events, data)

    def _close(self, sock: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _remove(self, uid: str) -> None:
        for flow in self._flows.values():
            if uid in (flow.src.uid, flow.dst.uid):
                flow.ended = True
                if isinstance(flow, Connection):
                    self._hang_up(flow)
        self._flows = {key: flow for key, flow in self._flows.items() if not flow.ended}
        pod = self._pods.pop(uid, None)
        if pod is not None:
            self.receive_drops[pod.who.node] += pod.receive_drops()
            for sock in (*pod.udp.values(), *pod.ping.values(), *pod.listeners.values(), pod.stray):
                self._close(sock)
            pod.close()

    # What there is to say

    def _ensure(self) -> None:
        """Give every Pod a partner for each kind that has none."""
        if self._making:
            uids = list(self._pods)
            for uid in uids:
                for kind, family in _KINDS:
                    if (uid, kind, family) not in self._flows and len(uids) > 1:
                        self._begin(self._pods[uid], kind, family)
        if not self._ending:
            self._after(_ENSURE_PERIOD_S, self._ensure)

    def _begin(self, pod: PodSockets, kind: str, wanted_family: int) -> None:
        dice = self._dice
        others = [other.who for other in self._pods.values() if other is not pod]
        far = [who for who in others if who.node != pod.who.node]
        target = dice.choice(far if far and dice.random() < 0.85 else others)
        family, number = wanted_family or dice.choice((4, 6)), next(self._numbers)
        key = (pod.who.uid, kind, wanted_family)
        if kind in ("udp", "ping"):
            flow = self._flows[key] = self.datagrams[number] = Datagrams(number, kind, family, pod.who, target)
            self._after(dice.random() * UDP_PERIOD_S, lambda: self._send_datagram(pod, flow))
            return
        made = Connection(number, kind, family, pod.who, target)
        self._flows[key] = made
        self._connect(pod, made)

    def _send_datagram(self, pod: PodSockets, flow: Datagrams) -> None:
        if flow.ended or not self._making:
            return
        number = flow.sent(time.monotonic())
        there = str(flow.dst.address(flow.family))
        try:
            if flow.kind == "udp":
                size = self._dice.choice(SIZES)
                data = payload.datagram(payload.DATAGRAM, flow.number, number, flow.src, flow.dst, flow.family, size)
                pod.udp[flow.family].sendto(data, (there, UDP_PORT))
            else:
                size = self._dice.choice((64, 200, 1000, 1380))
                data = payload.datagram(payload.PING, flow.number, number, flow.src, flow.dst, flow.family, size)
                pod.ping[flow.family].sendto(icmp.echo_request(flow.family, pod.ident, number, data), (there, 0))
        except OSError as error:
            flow.take_back()
            self.refused[f"{flow.kind}: {error.strerror}"] += 1
        period_s = UDP_PERIOD_S if flow.kind == "udp" else PING_PERIOD_S
        self._after(period_s * self._dice.uniform(0.5, 1.5), lambda: self._send_datagram(pod, flow))

    # Datagrams

    def _hear_datagrams(self, pod: PodSockets, sock: socket.socket, family: int) -> None:
        for _ in range(64):
            try:
                data, seen = sock.recvfrom(65536)
            except OSError:
                return
            try:
                found = payload.read(data)
                payload.check_ends(found, pod.who, seen[0])
            except WrongBytes as wrong:
                self._complain("no wrong byte", f"{pod.who.uid} from {seen[0]}: {wrong}")
                continue
            except WrongPod as wrong:
                self._complain("no packet to the wrong Pod", str(wrong))
                continue
            if found.kind == payload.REACH:
                self._reached.add((found.number, found.src_uid, found.dst_uid, family))
                continue
            flow = self.datagrams.get(found.flow)
            if flow is None or (flow.src.uid, flow.dst.uid) != (found.src_uid, found.dst_uid):
                self._complain(
                    "no packet to the wrong Pod", f"{pod.who.uid} received of flow {found.flow}, which is {flow}"
                )
            elif not flow.received(found.number):
                self._complain("no wrong byte", f"{flow}: number {found.number} was never sent")
            self.counts["datagrams"] += 1

    def _hear_pings(self, pod: PodSockets, sock: socket.socket, family: int) -> None:
        for _ in range(64):
            try:
                data, seen = sock.recvfrom(65536)
            except OSError:
                return
            answer = icmp.echo_reply(family, data, pod.ident)
            if answer is None:
                continue
            try:
                found = payload.read(answer)
            except WrongBytes as wrong:
                self._complain("no wrong byte", f"{pod.who.uid}: an echo from {seen[0]}: {wrong}")
                continue
            flow = self.datagrams.get(found.flow)
            if flow is None or flow.src.uid != pod.who.uid or str(found.dst) != seen[0].partition("%")[0]:
                self._complain("no packet to the wrong Pod", f"{pod.who.uid}: an echo from {seen[0]} of {found}")
            elif not flow.received(found.number):
                self._complain("no wrong byte", f"{flow}: number {found.number} was never sent")
            self.counts["pings"] += 1

    def _hear_strays(self, pod: PodSockets) -> None:
        for _ in range(64):
            try:
                data = pod.stray.recv(65536)
            except OSError:
                return
            self._complain(
                "no packet to the wrong Pod",
                f"{pod.who.uid} was handed a packet to none of its addresses: {data[:48].hex()}",
            )

    # Connections

    def _connect(self, pod: PodSockets, made: Connection) -> None:
        try:
            sock = pod.connect(self._paths[pod.who.uid], made.family)
        except OSError as error:
            self._not_established(made, error.strerror or str(error))
            return
        side = _Side(_Writer(sock), pod.who, made, True, bytearray())
        self._sides[made.number] = [side]
        self.connections[made.number] = made
        code = sock.connect_ex((str(made.dst.address(made.family)), TCP_PORT))
        if code not in (0, errno.EINPROGRESS):
            self._not_established(made, errno.errorcode.get(code, str(code)))
            return
        self._register(sock, side, selectors.EVENT_WRITE)

        def look() -> None:
            if not made.opened_s and not made.ended:
                self._not_established(made, "timed out")

        self._after(_CONNECT_TIMEOUT_S, look)

    def _not_established(self, made: Connection, why: str) -> None:
        self.refused[f"{made.kind}: {why}"] += 1
        made.ended = True
        self.connections.pop(made.number, None)
        self._hang_up(made)
        self._flows = {key: flow for key, flow in self._flows.items() if flow is not made}

    def _hang_up(self, made: Connection) -> None:
        for side in self._sides.pop(made.number, ()):
            # Nothing of it may outlive its Pod, and look for whoever has its address then.
            side.writer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close(side.writer.sock)

    def _accept(self, pod: PodSockets, listener: socket.socket) -> None:
        with suppress(OSError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            self._register(sock, _Side(_Writer(sock), pod.who, None, False, bytearray()))

    def _serve(self, side: _Side, events: int) -> None:
        try:
            if side.is_caller and side.connection and not side.connection.opened_s:
                self._established(side, side.connection)
                return
            if events & selectors.EVENT_WRITE:
                side.writer.flush()
                self._watch(side)
            if events & selectors.EVENT_READ:
                data = side.writer.sock.recv(1 << 18)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "it was closed")
                self._read(side, data)
        except BlockingIOError:
            pass
        except OSError as error:
            self._died(side, error.strerror or str(error))

    def _established(self, side: _Side, made: Connection) -> None:
        code = side.writer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._not_established(made, errno.errorcode.get(code, str(code)))
            return
        made.opened_s = made.moved_s = time.monotonic()
        kind = payload.STREAM if made.kind == "stream" else payload.ASK
        self._say(side, payload.header(kind, made.number, 0, made.src, made.dst, made.family, payload.HEADER.size))
        self._after(self._dice.random() * STREAM_PERIOD_S, lambda: self._go_on(side, made))

    def _go_on(self, side: _Side, made: Connection) -> None:
        """Send more, in a while again."""
        if made.ended or not self._making:
            return
        dice = self._dice
        period_s = STREAM_PERIOD_S
        if made.kind == "ask":
            period_s = ASK_PERIOD_S
            if not side.asked:
                size, side.asked = dice.randrange(1, 2000), dice.choice((1, 100, 1400, 5000, 20_000))
                self._say(side, _REQUEST.pack(size, side.asked) + payload.stream(made.number, made.sent_bytes, size))
                made.sent_bytes += size
        elif len(side.writer.pending) < _MOST_PENDING_BYTES:
            size = dice.randrange(1, dice.choices((1000, 16_000, 64_000), (6, 3, 1))[0])
            self._say(side, payload.stream(made.number, made.sent_bytes, size))
            made.sent_bytes += size
        self._after(period_s * dice.uniform(0.5, 1.5), lambda: self._go_on(side, made))

    def _say(self, side: _Side, data: bytes) -> None:
        side.writer.pending += data
        try:
            side.writer.flush()
        except OSError as error:
            self._died(side, error.strerror or str(error))
            return
        self._watch(side)

    def _watch(self, side: _Side) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if side.writer.pending else 0)
        self._selector.modify(side.writer.sock, events, side)

    def _read(self, side: _Side, data: bytes) -> None:
        made = side.connection
        if made is None:
            side.read += data
            if len(side.read) < payload.HEADER.size:
                return
            head, data = bytes(side.read[: payload.HEADER.size]), bytes(side.read[payload.HEADER.size :])
            side.read.clear()
            made = side.connection = self._caller(side, head)
            if made is None:
                self._close(side.writer.sock)
                return
            self._sides.setdefault(made.number, []).append(side)
        made.moved_s = time.monotonic()
        if made.kind == "stream":
            self._check(made, data, made.number, made.received_bytes)
            made.received_bytes += len(data)
            self.counts["stream bytes"] += len(data)
        elif side.is_caller:
            self._check(made, data, made.number + _ANSWERS, made.answered_bytes)
            made.answered_bytes += len(data)
            side.asked -= len(data)
            if side.asked < 0:
                self._complain("no wrong byte", f"{made}: {-side.asked} bytes more than were asked for")
            made.exchanges += not side.asked
            self.counts["exchanges"] += not side.asked
        else:
            side.read += data
            self._answer(side, made)

    def _caller(self, side: _Side, head: bytes) -> Connection | None:
        try:
            found = payload.read(head)
            payload.check_ends(found, side.who, side.writer.sock.getpeername()[0])
        except WrongBytes as wrong:
            self._complain("no wrong byte", f"{side.who.uid} was called: {wrong}")
            return None
        except WrongPod as wrong:
            self._complain("no packet to the wrong Pod", f"{side.who.uid} was called: {wrong}")
            return None
        made = self.connections.get(found.flow)
        return made if made and not made.ended else None

    def _answer(self, side: _Side, made: Connection) -> None:
        while len(side.read) >= _REQUEST.size:
            size, wanted = _REQUEST.unpack_from(side.read)
            if len(side.read) < _REQUEST.size + size:
                return
            data = bytes(side.read[_REQUEST.size : _REQUEST.size + size])
            del side.read[: _REQUEST.size + size]
            self._check(made, data, made.number, made.received_bytes)
            made.received_bytes += size
            # Its own count of what it has answered is what the caller has read: one request at a time.
            self._say(side, payload.stream(made.number + _ANSWERS, made.answered_bytes, wanted))

    def _check(self, made: Connection, data: bytes, number: int, offset: int) -> None:
        expected = payload.stream(number, offset, len(data))
        if data != expected:
            at = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), 0)
            self._complain("no wrong byte", f"{made}: byte {offset + at} is not what was sent")

    def _died(self, side: _Side, why: str) -> None:
        made = side.connection
        if made is None or made.ended:
            self._close(side.writer.sock)
            return
        if not made.opened_s:
            self._not_established(made, why)
            return
        age_s = time.monotonic() - made.opened_s
        self._complain("TCP survives", f"{made} died after {age_s:.1f} s though both Pods live: {why}")
        made.ended = True
        self._hang_up(made)
        self._flows = {key: flow for key, flow in self._flows.items() if flow is not made}
