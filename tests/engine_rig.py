"""A node without namespaces: an engine whose TUNs are socket pairs and whose underlay is loopback.

Every rig checks, whatever the test was about, that all packets are accounted for and that no count ever went down.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from types import TracebackType
from typing import Any, Self

from router.engine.choose import choose
from router.engine.interface import EngineCounters, EngineSettings, Snapshot
from router.engine.python import PythonEngine
from router.kernel.underlay import open_underlay
from router.model import (
    NO_LIMITS,
    NODE_KEY,
    Attachment,
    AttachmentKey,
    Endpoint,
    Limits,
    Node,
    Offloads,
    SubnetTable,
    Tally,
)
from router.routes import Found, snapshot
from tests.packets import PLAIN_VNET, packets_of

DEADLINE_S = 10.0
NETWORKS = (ip_network("10.42.0.0/16"), ip_network("fd42::/16"))
VNI = 7
MOST_BYTES = 10 + 65535


def node(number: int, endpoint: Endpoint, offload: bool = True) -> Node:
    """Return node `number`, which owns 10.42.number.0/24 and fd42:number::/64."""
    subnets = (ip_network(f"10.42.{number}.0/24"), ip_network(f"fd42:{number}::/64"))
    return Node(f"node{number}", endpoint, subnets, offload)


def key(name: str) -> AttachmentKey:
    return AttachmentKey(name, "eth0")


def underlay(address: str = "127.0.0.1", offloads: Offloads | None = None) -> socket.socket:
    return open_underlay(Endpoint(ip_address(address), 0), offloads or Offloads())


def endpoint_of(sock: socket.socket) -> Endpoint:
    host, port = sock.getsockname()[:2]
    return Endpoint(ip_address(host), port)


def until(done: Callable[[], object], what: str) -> None:
    """Poll until `done`, or fail saying what did not happen."""
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, f"still not after {DEADLINE_S} s: {what}"
        time.sleep(0.001)


@dataclass
class Told:
    """The daemon an engine works for: remembers what it was told."""

    path_mtu_bytes: int = 1500
    lost: list[tuple[AttachmentKey, str]] = field(default_factory=list)
    offloads: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    answers: list[tuple[Endpoint, bytes, int]] = field(default_factory=list)
    questions: list[tuple[Endpoint, bytes, int]] = field(default_factory=list)

    def path_mtu(self, endpoint: Endpoint) -> int:
        return self.path_mtu_bytes

    def attachment_lost(self, key: AttachmentKey, why: str) -> None:
        self.lost.append((key, why))

    def offload_failed(self, feature: str, why: str) -> None:
        self.offloads.append((feature, why))

    def probe_answered(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> None:
        self.answers.append((endpoint, answer, received_ns))

    def question_came(self, endpoint: Endpoint, datagram: bytes, received_ns: int) -> None:
        self.questions.append((endpoint, datagram, received_ns))

    def engine_failed(self, why: str) -> None:
        self.failures.append(why)


class Tap:
    """The kernel's side of an attachment: what a Pod's stack would send and receive."""

    def __init__(self, rig: Rig, attachment: Attachment) -> None:
        self.attachment = attachment
        self._rig = rig
        self.end, self.fd = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.end, self.fd):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            sock.setblocking(False)

    def send(self, frame: bytes) -> None:
        self.end.send(frame)

    def send_packet(self, packet: bytes) -> None:
        self.end.send(PLAIN_VNET + packet)

    def frames(self) -> list[bytes]:
        """Return the frames that wait here now."""
        found = []
        while True:
            try:
                frame = self.end.recv(MOST_BYTES)
            except BlockingIOError:
                return found
            if not frame:
                return found
            found.append(frame)

    def packets(self, count: int) -> list[bytes]:
        """Forward until the frames received stand for that many packets; return those, checksums finished."""
        return [packet for frame in self.frames_of(count) for packet in packets_of(frame)]

    def frames_of(self, packets: int) -> list[bytes]:
        """Forward until the frames received stand for that many packets."""
        found: list[bytes] = []

        def enough() -> bool:
            self._rig.pump()
            found.extend(self.frames())
            return sum(len(packets_of(frame)) for frame in found) >= packets

        until(enough, f"{packets} packets at {self.attachment.key}, only {[frame[:70].hex() for frame in found]} came")
        assert sum(len(packets_of(frame)) for frame in found) == packets
        return found

    def close(self) -> None:
        self.end.close()
        self.fd.close()


class Rig:
    """One engine with its taps and socket. A context manager; leaving it checks the accounts."""

    def __init__(
        self,
        engine_name: str,
        number: int = 1,
        offloads: Offloads | None = None,
        address: str = "127.0.0.1",
        **settings: int,
    ) -> None:
        self._closing = ExitStack()
        self.number = number
        self.told = Told()
        self.offloads = offloads or Offloads()
        self.socket = self._closing.enter_context(underlay(address, self.offloads))
        self.own = node(number, endpoint_of(self.socket))
        self.table = SubnetTable(1, (self.own,))
        self.egress = True
        self.epoch = 0
        self.known: dict[str, dict[str, Any]] = {}
        """What is known of peers by name: `epoch` and `offload` of their rows, `up` and `mtu_bytes` found by probes."""
        self.taps: dict[AttachmentKey, Tap] = {}
        self.also: list[Rig] = []
        """Other nodes that `pump` keeps going."""
        self.started = False
        self.expected_failures = 0
        self._floor: dict[str, int] = {}
        self.settings = EngineSettings(vni=VNI, offloads=self.offloads, **settings)
        _, factory = choose(engine_name)
        self.engine = factory(self.settings, self.snapshot(), self.socket, self.told)

    def snapshot(self) -> Snapshot:
        rows, found = [], {}
        for row in self.table.nodes:
            fields = {"epoch": self.epoch} if row.name == self.own.name else dict(self.known.get(row.name, {}))
            found[row.name] = Found(fields.pop("up", True), fields.pop("mtu_bytes", 0))
            rows.append(replace(row, **fields))
        table = SubnetTable(self.table.version, tuple(rows))
        return snapshot(table, self.own.name, NETWORKS, self.egress, found)

    def learn(self, name: str, **fields: Any) -> None:
        """Know something else of a peer: a new snapshot of the same table."""
        self.known[name] = self.known.get(name, {}) | fields
        self.engine.replace_routes(self.snapshot())

    def renew(self, epoch: int) -> None:
        """Begin an epoch of this node's own."""
        self.epoch = epoch
        self.engine.replace_routes(self.snapshot())

    def know(self, others: Iterable[Node], egress: bool = True) -> None:
        """Replace the table: this node and those."""
        self.table = SubnetTable(self.table.version + 1, (self.own, *others))
        self.egress = egress
        self.engine.replace_routes(self.snapshot())

    def pod(self, name: str, host: int, mtu_bytes: int = 1452, limits: Limits = NO_LIMITS) -> Tap:
        """Attach a Pod with address .host and ::host of this node's subnets."""
        return self.attach(key(name), host, mtu_bytes, limits)

    def node_pod(self, mtu_bytes: int = 1452) -> Tap:
        """Attach the node itself."""
        return self.attach(NODE_KEY, 1, mtu_bytes)

    def attach(self, key: AttachmentKey, host: int, mtu_bytes: int = 1452, limits: Limits = NO_LIMITS) -> Tap:
        addresses = tuple(
            ip_interface(f"{text}/{length}")
            for text, length in ((f"10.42.{self.number}.{host}", 24), (f"fd42:{self.number}::{host:x}", 64))
        )
        tap = Tap(self, Attachment(key, "/run/netns/none", addresses, mtu_bytes, limits=limits))
        self.engine.attach(tap.attachment, tap.fd.fileno())
        self.taps[key] = tap
        return tap

    def detach(self, key: AttachmentKey) -> Tally:
        tally = self.engine.detach(key)
        self.taps.pop(key).close()
        return tally

    def pump(self) -> None:
        """Forward whatever waits, here and at the others."""
        for rig in (self, *self.also):
            if not rig.started:
                while rig.engine.forward(64):
                    pass

    def start(self) -> None:
        self.engine.start()
        self.started = True

    def stop(self) -> None:
        if self.started:
            self.engine.stop()
            self.started = False

    def sabotage(self) -> None:
        """Let the next frame read from a tap meet a bug, once; the rig expects to be told of it."""
        self.expected_failures += 1
        if isinstance(self.engine, PythonEngine):
            egress = self.engine._egress

            def stumble(*_: object) -> int:
                del egress._forward
                raise RuntimeError("asked for by a test")

            egress._forward = stumble
        else:
            self.engine.sabotage()

    def counters(self) -> EngineCounters:
        """Return the counters, and check that every source balances and that nothing counted was taken back."""
        counted = self.engine.counters()
        tallies = {str(each): tally for each, tally in (*counted.attachments.items(), *counted.peers.items())}
        tallies |= {"strangers": counted.strangers, "gone": counted.gone}
        for name, tally in tallies.items():
            assert tally.balance == 0, f"{name}: {tally}"
        total = Tally()
        for tally in tallies.values():
            total = total.plus(tally)
        counts = {f"{index}": count for index, count in enumerate(astuple(total)) if isinstance(count, int)}
        counts |= {reason.value: count for reason, count in total.dropped.items()}
        for what, least in self._floor.items():
            assert counts.get(what, 0) >= least, f"{what} went down"
        self._floor = counts
        return counted

    def tally(self, who: AttachmentKey | Endpoint) -> Tally:
        counted = self.counters()
        return counted.attachments[who] if isinstance(who, AttachmentKey) else counted.peers[who]

    def drops(self, who: AttachmentKey | Endpoint) -> dict[str, int]:
        return {reason.value: count for reason, count in self.tally(who).dropped.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
            if error is None:
                self.counters()
                assert len(self.told.failures) == self.expected_failures, self.told.failures
        finally:
            getattr(self.engine, "close", lambda: None)()
            for tap in self.taps.values():
                tap.close()
            self._closing.close()


def pair(first: Rig, second: Rig) -> None:
    """Make two nodes know each other."""
    first.know((second.own,))
    second.know((first.own,))
    first.also.append(second)
    second.also.append(first)
