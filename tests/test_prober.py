"""The prober over real sockets, against peers that answer as a data path does, or do not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from router.model import Endpoint, Node
from router.peers.health import PeerState
from router.peers.prober import Change, Prober
from router.wire import probe
from router.wire.geneve import HEADER_BYTES

VNI, MOST, LEAST = 7, 1452, 1280
DEADLINE_S = 20.0


class Peer:
    """Answers probes at an address of its own while `answers` says so, up to a size."""

    def __init__(self, host: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((f"127.0.0.{host}", 0))
        self.endpoint = Endpoint(ip_address(f"127.0.0.{host}"), self.socket.getsockname()[1])
        self.node = Node(f"n{host}", self.endpoint, ())
        self.answers = True
        self.most_bytes = 65535
        self.asked = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            datagram, sender = self.socket.recvfrom(65535)
            if not datagram:
                return
            request = probe.decode(datagram, 0, len(datagram))
            assert request is not None
            assert request.kind == probe.REQUEST
            self.asked += 1
            if self.answers and len(datagram) <= self.most_bytes:
                self.socket.sendto(probe.encode(VNI, request._replace(kind=probe.ANSWER)), sender)

    def close(self) -> None:
        self.socket.sendto(b"", self.socket.getsockname())
        self._thread.join()
        self.socket.close()


class Rig:
    """A prober with a socket, the part of an engine that hands answers over, and what it told."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.changes: list[Change] = []
        self.heard: dict[Endpoint, int] = {}
        self.prober = Prober(
            self.socket,
            VNI,
            MOST,
            LEAST,
            heard=lambda endpoint: self.heard.get(endpoint, 0),
            path_mtu_bytes=lambda _: MOST,
            changed=self.changes.extend,
        )
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()
        self.prober.start()

    def _receive(self) -> None:
        while True:
            datagram, (host, port) = self.socket.recvfrom(65535)
            if not datagram:
                return
            self.prober.take(Endpoint(ip_address(host), port), datagram, time.monotonic_ns())

    def until(self, fulfilled: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not fulfilled():
            assert time.monotonic() < deadline_s, f"{self.changes} {self.prober.reports()}"
            time.sleep(0.01)

    def state(self, peer: Peer) -> PeerState:
        return self.prober.reports()[peer.node.name].state

    def close(self) -> None:
        self.prober.stop()
        self.socket.sendto(b"", self.socket.getsockname())
        self._receiver.join()
        self.socket.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made = [Peer(host) for host in (2, 3)]
    yield made
    for peer in made:
        peer.close()


def test_peers_come_up_go_down_and_come_back(rig: Rig, peers: list[Peer]) -> None:
    one, two = peers
    rig.prober.watch([peer.node for peer in peers])
    rig.until(lambda: all(rig.state(peer) is PeerState.UP for peer in peers))
    report = rig.prober.reports()["n2"]
    assert report.rtt_s is not None
    assert 0 < report.rtt_s < DEADLINE_S
    rig.until(lambda: rig.prober.reports()["n2"].mtu_bytes == MOST)
    assert rig.prober.found() == {"n2": (True, 0), "n3": (True, 0)}
    two.answers = False
    rig.until(lambda: rig.state(two) is PeerState.DOWN)
    assert rig.state(one) is PeerState.UP
    assert rig.prober.found()["n3"][0] is False
    assert "has not answered" in rig.prober.reports()["n3"].why
    two.answers = True
    rig.until(lambda: rig.state(two) is PeerState.UP)
    flips = [(change.name, change.state) for change in rig.changes if change.flipped]
    assert flips == [("n3", PeerState.DOWN), ("n3", PeerState.UP)]


def test_a_smaller_path_is_found_and_told(rig: Rig, peers: list[Peer]) -> None:
    peers[0].most_bytes = 1400 + HEADER_BYTES
    rig.prober.watch([peers[0].node])
    rig.until(lambda: 1396 <= rig.prober.reports()["n2"].mtu_bytes < MOST)
    mtu_bytes = rig.prober.reports()["n2"].mtu_bytes
    assert 1396 <= mtu_bytes <= 1400
    assert rig.prober.found()["n2"] == (True, mtu_bytes)
    rig.until(lambda: bool(rig.changes))
    assert not any(change.flipped for change in rig.changes)


def test_who_leaves_is_asked_no_more_and_who_moves_anew(rig: Rig, peers: list[Peer]) -> None:
    one, two = peers
    rig.prober.watch([one.node])
    rig.until(lambda: rig.state(one) is PeerState.UP)
    rig.prober.watch([Node("n2", two.endpoint, ())])
    rig.until(lambda: two.asked > 0 and rig.prober.reports()["n2"].state is PeerState.UP)
    asked = one.asked
    rig.prober.watch([])
    assert rig.prober.reports() == {}
    rig.prober.watch([two.node])
    before = two.asked
    rig.until(lambda: two.asked > before + 2)
    assert one.asked == asked


def test_two_that_exchange_their_endpoints_are_both_asked_anew(rig: Rig, peers: list[Peer]) -> None:
    one, two = peers
    rig.prober.watch([one.node, two.node])
    rig.until(lambda: all(rig.state(peer) is PeerState.UP for peer in peers))
    rig.prober.watch([Node("n2", two.endpoint, ()), Node("n3", one.endpoint, ())])
    assert rig.state(one) is PeerState.UNKNOWN
    rig.until(lambda: all(rig.state(peer) is PeerState.UP for peer in peers))


def test_who_does_not_know_our_option_is_not_asked(rig: Rig, peers: list[Peer]) -> None:
    one, two = peers
    rig.prober.watch([Node("plain", one.endpoint, (), offload=False), two.node])
    rig.until(lambda: two.asked > 1)
    assert one.asked == 0
    assert list(rig.prober.found()) == ["n3"]


def test_hostile_answers_change_nothing(rig: Rig, peers: list[Peer]) -> None:
    peers[0].answers = False
    rig.prober.watch([peers[0].node])
    rig.until(lambda: peers[0].asked > 0)
    good = probe.encode(VNI, probe.Probe(probe.ANSWER, probe.HEADER_BYTES, 2**32 - 1, 2**64 - 1))
    for answer in (b"", b"\0" * 28, good[:-1], good + b"x", good):
        rig.prober.take(peers[0].endpoint, answer, time.monotonic_ns())
    rig.prober.take(peers[1].endpoint, good, time.monotonic_ns())
    asked = peers[0].asked
    rig.until(lambda: peers[0].asked > asked)
    assert rig.state(peers[0]) is PeerState.UNKNOWN
