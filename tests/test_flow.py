"""Flows: read by hand beside dpkt, and never an exception, whatever the bytes are."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import Flow
from router.wire.flow import flow_from, flow_key, flow_of
from tests.packets import TCP, UDP, ip, tcp, udp

ENDS4, ENDS6 = ("10.42.1.2", "10.42.2.3"), ("fd42:1::2", "fd42:2::3")
ENDS = pytest.mark.parametrize("ends", [ENDS4, ENDS6], ids=["v4", "v6"])
SCTP, ICMP, ICMPV6 = 132, 1, 58


def of(ends: tuple[str, str], protocol: int, *ports: int) -> Flow:
    return Flow(ip_address(ends[0]), ip_address(ends[1]), protocol, *ports)


@ENDS
@pytest.mark.parametrize("whole", [bytes, bytearray, lambda packet: memoryview(bytearray(packet))])
def test_ports_where_they_are(ends: tuple[str, str], whole: type) -> None:
    sctp = struct.pack(">HHII", 5000, 6000, 7, 0)
    for protocol, body in ((TCP, tcp(b"x", ports=(5000, 6000))), (UDP, udp(b"", (5000, 6000))), (SCTP, sctp)):
        assert flow_of(whole(ip(*ends, protocol, body))) == of(ends, protocol, 5000, 6000)
    assert flow_of(whole(ip(*ends, 47, b"\x13\x88" * 4))) == of(ends, 47)


@ENDS
@pytest.mark.parametrize("protocol", [ICMP, ICMPV6])
def test_icmp_has_its_type_and_code(ends: tuple[str, str], protocol: int) -> None:
    assert flow_of(ip(*ends, protocol, b"\x03\x04rest")) == of(ends, protocol, 3, 4)
    assert flow_of(ip(*ends, protocol, b"\x08\x00rest")) == of(ends, protocol, 8, 0)


def test_options_move_the_ports_and_extensions_hide_them() -> None:
    assert flow_of(ip(*ENDS4, UDP, udp(b"", (1, 2)), options=b"\1" * 40)) == of(ENDS4, UDP, 1, 2)
    extension = bytes((UDP, 0, 1, 4, 0, 0, 0, 0))
    assert flow_of(ip(*ENDS6, 60, udp(b"", (1, 2)), options=extension)) == of(ENDS6, 60)
    fragment = bytes((UDP, 0, 0, 1, 0, 0, 0, 9))
    assert flow_of(ip(*ENDS6, 44, udp(b"", (1, 2)), options=fragment)) == of(ENDS6, 44)


def test_only_the_first_fragment_has_ports() -> None:
    for fragment, ports in ((0x2000, (1, 2)), (0x2001, ()), (0x1FFF, ()), (0x0001, ()), (0, (1, 2))):
        packet = ip(*ENDS4, UDP, udp(b"", (1, 2)), df=False, fragment=fragment)
        assert flow_of(packet) == of(ENDS4, UDP, *ports), hex(fragment)


@ENDS
def test_a_packet_may_be_cut_anywhere(ends: tuple[str, str]) -> None:
    packet, headers = ip(*ends, UDP, udp(b"", (1, 2))), 20 if ends is ENDS4 else 40
    for size in range(len(packet)):
        expected = None if size < headers else of(ends, UDP, *((1, 2) if size >= headers + 4 else ()))
        assert flow_of(packet[:size]) == expected, size
    icmp = ip(*ends, ICMP, b"\x08\x09")
    assert [flow_of(icmp[: headers + size]) for size in (1, 2)] == [of(ends, ICMP), of(ends, ICMP, 8, 9)]


@pytest.mark.parametrize(
    "junk", [b"", b"\x45", b"\x44" + bytes(60), b"\x40" + bytes(60), b"\x50" + bytes(60), b"\x60" + bytes(38)]
)
def test_what_is_no_packet_has_no_flow(junk: bytes) -> None:
    assert flow_of(junk) is None
    assert flow_key(junk) is None


HEADED = st.tuples(st.sampled_from((b"\x45", b"\x46", b"\x4f", b"\x60", b"\x6f")), st.binary(max_size=80)).map(b"".join)


@given(HEADED | st.binary(max_size=80))
def test_dpkt_reads_the_same(packet: bytes) -> None:
    """Addresses and protocol of whatever is long enough; and equal keys stand for equal flows."""
    flow, key = flow_of(packet), flow_key(packet)
    assert (flow is None) == (key is None)
    if flow is None or key is None:
        return
    assert flow_from(key) == flow
    head = packet[:20] if packet[0] >> 4 == 4 else packet[:40]
    if packet[0] >> 4 == 4:
        read = dpkt.ip.IP(b"\x45" + head[1:6] + b"\0\0" + head[8:])
        assert (read.src, read.dst, read.p) == (flow.src.packed, flow.dst.packed, flow.protocol)
    else:
        assert (head[8:24], head[24:40], head[6]) == (flow.src.packed, flow.dst.packed, flow.protocol)


@given(HEADED, HEADED)
def test_keys_are_equal_where_flows_are(one: bytes, other: bytes) -> None:
    assert (flow_key(one) == flow_key(other)) == (flow_of(one) == flow_of(other))
