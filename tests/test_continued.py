"""An engine goes on counting where another's process ended."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from router.engine.interface import EngineCounters, Snapshot
from router.model import Attachment, AttachmentKey, DropReason, Endpoint, NextHop, Tally
from router.table import ForwardingTable
from router.takeover.continued import ContinuedEngine

_POD, _OTHER = AttachmentKey("pod", "eth0"), AttachmentKey("other", "eth0")
_HOPS = tuple(NextHop(f"n{number}", Endpoint(ip_address(f"192.0.2.{number}"), 6081)) for number in (1, 2))
_SNAPSHOT = Snapshot(1, ForwardingTable([(ip_network("10.42.1.0/24"), _HOPS[0])]), _HOPS)


class Engine:
    """Counts what it is told to; everything else of the contract is somebody else's test."""

    name = "memory"

    def __init__(self) -> None:
        self.now = EngineCounters({}, {}, Tally(), Tally())

    def counters(self) -> EngineCounters:
        return self.now

    def detach(self, key: AttachmentKey) -> Tally:
        left = dict(self.now.attachments)
        tally = left.pop(key)
        self.now = replace(self.now, attachments=left, gone=self.now.gone.plus(tally))
        return tally

    def replace_routes(self, snapshot: Snapshot) -> None:
        peers = {hop.endpoint: self.now.peers.get(hop.endpoint, Tally()) for hop in snapshot.peers}
        gone = self.now.gone
        for endpoint, tally in self.now.peers.items():
            gone = gone if endpoint in peers else gone.plus(tally)
        self.now = replace(self.now, peers=peers, gone=gone)

    def attach(self, attachment: Attachment, _fd: int) -> None:
        self.now = replace(self.now, attachments={**self.now.attachments, attachment.key: Tally()})


def counted(packets: int) -> Tally:
    return Tally(packets, delivered_packets=packets - 1, dropped={DropReason.TOO_BIG: 1})


def continued() -> tuple[Engine, ContinuedEngine]:
    engine = Engine()
    peers = {hop.endpoint: counted(3) for hop in _HOPS}
    engine.now = EngineCounters({_POD: counted(2)}, peers, counted(4), counted(5), 1, 7, 2, (1, 1))
    made = ContinuedEngine(engine, _SNAPSHOT)  # type: ignore[arg-type]
    before = EngineCounters(
        {_POD: counted(20), _OTHER: counted(30)}, {_HOPS[0].endpoint: counted(40)}, counted(50), counted(60), 10, 20, 30, (5, 6)
    )  # fmt: skip
    made.go_on_from(before, same_socket=True)
    return engine, made


def total(found: EngineCounters) -> int:
    tallies = (*found.attachments.values(), *found.peers.values(), found.strangers, found.gone)
    assert all(tally.balance == 0 for tally in tallies)
    return sum(tally.received_packets for tally in tallies)


def test_every_count_goes_on() -> None:
    _, made = continued()
    found = made.counters()
    assert found.attachments == {_POD: counted(2).plus(counted(20))}
    assert found.peers[_HOPS[0].endpoint].received_packets == 43
    assert found.peers[_HOPS[1].endpoint].received_packets == 3
    assert found.strangers.received_packets == 54
    assert found.gone.received_packets == 5 + 60 + 30, "what is not here any more is gone"
    assert (found.icmp_suppressed, found.restarts, found.batches) == (11, 32, (6, 7))
    assert found.socket_drops == 7, "the kernel's own count came along with the socket"


def test_with_another_socket_the_kernel_counts_anew() -> None:
    _, made = continued()
    made.go_on_from(EngineCounters({}, {}, Tally(), Tally(), socket_drops=20), same_socket=False)
    assert made.counters().socket_drops == 27


def test_who_leaves_takes_all_its_counts_along_and_does_not_get_them_back() -> None:
    engine, made = continued()
    before = total(made.counters())
    assert made.detach(_POD).received_packets == 22
    assert total(made.counters()) == before
    made.attach(Attachment(_POD, "/proc/self/ns/net", (), 1400), 0)
    found = made.counters()
    assert found.attachments == {_POD: Tally()}
    assert total(found) == before
    assert engine.now.attachments == {_POD: Tally()}


def test_a_peer_is_node_and_endpoint() -> None:
    _, made = continued()
    before = total(made.counters())
    for peers in (_HOPS[1:], _HOPS, (replace(_HOPS[0], node="n9"), _HOPS[1])):
        made.replace_routes(replace(_SNAPSHOT, peers=tuple(peers)))
        assert total(made.counters()) == before
    assert made.counters().peers[_HOPS[0].endpoint].received_packets == 0


def test_a_peer_whose_endpoint_is_another_nodes_now_is_another() -> None:
    _, made = continued()
    made.replace_routes(replace(_SNAPSHOT, peers=(replace(_HOPS[0], node="n9"), _HOPS[1])))
    assert made.counters().gone.received_packets == 5 + 60 + 30 + 40
