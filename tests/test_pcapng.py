"""Captures as files: what Wireshark's own tools read in what is written here, and what the client makes of it."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from router.engine.interface import Side, Sighting, Source
from router.model import AttachmentKey, DropReason, Endpoint, VerdictKind
from router.observe import pcapng, recording
from router.observe.pcapng import Direction
from router.observe.recording import MOST_INTERFACES, Recording
from shim.observe import packet as packets
from shim.observe.pcapng import Capture
from tests.capture import decode
from tests.packets import TCP, UDP, finished, ip, tcp, udp
from tests.peer import geneve

HERE = Endpoint(ip_address("192.0.2.1"))
WEB = AttachmentKey("sandbox-1", "eth0")
PEER = Endpoint(ip_address("192.0.2.2"))
PEER6 = Endpoint(ip_address("2001:db8::2"), 7000)
TIME_NS = 1_790_000_000_123_456_789
SYN = 2

V4 = finished(ip("10.42.1.2", "10.42.2.2", TCP, tcp(b"hello", flags=SYN)), TCP)
V6 = finished(ip("fd42:1::2", "fd42:2::2", UDP, udp(b"hello")), UDP)
SUPER = ip("10.42.1.2", "10.42.2.2", TCP, tcp(b"x" * 60_000))


def naming() -> Callable[[Source], str]:
    names: dict[Source, str] = {WEB: "default/web-1", PEER: "node-2", PEER6: "node-3"}
    return lambda source: (
        names.get(source) or (f"a stranger ({source})" if isinstance(source, Endpoint) else str(source))
    )


def sighting(packet: bytes, **other: object) -> Sighting:
    seen = Sighting(1, TIME_NS, Side.BEFORE, WEB, PEER, VerdictKind.TUNNEL, None, 1, len(packet), packet)
    return replace(seen, **other)  # type: ignore[arg-type]


def written(seen: Sequence[Sighting], here: Endpoint = HERE, snap_bytes: int = 0xFFFF, lost: int = 0) -> bytes:
    made = Recording(naming, here, snap_bytes)
    return made.head() + b"".join(made.chunks(seen)) + made.tail(lost)


FIELDS = (
    "frame.time_epoch", "frame.interface_name", "frame.comment", "frame.packet_flags_direction", "frame.len",
    "frame.cap_len", "frame.protocols", "ip.src", "ipv6.src", "tcp.len",
)  # fmt: skip


def test_tshark_reads_both_sides_and_what_became_of_each(tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    seen = [
        sighting(V4),
        sighting(V4, side=Side.AFTER, time_ns=TIME_NS + 1),
        sighting(V6, target=PEER6),
        sighting(V6, side=Side.AFTER, source=PEER6, target=WEB, verdict=VerdictKind.LOCAL),
        sighting(SUPER, packets=42),
        sighting(V4, target=None, verdict=VerdictKind.REJECT, reason=DropReason.TTL_EXPIRED),
        sighting(V6, target=None, verdict=VerdictKind.DROP, reason=DropReason.SPOOFED_SOURCE, source=PEER),
        sighting(V4, side=Side.AFTER, source=None, target=WEB, verdict=VerdictKind.LOCAL),
        sighting(SUPER[:100], packets=42, packet_bytes=len(SUPER)),
    ]
    file.write_bytes(written(seen))
    rows = decode(file, FIELDS, checks=("ip", "udp", "tcp"))
    assert [row["frame.interface_name"] for row in rows] == [
        ["default/web-1 before the router"],
        ["node-2 after the router"],
        ["default/web-1 before the router"],
        ["default/web-1 after the router"],
        ["default/web-1 before the router"],
        ["default/web-1 before the router"],
        ["node-2 before the router"],
        ["default/web-1 after the router"],
        ["default/web-1 before the router"],
    ]
    comments = [",".join(row["frame.comment"]) for row in rows]
    assert comments[:5] == [
        "tunnelled to node-2",
        "tunnelled to node-2, from default/web-1",
        "tunnelled to node-3",
        "delivered to default/web-1, from node-3",
        "tunnelled to node-2; stands for 42 packets",
    ]
    assert comments[5].startswith("rejected: ttl_expired (its hop limit")
    assert comments[6].startswith("dropped: spoofed_source (the sender does not hold")
    assert comments[7] == "delivered to default/web-1, made by the router"
    directions = [row["frame.packet_flags_direction"] for row in rows]
    inbound, outbound = directions[0], directions[1]
    assert inbound != outbound
    assert directions == [inbound, outbound, inbound, outbound, inbound, inbound, inbound, outbound, inbound]
    times = [row["frame.time_epoch"][0] for row in rows]
    assert (times[0], times[1]) == ("1790000000.123456789", "1790000000.123456790")
    assert [row["frame.len"] for row in rows[4:5]] == [[str(len(SUPER))]]
    assert (rows[8]["frame.len"], rows[8]["frame.cap_len"]) == ([str(len(SUPER))], ["100"])
    assert rows[0]["frame.protocols"][0].startswith("raw:ip:tcp")
    assert rows[2]["frame.protocols"][0].startswith("raw:ipv6:udp")
    assert rows[4]["tcp.len"] == ["60000"]
    assert (rows[0]["ip.src"], rows[2]["ipv6.src"]) == (["10.42.1.2"], ["fd42:1::2"])


def test_statistics_and_interfaces_are_where_wireshark_looks(tmp_path: Path) -> None:
    file = tmp_path / "x.pcapng"
    file.write_bytes(written([sighting(V4), sighting(V4), sighting(V4, side=Side.AFTER)], snap_bytes=128, lost=17))
    said = subprocess.run(["capinfos", "-M", str(file)], capture_output=True, text=True, check=True).stdout
    assert "Number of interfaces in file: 2" in said
    assert said.count("Encapsulation = Raw IP") == 2
    assert said.count("Capture length = 128") == 2
    assert "Time precision = nanoseconds (9)" in said
    assert "Description = interface sandbox-1/eth0" in said
    assert "Description = router at 192.0.2.2:6081" in said
    assert "Number of stat entries = 1" in said
    assert "Capture application: Podwire" in said or "Capture application: podwire" in said
    packets_of = [line.split("=")[1].strip() for line in said.splitlines() if "Number of packets =" in line]
    assert packets_of == ["2", "1"]


def test_what_a_stranger_sent_is_seen_in_the_datagram_it_must_have_been(tmp_path: Path) -> None:
    datagram = geneve(V4, 7)
    refused = {"target": None, "verdict": VerdictKind.DROP, "reason": DropReason.UNKNOWN_PEER}
    sections = []
    for here, source in ((HERE, "198.51.100.7"), (Endpoint(ip_address("2001:db8::1")), "2001:db8::7")):
        whole = sighting(datagram, source=Endpoint(ip_address(source), 4711), **refused)
        cut = replace(whole, packet=datagram[:30], source=Endpoint(ip_address(source), 4712))
        sections.append(written([whole, cut], here))
    file = tmp_path / "x.pcapng"
    file.write_bytes(b"".join(sections))
    fields = (
        "frame.interface_name", "frame.protocols", "udp.srcport", "udp.dstport", "geneve.vni", "tcp.flags.syn", "frame.len",
        "ip.checksum.status", "udp.checksum.status",
    )  # fmt: skip
    rows = decode(file, fields, checks=("ip", "udp"))
    assert len(rows) == 4
    for row, outer_bytes in zip(rows, (28, 28, 48, 48), strict=True):
        assert row["frame.interface_name"] == ["strangers before the router"], "however many they are"
        assert row["udp.dstport"] == ["6081"]
        assert "geneve" in row["frame.protocols"][0]
        assert row["frame.len"] == [str(outer_bytes + len(datagram))]
    assert [row["udp.srcport"] for row in rows] == [["4711"], ["4712"]] * 2
    for row in (rows[0], rows[2]):
        assert (row["geneve.vni"], row["tcp.flags.syn"]) == (["0x000007"], ["1"])
    assert rows[0]["ip.checksum.status"][0] == "1"
    assert rows[2]["udp.checksum.status"] == ["1"]


def test_outer_header_has_true_checksums() -> None:
    for version, source in ((4, PEER), (6, PEER6)):
        here = HERE if version == 4 else Endpoint(ip_address("2001:db8::1"))
        datagram = geneve(V4, 7)
        whole = recording._outer(source, here, datagram, len(datagram)) + datagram
        known = ip(str(source.address), str(here.address), UDP, udp(datagram, (source.port, here.port)))
        assert len(whole) == len(known)
        if version == 6:
            known = finished(known, UDP)
            assert whole[40:] == known[40:]
        else:
            assert sum(struct.unpack(">10H", whole[:20])) % 0xFFFF == 0


def test_interfaces_are_bounded() -> None:
    made = Recording(naming, HERE, 0xFFFF)
    seen = [
        sighting(V4, source=Endpoint(ip_address(0x0A000000 + n)), reason=DropReason.PEER_DOWN)
        for n in range(MOST_INTERFACES + 100)
    ]
    file = Capture()
    names = {packet.interface for piece in (made.head(), *made.chunks(seen)) for packet in file.take(piece)}
    assert len(names) == MOST_INTERFACES + 1
    assert "others before the router" in names
    assert file.packets == len(seen)


def test_a_pod_that_came_later_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_LEAST_NAMES_AGE_S", 0.0)
    names: dict[Source, str] = {}
    made = Recording(lambda: lambda source: names.get(source, str(source)), HERE, 0xFFFF)
    names[WEB] = "late"
    file = Capture()
    found = [packet for piece in made.chunks([sighting(V4)]) for packet in file.take(piece)]
    assert [packet.interface for packet in found] == ["late before the router"]


@pytest.mark.parametrize("size", range(9))
def test_blocks_are_padded_and_framed(size: int) -> None:
    block = pcapng.packet(0, TIME_NS, bytes(range(size)), 1500, pcapng.packet_options(Direction.OUTBOUND, "ä" * size))
    kind, length = struct.unpack_from("<II", block)
    assert (kind, length % 4, length) == (6, 0, len(block))
    assert struct.unpack_from("<I", block, len(block) - 4) == (length,)
    file = Capture()
    found = list(file.take(pcapng.interface("x", "", 9) + block))
    assert [(each.captured, each.comment, each.packet_bytes, each.time_ns) for each in found] == [
        (bytes(range(size)), "ä" * size, 1500, TIME_NS)
    ]


def test_a_long_text_is_cut_between_characters() -> None:
    block = pcapng.packet(0, 0, b"", 0, pcapng.packet_options(Direction.INBOUND, "€" * 40_000))
    file = Capture()
    (found,) = (each for each in file.take(pcapng.interface("x", "", 9) + block))
    assert found.comment == "€" * (4096 // 3)


def test_the_client_ends_a_file_once(tmp_path: Path) -> None:
    whole = written([sighting(V4), sighting(V6, side=Side.AFTER)], lost=3)
    file = Capture()
    assert len(list(file.take(whole))) == 2
    assert file.end(3) == b"", "the router ended it"
    made = Recording(naming, HERE, 0xFFFF)
    half = made.head() + b"".join(made.chunks([sighting(V4), sighting(V6, side=Side.AFTER)]))
    file = Capture()
    list(file.take(half))
    path = tmp_path / "x.pcapng"
    path.write_bytes(half + file.end(3))
    said = subprocess.run(["capinfos", "-M", str(path)], capture_output=True, text=True, check=True).stdout
    assert said.count("Number of stat entries = 1") == 2
    assert len(decode(path, ("frame.number",))) == 2


@pytest.mark.parametrize("broken", [b"\x06", b"\x06\0\0\0\x08\0\0\0", b"\x06\0\0\0\xff\xff\xff\xff" + bytes(8)])
def test_the_client_refuses_broken_blocks(broken: bytes) -> None:
    with pytest.raises(ValueError, match="block"):
        list(Capture().take(broken))


def test_the_client_refuses_a_packet_of_no_interface() -> None:
    with pytest.raises(ValueError, match="no interface"):
        list(Capture().take(pcapng.packet(3, 0, b"x", 1, b"")))


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (V4, "tcp 10.42.1.2:40000 → 10.42.2.2:50001 [S]"),
        (V6, "udp [fd42:1::2]:40000 → [fd42:2::2]:50001"),
        (ip("10.42.1.2", "10.42.2.2", 1, b"\x08\0\0\0"), "icmp 10.42.1.2 → 10.42.2.2 type 8 code 0"),
        (ip("10.42.1.2", "10.42.2.2", UDP, b"later", df=False, fragment=185), "udp 10.42.1.2 → 10.42.2.2 fragment"),
        (V4[:22], "tcp 10.42.1.2 → 10.42.2.2"),
        (ip("fd42:1::2", "fd42:2::2", 58, b"\x80\0"), "icmp6 fd42:1::2 → fd42:2::2 type 128 code 0"),
    ],
)
def test_the_client_says_a_packet_in_a_line(packet: bytes, said: str) -> None:
    assert " ".join(filter(None, (str(packets.flow(packet)), packets.details(packet)))) == said


def test_the_client_takes_any_bytes_for_a_packet() -> None:
    for size in range(60):
        for first in (0x45, 0x46, 0x4F, 0x40, 0x60, 0x00, 0xFF):
            for protocol in (1, 6, 17, 58):
                cut = (bytes([first]) + bytes(5) + bytes([protocol]) + bytes(2) + bytes([protocol]) + bytes(60))[:size]
                packets.flow(cut)
                packets.details(cut)
