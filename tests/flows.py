"""Many TCP and UDP flows between two Pods at once, both ways, every message numbered: nothing may be lost, doubled or wrong."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

from shim.lab import netns
from shim.lab.pod import LabPod
from tests.echo import FAMILIES

_MESSAGE = struct.Struct(">HBBI56x")  # flow, side, kind, number
_TCP, _UDP = 1, 2
_CONNECT_S = 20.0


@dataclass(slots=True)
class _End:
    """One end of a flow."""

    flow: int
    side: int
    kind: int
    socket: socket.socket
    sent: int = 0
    seen: Counter[int] = field(default_factory=Counter)
    disorder: int = 0
    last: int = -1
    unread: bytes = b""
    unsent: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of all messages."""

    sent: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    disordered: int
    longest_silence_s: float
    """Between any two messages, of all flows together."""
    retransmitted: int
    """Segments of TCP: lost ones, and those that were only late."""


class Flows:
    """They run inside the `with` block; `finish` ends them and says what became of them."""

    def __init__(self, one: LabPod, other: LabPod, each: int = 100, every_s: float = 0.25) -> None:
        """`each` is how many flows of TCP, and as many of UDP; each end sends a message `every_s`."""
        self._pods = (one, other)
        self._each = each
        self._every_s = every_s
        self._ends: list[_End] = []
        self._stack = ExitStack()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flows", daemon=True)
        self._errors: list[str] = []
        self._last_s = 0.0
        self._silence_s = 0.0

    def __enter__(self) -> Flows:
        with ExitStack() as stack:
            for number in range(self._each):
                self._open(stack, number, _TCP)
                self._open(stack, self._each + number, _UDP)
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with self._stack:
            self._thread.join()

    def _open(self, stack: ExitStack, number: int, kind: int) -> None:
        version = 4 if number % 2 else 6
        family, index = FAMILIES[version], 0 if version == 4 else 1
        type_ = socket.SOCK_STREAM if kind == _TCP else socket.SOCK_DGRAM
        one, other = (stack.enter_context(netns.open_socket(pod.netns_path, family, type_)) for pod in self._pods)
        for end, pod in ((one, self._pods[0]), (other, self._pods[1])):
            end.bind((str(pod.addresses[index]), 0))
        if kind == _TCP:
            other.listen(1)
            one.settimeout(_CONNECT_S)
            one.connect(other.getsockname())
            listening, other = other, stack.enter_context(other.accept()[0])
            listening.close()
            for end in (one, other):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            one.connect(other.getsockname())
            other.connect(one.getsockname())
        for side, end in enumerate((one, other)):
            end.setblocking(False)
            self._ends.append(_End(number, side, kind, end))

    # The thread

    def _run(self) -> None:
        poll = select.epoll()
        by_fd = {end.socket.fileno(): end for end in self._ends}
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        gap_s = self._every_s / len(self._ends)
        due_s = self._last_s = time.monotonic()
        turn, quiet_s = 0, 0.0
        while True:
            now_s = time.monotonic()
            if self._stopping.is_set():
                # Retransmissions of a flow that lost something may take a while; what UDP has lost does not come.
                done = all(
                    end.seen.total() >= self._ends[at ^ 1].sent for at, end in enumerate(self._ends) if end.kind == _TCP
                )
                quiet_s = quiet_s or now_s
                if (done and now_s > quiet_s + 0.5) or now_s > quiet_s + 15:
                    break
            else:
                while due_s <= now_s:
                    self._send(self._ends[turn % len(self._ends)])
                    turn, due_s = turn + 1, due_s + gap_s
            for fd, _ in poll.poll(max(0.001, min(0.05, due_s - now_s))):
                self._receive(by_fd[fd], poll)
            for end in self._ends if self._stopping.is_set() else ():
                self._flush(end)
        poll.close()

    def _send(self, end: _End) -> None:
        message = _MESSAGE.pack(end.flow, end.side, end.kind, end.sent)
        try:
            if end.kind == _UDP:
                end.socket.send(message)
            else:
                end.unsent += message
                self._flush(end)
            end.sent += 1
        except OSError as error:
            self._errors.append(f"flow {end.flow}, side {end.side}: {error}")

    def _flush(self, end: _End) -> None:
        try:
            if end.unsent:
                end.unsent = end.unsent[end.socket.send(end.unsent) :]
        except BlockingIOError:
            pass

    def _receive(self, end: _End, poll: select.epoll) -> None:
        try:
            data = end.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            self._errors.append(f"flow {end.flow}, side {end.side}: {error}")
        if not data:
            poll.unregister(end.socket.fileno())
            self._errors.append(f"flow {end.flow}, side {end.side} ended")
            return
        now_s = time.monotonic()
        if not self._stopping.is_set():
            self._silence_s = max(self._silence_s, now_s - self._last_s)
        self._last_s = now_s
        end.unread += data
        while len(end.unread) >= _MESSAGE.size:
            flow, side, kind, number = _MESSAGE.unpack_from(end.unread)
            end.unread = end.unread[_MESSAGE.size :]
            if (flow, side, kind) != (end.flow, 1 - end.side, end.kind):
                self._errors.append(f"flow {end.flow} got a message of flow {flow}")
            end.seen[number] += 1
            end.disorder += number < end.last
            end.last = max(end.last, number)

    @property
    def silence_s(self) -> float:
        """The longest so far between any two messages, of all flows together."""
        return self._silence_s

    def forget_silence(self) -> None:
        """Begin to measure it anew."""
        self._silence_s = 0.0

    def finish(self) -> Outcome:
        """End all flows and count. AssertionError when one broke, or a message was another's."""
        self._stopping.set()
        self._thread.join()
        assert self._errors == []
        lost, doubled, retransmitted = [], [], 0
        for at, end in enumerate(self._ends):
            sender = self._ends[at ^ 1]
            name = f"{'tcp' if end.kind == _TCP else 'udp'} flow {end.flow} to side {end.side}"
            lost += [f"{name}: {number} of {sender.sent}" for number in range(sender.sent) if not end.seen[number]]
            doubled += [f"{name}: {number}" for number, times in end.seen.items() if times > 1]
            if end.kind == _TCP:
                # struct tcp_info, linux/tcp.h: tcpi_total_retrans
                info = end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                retransmitted += struct.unpack_from("=I", info, 100)[0]
        return Outcome(
            sum(end.sent for end in self._ends),
            tuple(lost),
            tuple(doubled),
            sum(end.disorder for end in self._ends),
            self._silence_s,
            retransmitted,
        )
