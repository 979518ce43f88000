"""Header views and checksums, against dpkt and sums done word by word; strangers' bytes never raise."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire.packet import (
    NO_OFFLOAD,
    VNET_BYTES,
    VnetHeader,
    checksum,
    decrement_hop_limit,
    finish_checksum,
    ones_sum,
    parse_ip,
    pseudo_sum,
)
from tests.packets import TCP, UDP, finished, flows, ip, l4_at, partial, tcp, udp, word_sum

V4 = ("10.42.1.2", "10.42.2.3")
V6 = ("fd42:1::2", "fd42:2::3")


def test_the_examples_of_the_rfcs() -> None:
    # RFC 1071 section 3
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    # RFC 1624 section 4: the sum whose incremental update must not come out as 0xFFFF
    # The well-known example header: 172.16.10.99 to 172.16.10.12
    header = bytes.fromhex("4500003c1c4640004006b1e6ac100a63ac100a0c")
    assert checksum(header) == 0
    assert checksum(header[:10] + b"\0\0" + header[12:]) == 0xB1E6


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_sums_agree_with_word_by_word(data: bytes, initial: int) -> None:
    assert ones_sum(data) == word_sum(data)
    assert ones_sum(data, initial) == word_sum(word_sum(data).to_bytes(2, "big") + initial.to_bytes(2, "big"))
    assert checksum(data) == ~word_sum(data) & 0xFFFF
    assert checksum(data) == dpkt.in_cksum(data)
    assert ones_sum(bytearray(data)) == ones_sum(memoryview(data)) == ones_sum(data)


@pytest.mark.parametrize("data", [b"", bytes(7), b"\xff" * 8, b"\xff\xff", b"\x00\x01\xff\xfe", b"\xff"])
def test_the_two_zeros(data: bytes) -> None:
    assert ones_sum(data) == word_sum(data)


def test_pseudo_headers_agree_with_dpkt() -> None:
    for ends in (V4, V6):
        addresses = b"".join(ip_address(end).packed for end in ends)
        for protocol, body in ((TCP, tcp(b"seven77")), (UDP, udp(b"seven77"))):
            size = len(body)
            at = 16 if protocol == TCP else 6
            bare = body[:at] + b"\0\0" + body[at + 2 :]
            mine = checksum(bare, pseudo_sum(addresses, protocol, size))
            whole = finished(ip(*ends, protocol, body), protocol)
            assert whole[-size + at :][:2] == mine.to_bytes(2, "big")
            if len(addresses) == 8:
                read = dpkt.ip.IP(
                    bytes(dpkt.ip.IP(src=addresses[:4], dst=addresses[4:], p=protocol, data=_l4(protocol, bare)))
                )
                assert read.data.sum == mine


def _l4(protocol: int, bare: bytes) -> object:
    return dpkt.tcp.TCP(bare) if protocol == TCP else dpkt.udp.UDP(bare)


def test_views_agree_with_dpkt() -> None:
    for size in (0, 1, 100, 1400):
        for name, _, packet in flows(size):
            padded = b"before" + packet + b"after"
            header = parse_ip(padded, 6, 6 + len(packet))
            assert header is not None, name
            if packet[0] >> 4 == 4:
                read = dpkt.ip.IP(packet)
                assert (header.version, header.header_bytes) == (read.v, read.hl * 4)
                assert (header.hop_limit, header.protocol) == (read.ttl, read.p)
                assert header.may_fragment == (not read.df)
                assert header.fragment == 0
            else:
                read = dpkt.ip6.IP6(packet)
                assert (header.version, header.header_bytes) == (6, 40)
                assert (header.hop_limit, header.protocol) == (read.hlim, packet[6])
                assert not header.may_fragment
            assert header.addresses == read.src + read.dst


@pytest.mark.parametrize(("more", "offset"), [(0, 0), (1, 0), (0, 1), (1, 0x1FFF), (0, 0x1FFF)])
def test_fragments_show(more: int, offset: int) -> None:
    header = parse_ip(ip(*V4, 17, bytes(40), df=False, fragment=more << 13 | offset), 0, 60)
    assert header is not None
    assert bool(header.fragment) == bool(more or offset)
    assert header.fragment & 0x1FFF == offset


def test_what_is_no_packet_of_that_length_is_none() -> None:
    for _, _, packet in flows(60):
        for end in range(len(packet)):
            assert parse_ip(packet, 0, end) is None
        assert parse_ip(packet + b"x", 0, len(packet) + 1) is None
        for nibble in (0, 1, 5, 7, 15):
            assert parse_ip(bytes((nibble << 4 | packet[0] & 15,)) + packet[1:], 0, len(packet)) is None
    packet = ip(*V4, 17, bytes(60))
    for ihl in range(5):
        assert parse_ip(bytes((0x40 | ihl,)) + packet[1:], 0, len(packet)) is None
    for bit in range(160):
        flipped = bytearray(packet)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        assert parse_ip(flipped, 0, len(packet)) is None, f"bit {bit} of the header was changed unnoticed"


@settings(deadline=None)
@given(st.binary(max_size=120), st.integers(0, 130), st.integers(0, 130))
def test_random_bytes_never_raise(data: bytes, a: int, b: int) -> None:
    start, end = sorted((min(a, len(data)), min(b, len(data))))
    for buffer in (data, bytearray(data), memoryview(data)):
        parse_ip(buffer, start, end)
    finish_checksum(bytearray(data), a, b)


def test_headers_half_right_never_raise() -> None:
    random_ = random.Random(6)
    for _ in range(20_000):
        packet = bytearray(random_.randbytes(random_.randrange(70)))
        if packet:
            packet[0] = random_.choice((0x45, 0x46, 0x4F, 0x60, packet[0]))
        header = parse_ip(packet, 0, len(packet))
        assert header is None or header.header_bytes <= len(packet)


@pytest.mark.parametrize("version", [4, 6])
def test_one_hop_less_keeps_the_checksum_right(version: int) -> None:
    """Every TTL with every checksum that makes a carry, and with many more."""
    if version == 6:
        for ttl in range(1, 256):
            packet = bytearray(b"x" + ip(*V6, 17, b"y", ttl=ttl))
            before = bytes(packet)
            decrement_hop_limit(packet, 1)
            assert packet == before[:8] + bytes((ttl - 1,)) + before[9:]
        return
    random_ = random.Random(4)
    for ttl in range(1, 256):
        for ident in (*range(0, 0x10000, 0x101), *(random_.randrange(0x10000) for _ in range(60))):
            packet = bytearray(ip(*V4, 17, b"", ttl=ttl, ident=ident))
            decrement_hop_limit(packet, 0)
            header = parse_ip(packet, 0, len(packet))
            assert header is not None
            assert header.hop_limit == ttl - 1
            again = ip(*V4, 17, b"", ttl=ttl - 1, ident=ident)
            assert packet == again


def test_partial_checksums_are_finished_as_from_nothing() -> None:
    for size in (0, 1, 2, 99, 100, 1400, 40_000):
        for name, protocol, packet in flows(size):
            at = l4_at(packet, protocol)
            for writable in (bytearray, lambda data: memoryview(bytearray(data))):
                buffer = writable(partial(packet, protocol))
                assert finish_checksum(buffer, at, 16 if protocol == TCP else 6), name
                assert bytes(buffer) == finished(packet, protocol), name


def test_a_udp_checksum_of_zero_is_sent_as_ones() -> None:
    """RFC 768: zero would mean there is none. Two bytes of payload make up for the rest of the sum."""
    for ends in (V4, V6):
        bare = finished(ip(*ends, UDP, udp(b"\0\0")), UDP)
        where = len(bare) - 4
        wanted = bare[:where] + b"\0\0" + bare[where : where + 2]
        buffer = bytearray(partial(wanted, UDP))
        assert finish_checksum(buffer, len(bare) - 10, 6)
        assert buffer[where : where + 2] == b"\xff\xff"
        assert word_sum(bytes(buffer[where - 6 :])) != 0


@pytest.mark.parametrize(("start", "offset"), [(0, 6), (19, 6), (20, 80), (99, 0), (98, 1), (65535, 65535)])
def test_offsets_outside_the_packet_are_refused(start: int, offset: int) -> None:
    packet = bytearray(ip(*V4, UDP, udp(bytes(71))))
    assert len(packet) == 99
    before = bytes(packet)
    assert not finish_checksum(packet, start, offset)
    assert packet == before


@given(st.tuples(st.integers(0, 255), st.integers(0, 255), *(st.integers(0, 0xFFFF),) * 4), st.integers(0, 9))
def test_virtio_headers_are_as_linux_has_them(fields: tuple[int, int, int, int, int, int], at: int) -> None:
    buffer = bytearray(b"\xaa" * 24)
    VnetHeader(*fields).write(buffer, at)
    assert bytes(buffer[at : at + VNET_BYTES]) == struct.pack("=BBHHHH", *fields)
    assert buffer[:at] + buffer[at + VNET_BYTES :] == b"\xaa" * 14
    assert VnetHeader.read(buffer, at) == fields
    assert VnetHeader.read(NO_OFFLOAD, 0) == VnetHeader()
