"""ICMP errors: the right one, to the right place, never where the RFCs forbid one, and nothing raises."""

from __future__ import annotations

import random
import struct
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import DropReason
from router.wire.icmp import make_error
from router.wire.packet import checksum, parse_ip, pseudo_sum

NODE = (IPv4Address("10.42.1.1"), IPv6Address("fd42:1::1"))
V4 = ("10.42.1.2", "10.42.2.9")
V6 = ("fd42:1::2", "fd42:2::9")
MTU = 1452


def ipv4(payload: bytes = b"x" * 30, protocol: int = 17, ends: tuple[str, str] = V4, **fields: object) -> bytes:
    source, destination = (ip_address(end).packed for end in ends)
    return bytes(dpkt.ip.IP(src=source, dst=destination, p=protocol, data=payload, **fields))


def ipv6(payload: bytes = b"x" * 30, protocol: int = 17, ends: tuple[str, str] = V6) -> bytes:
    source, destination = (ip_address(end).packed for end in ends)
    return bytes(dpkt.ip6.IP6(src=source, dst=destination, nxt=protocol, hlim=1, plen=len(payload), data=payload))


KINDS = {
    DropReason.NO_ROUTE: ((3, 0), (1, 0)),
    DropReason.NO_ATTACHMENT: ((3, 1), (1, 3)),
    DropReason.EGRESS_DISABLED: ((3, 13), (1, 1)),
    DropReason.WRONG_NODE: ((3, 0), (1, 0)),
    DropReason.PEER_DOWN: ((3, 1), (1, 3)),
    DropReason.TTL_EXPIRED: ((11, 0), (3, 0)),
    DropReason.TOO_BIG: ((3, 4), (2, 0)),
}


@pytest.mark.parametrize("reason", DropReason)
@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_each_reason_has_its_error_or_none(reason: DropReason, make: object) -> None:
    packet = ipv4() if make is ipv4 else ipv6()
    error = make_error(packet, reason, NODE, MTU)
    if reason not in KINDS:
        assert error is None
        return
    assert error is not None
    header = parse_ip(error, 0, len(error))
    assert header is not None
    assert header.hop_limit == 64
    body = error[header.header_bytes :]
    assert (body[0], body[1]) == KINDS[reason][0 if make is ipv4 else 1]
    told = struct.unpack_from(">I", body, 4)[0]
    assert told == (MTU if reason is DropReason.TOO_BIG else 0)
    assert body[8:] == packet
    if make is ipv4:
        assert header.addresses == NODE[0].packed + ip_address(V4[0]).packed
        assert checksum(body) == 0
    else:
        assert header.addresses == NODE[1].packed + ip_address(V6[0]).packed
        assert checksum(body, pseudo_sum(header.addresses, 58, len(body))) == 0


@pytest.mark.parametrize("size", [28, 547, 548, 549, 1451, 1452, 9000, 65507])
def test_quotes_as_much_as_an_error_may_carry(size: int) -> None:
    error = make_error(ipv4(b"y" * (size - 20)), DropReason.NO_ROUTE, NODE, MTU)
    assert error is not None
    assert len(error) == min(576, size + 28)
    big = make_error(ipv6(b"y" * (size - 20)), DropReason.NO_ROUTE, NODE, MTU)
    assert big is not None
    assert len(big) == min(1280, size + 20 + 48)


def test_an_ipv4_error_fits_a_small_mtu_and_still_quotes_header_and_eight_bytes() -> None:
    packet = ipv4(b"y" * 1000, opts=b"\x01" * 40, hl=15, len=1060)
    error = make_error(packet, DropReason.TOO_BIG, NODE, 300)
    assert error is not None
    assert len(error) == 300
    tiny = make_error(packet, DropReason.TOO_BIG, NODE, 68)
    assert tiny is not None
    assert tiny[28:] == packet[:68]


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(bytes((kind, 0)) + bytes(6), 1), id=f"ICMP type {kind}")
        for kind in (3, 4, 5, 11, 12, 19, 30, 255)
    ]
    + [
        pytest.param(ipv6(bytes((kind, 0)) + bytes(6), 58), id=f"ICMPv6 type {kind}")
        for kind in (1, 2, 3, 4, 127, 137)
    ]
    + [
        pytest.param(ipv4(b"", 1), id="ICMP without a type"),
        pytest.param(ipv6(b"", 58), id="ICMPv6 without a type"),
        pytest.param(ipv4(offset=1), id="later fragment"),
        pytest.param(ipv4(ends=("0.0.0.0", V4[1])), id="from nobody"),
        pytest.param(ipv4(ends=("0.1.2.3", V4[1])), id="from this network"),
        pytest.param(ipv4(ends=("127.0.0.1", V4[1])), id="from loopback"),
        pytest.param(ipv4(ends=("224.0.0.1", V4[1])), id="from multicast"),
        pytest.param(ipv4(ends=("255.255.255.255", V4[1])), id="from broadcast"),
        pytest.param(ipv4(ends=("240.0.0.1", V4[1])), id="from class E"),
        pytest.param(ipv4(ends=(V4[0], "224.0.0.1")), id="to multicast"),
        pytest.param(ipv4(ends=(V4[0], "255.255.255.255")), id="to broadcast"),
        pytest.param(ipv6(ends=("::", V6[1])), id="from nobody, v6"),
        pytest.param(ipv6(ends=("::1", V6[1])), id="from loopback, v6"),
        pytest.param(ipv6(ends=("ff02::1", V6[1])), id="from multicast, v6"),
        pytest.param(ipv6(ends=(V6[0], "ff02::1")), id="to multicast, v6"),
        pytest.param(ipv6(struct.pack(">BBHI", 58, 0, 8, 7) + b"z" * 8, 44), id="later fragment of ICMPv6"),
        pytest.param(ipv6(bytes((60, 0)) + bytes(6) + bytes((58, 0)) + bytes(6) + b"\1\0", 0), id="behind two extensions"),
        pytest.param(ipv6(bytes((58, 1)) + bytes(10) + b"\1\0", 51), id="behind an authentication header"),
        pytest.param(ipv6(bytes((58, 200)) + bytes(6), 60), id="extension longer than the packet"),
        pytest.param(ipv6(b"\0", 0), id="extension cut off"),
    ],
)  # fmt: skip
def test_none_where_the_rfcs_forbid_one(packet: bytes) -> None:
    assert parse_ip(packet, 0, len(packet)) is not None
    for reason in KINDS:
        assert make_error(packet, reason, NODE, MTU) is None


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(bytes((8, 0)) + bytes(6), 1), id="echo request"),
        pytest.param(ipv4(bytes((0, 0)) + bytes(6), 1), id="echo reply"),
        pytest.param(ipv4(mf=1), id="first fragment"),
        pytest.param(ipv4(b""), id="no payload"),
        pytest.param(ipv6(bytes((128, 0)) + bytes(6), 58), id="echo request, v6"),
        pytest.param(ipv6(bytes((58, 0)) + bytes(6) + bytes((129, 0)), 60), id="echo reply behind an extension"),
        pytest.param(ipv6(struct.pack(">BBHI", 17, 0, 1, 7) + b"z" * 8, 44), id="first fragment, v6"),
        pytest.param(ipv6(struct.pack(">BBHI", 17, 0, 8, 7) + b"z" * 8, 44), id="later fragment of UDP, v6"),
        pytest.param(ipv6(b"", 59), id="no next header"),
    ],
)
def test_one_where_the_rfcs_allow_it(packet: bytes) -> None:
    assert make_error(packet, DropReason.NO_ROUTE, NODE, MTU) is not None


def test_none_without_an_address_of_that_family() -> None:
    assert make_error(ipv4(), DropReason.NO_ROUTE, NODE[1:], MTU) is None
    assert make_error(ipv6(), DropReason.NO_ROUTE, NODE[:1], MTU) is None


@given(st.binary(max_size=100), st.sampled_from([b"", ipv4()[:20], ipv6()[:40]]), st.sampled_from(list(DropReason)))
def test_never_raises(tail: bytes, head: bytes, reason: DropReason) -> None:
    packet = bytearray(head + tail)
    if head and packet[0] >> 4 == 4:  # lengths and checksum right, the rest a stranger's
        struct.pack_into(">H", packet, 2, len(packet))
        packet[10:12] = bytes(2)
        struct.pack_into(">H", packet, 10, checksum(packet[:20]))
    elif head:
        struct.pack_into(">H", packet, 4, len(tail))
        if tail:
            packet[6] = (0, 43, 44, 51, 58, 60)[tail[0] % 6]
    error = make_error(bytes(packet), reason, NODE, MTU)
    assert error is None or parse_ip(error, 0, len(error)) is not None


def test_tshark_finds_nothing_wrong(tmp_path: Path) -> None:
    rng = random.Random(1)
    capture = tmp_path / "errors.pcap"
    count = 0
    with capture.open("wb") as file:
        pcap = dpkt.pcap.Writer(file, linktype=101, snaplen=65535)
        for size in (8, 9, 100, 547, 549, 1400, 4000):
            for packet in (ipv4(dpkt_udp(size, rng)), ipv6(dpkt_udp(size, rng))):
                for reason in KINDS:
                    error = make_error(packet, reason, NODE, MTU)
                    assert error is not None
                    pcap.writepkt(error, ts=count)
                    count += 1
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:FALSE"]
    fields = ["_ws.malformed", "ip.checksum.status", "icmp.checksum.status", "icmpv6.checksum.status"]
    shown = subprocess.run(
        ["tshark", "-r", str(capture), *checks, "-T", "fields", "-E", "occurrence=f", "-E", "separator=|"]
        + [part for field in fields for part in ("-e", field)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(shown) == count
    assert set(shown) == {"|1|1|", "|||1"}  # status 1 is "good"


def dpkt_udp(size: int, rng: random.Random) -> bytes:
    return struct.pack(">HHHH", 1000, 33434, size, 0xABCD) + rng.randbytes(size - 8)
