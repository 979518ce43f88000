"""What is on the wire between two nodes, as tshark, which is not ours, reads it."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.lab import Lab
from shim.lab.ledger import write_whole
from shim.lab.node import LabNode
from tests.accounts import counters, eventually
from tests.capture import capturing, decode, undo_offloads
from tests.echo import Echo, ask_tcp, ask_udp, connect

pytestmark = pytest.mark.netns

_UDP_SEGMENT = 103  # linux/udp.h
_ERROR = "_ws.malformed || _ws.expert.severity == 8388608"
_PACKETS, _PROBES = "geneve.flags.oam == 0", "geneve.flags.oam == 1"
_GOOD = "1"
_OVERLAY_MTU_BYTES = 1452


@pytest.fixture(scope="module")
def wire(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(nodes=2, pods=2)
    for node in made.nodes:
        undo_offloads(node)
    return made


def talk(lab: Lab) -> None:
    """Bulk TCP, datagrams of many sizes one by one and in trains, pings and fragments, both families."""
    source, target = lab.pods[0], lab.pods[2]
    random_bytes = random.Random(3)
    with Echo([target]):
        for address in target.addresses:
            with connect(source, address, socket.SOCK_STREAM) as asker:
                payload = random_bytes.randbytes(1 << 20)
                assert ask_tcp(asker, payload) == payload
            with connect(source, address, socket.SOCK_DGRAM) as asker:
                for size in (0, 1, 64, 1000, 1404, 1424, 5000):
                    assert len(ask_udp(asker, random_bytes.randbytes(size))) == size
                payload = random_bytes.randbytes(20 * 1000 + 3)
                asker.sendmsg([payload], [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", 1000))])
                assert sum(len(asker.recv(1 << 16)) for _ in range(21)) == len(payload)
            for size in ("0", "56", "1404", "4000"):
                done = source.run(["ping", "-n", "-c", "1", "-W", "3", "-s", size, str(address)])
                assert done.returncode == 0, done.stdout
            source.run(["traceroute", "-n", "-q", "1", "-m", "3", str(address)])


@pytest.fixture(scope="module")
def recorded(wire: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixed traffic between two routers that both know the option."""
    file = tmp_path_factory.mktemp("wire") / "offload.pcapng"
    with capturing(wire.nodes[0], file):
        talk(wire)
    return file


def test_every_packet_is_geneve_with_one_whole_inner_packet(recorded: Path) -> None:
    fields = ["udp.dstport", "geneve.vni", "geneve.proto_type", "geneve.option.class", "ip.version", "ipv6.version", "ip.len", "ipv6.plen", "udp.length"]  # fmt: skip
    packets = decode(recorded, fields, shown=_PACKETS)
    assert len(packets) > 3000  # 4 MB both ways, in packets of 1452: trains were split
    inner = Counter()  # type: ignore[var-annotated]
    for packet in packets:
        assert packet["udp.dstport"][0] == "6081"
        assert [int(vni, 16) for vni in packet["geneve.vni"]] == [1]
        assert packet["geneve.option.class"] in ([], ["0xffff"])
        (kind,) = packet["geneve.proto_type"]
        payload_bytes = int(packet["udp.length"][0]) - 8 - (20 if packet["geneve.option.class"] else 8)
        if kind == "0x0800":
            assert packet["ip.version"][:2] == ["4", "4"]
            assert int(packet["ip.len"][1]) == payload_bytes <= _OVERLAY_MTU_BYTES
        else:
            assert kind == "0x86dd"
            assert packet["ipv6.version"][:1] == ["6"]
            assert int(packet["ipv6.plen"][0]) + 40 == payload_bytes <= _OVERLAY_MTU_BYTES
        inner[kind] += 1
    assert min(inner["0x0800"], inner["0x86dd"]) > 1000


def test_nothing_is_malformed_and_ip_checksums_are_good(recorded: Path) -> None:
    assert decode(recorded, ["frame.number", "_ws.expert.message"], shown=_ERROR, checks=["ip"]) == []
    statuses = Counter(
        status
        for row in decode(recorded, ["ip.checksum.status"], checks=["ip"])
        for status in row["ip.checksum.status"]
    )
    assert set(statuses) == {_GOOD}


def test_the_outer_checksum_is_on_and_good(recorded: Path) -> None:
    rows = decode(recorded, ["udp.checksum", "udp.checksum.status"], checks=["udp"])
    assert {row["udp.checksum.status"][0] for row in rows} == {_GOOD}
    # One in 65536 sums is 0 and sent as 0xffff: none is left out, which would be 0.
    assert all(int(row["udp.checksum"][0], 16) for row in rows)


def test_a_partial_checksum_is_always_announced(recorded: Path) -> None:
    """Also shows that the filter for errors sees one: tshark takes an unfinished checksum for a bad one."""
    checks = ["ip", "udp", "tcp"]
    # ICMP errors quote a packet as it was, its checksum unfinished too: as kernels do, and nobody checks it.
    shown = f"({_ERROR}) && !icmp && !icmpv6"
    bad = decode(recorded, ["geneve.option.class", "geneve.option.unknown.data"], shown=shown, checks=checks)
    assert bad
    flags = [
        int(row["geneve.option.unknown.data"][0][:2], 16) for row in bad if row["geneve.option.class"] == ["0xffff"]
    ]
    assert len(flags) == len(bad)
    assert all(flag & 1 for flag in flags)


def test_probes_are_asked_and_answered_as_drawn(wire: Lab, tmp_path: Path) -> None:
    """Between quiet routers, as router/wire/probe.py draws them: kind, size, sequence, and when it was asked."""
    file = tmp_path / "probes.pcapng"

    def probed(node: LabNode) -> int:
        return sum(peer.tally.control_packets for peer in counters(node).peers)

    with capturing(wire.nodes[0], file):
        enough = {node.name: probed(node) + 12 for node in wire.nodes}
        eventually(lambda: all(probed(node) >= enough[node.name] for node in wire.nodes), 20, "probes both ways")
    assert decode(file, ["frame.number", "_ws.expert.message"], shown=_ERROR, checks=["ip", "udp"]) == []
    fields = ["ip.src", "ip.dst", "udp.length", "geneve.vni", "geneve.proto_type", "geneve.option.class", "geneve.option.type", "geneve.option.unknown.data"]  # fmt: skip
    asked, answered = set(), 0
    for row in decode(file, fields, shown=_PROBES):
        source, target, udp_length, vni, kind, option_class, option, data = (cell for (cell,) in map(row.get, fields))
        assert [int(each, 0) for each in (vni, kind, option_class)] == [1, 0, 0xFFFF]
        assert int(option, 0) & 0x7F == 2
        what, _, size, sequence, sent_ns = struct.unpack(">BBHIQ", bytes.fromhex(data.replace(":", "")))
        if what == 1:
            assert int(udp_length) - 8 == size
            asked.add((source, size, sequence, sent_ns))
        else:
            assert (what, int(udp_length) - 8) == (2, 28)
            answered += (target, size, sequence, sent_ns) in asked
    assert answered >= 8
    assert {28, 20 + _OVERLAY_MTU_BYTES} <= {size for _, size, _, _ in asked}


@pytest.fixture
def plain(wire: Lab) -> Iterator[Lab]:
    """The lab with a table that says of every router that it does not know the option."""

    def offloading(node: LabNode) -> set[bool]:
        with node.client() as client:
            return {row.offload for row in client.subnets().nodes}

    content = wire.nodes[0].subnets_path.read_text()
    for node in wire.nodes:
        write_whole(node.subnets_path, content.replace("[[node]]", "[[node]]\noffload = false"))
    for node in wire.nodes:
        eventually(lambda node=node: offloading(node) == {False})  # type: ignore[misc]
    yield wire
    for node in wire.nodes:
        write_whole(node.subnets_path, content)
        eventually(lambda node=node: offloading(node) == {True})  # type: ignore[misc]


def test_a_plain_peer_gets_finished_checksums(plain: Lab, tmp_path: Path) -> None:
    file = tmp_path / "plain.pcapng"
    with capturing(plain.nodes[0], file):
        talk(plain)
    assert decode(file, ["frame.number", "_ws.expert.message"], shown=_ERROR, checks=["ip", "udp", "tcp"]) == []
    fields = ["geneve.option.class", "udp.checksum.status", "tcp.checksum.status", "icmpv6.checksum.status", "ipv6.nxt"]
    rows = decode(file, fields, shown=_PACKETS, checks=["ip", "udp", "tcp"])
    assert len(rows) > 3000
    found = Counter()  # type: ignore[var-annotated]
    for row in rows:
        assert row["geneve.option.class"] == []
        assert row["udp.checksum.status"][0] == _GOOD
        for field in fields[1:4]:
            found.update((field, status) for status in row[field])
    assert found["tcp.checksum.status", _GOOD] > 2000
    # Of a fragment tshark cannot tell before it has the rest: 2 is "unverified", 0 is "bad".
    assert not [key for key in found if key[1] == "0"]
