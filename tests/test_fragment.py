"""IPv4 fragments: they fit, they are whole packets, and put together they are what was cut."""

from __future__ import annotations

import random

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.fragment import fragment
from router.wire.packet import parse_ip

COPIED = bytes((0x83, 7, 4, 10, 0, 0, 1))  # loose source route: in every fragment
ONCE = bytes((7, 7, 4, 0, 0, 0, 0))  # record route: in the first only


def packet_of(payload: bytes, options: bytes = b"", offset: int = 0, more: bool = False, df: bool = False) -> bytes:
    options += bytes(-len(options) % 4)
    return bytes(
        dpkt.ip.IP(
            src=bytes((10, 42, 1, 2)), dst=bytes((10, 42, 2, 9)), p=17, ttl=63, id=4711, tos=8, df=df, mf=more,
            offset=offset, hl=5 + len(options) // 4, opts=options, data=payload, len=20 + len(options) + len(payload),
        )
    )  # fmt: skip


def reassemble(fragments: list[bytes], start: int = 0) -> tuple[bytes, bool]:
    """Return the payload and whether more is to follow, whatever order the fragments come in."""
    payload, expected, more = b"", start, True
    for piece in sorted(fragments, key=lambda piece: piece[6] << 8 & 0x1F00 | piece[7]):
        header = parse_ip(piece, 0, len(piece))
        assert header is not None, "not a packet"
        assert more, "a fragment after the last"
        assert (header.fragment & 0x1FFF) * 8 == expected
        payload += piece[header.header_bytes :]
        expected += len(piece) - header.header_bytes
        more = bool(header.fragment & 0x2000)
    return payload, more


@given(
    payload=st.integers(1, 6000).flatmap(lambda size: st.binary(min_size=size, max_size=size) | st.just(b"q" * size)),
    options=st.sampled_from([b"", COPIED, ONCE, ONCE + COPIED, b"\x01\x01" + COPIED + b"\x00junk"]),
    mtu_bytes=st.integers(68, 2000),
    offset=st.integers(0, 3000),
    more=st.booleans(),
)
def test_put_together_they_are_what_was_cut(
    payload: bytes, options: bytes, mtu_bytes: int, offset: int, more: bool
) -> None:
    packet = packet_of(payload, options, offset, more)
    fragments = fragment(packet, mtu_bytes)
    assert all(len(piece) <= mtu_bytes for piece in fragments)
    assert reassemble(fragments, offset * 8) == (payload, more)
    again = [small for piece in fragments for small in fragment(piece, 100)]
    if len(payload) % 8 == 0 or not more:
        assert reassemble(again, offset * 8) == (payload, more)
    for piece in fragments:  # what a fragment keeps: TOS, id, TTL, protocol, addresses
        assert (piece[1], piece[4:6], piece[8:10], piece[12:20]) == (
            packet[1],
            packet[4:6],
            packet[8:10],
            packet[12:20],
        )


def test_options_follow_the_copied_flag() -> None:
    first, *later = fragment(packet_of(b"p" * 2000, ONCE + b"\x01" + COPIED), 576)
    assert first[20:36] == ONCE + b"\x01" + COPIED + b"\x00"
    assert len(later) >= 3
    assert all(piece[0] == 0x47 and piece[20:28] == COPIED + b"\x00" for piece in later)


@pytest.mark.parametrize(
    "options", [b"\x83", b"\x83\x01\x04\x04", b"\x83\x09\x04\x04", b"\x83\x00\x00\x00", COPIED[:4]]
)
def test_malformed_options_stay_in_the_first_fragment(options: bytes) -> None:
    first, *later = fragment(packet_of(b"p" * 2000, options), 576)
    assert first[20:].startswith(options)
    assert all(piece[0] == 0x45 for piece in later)


@pytest.mark.parametrize(("size", "count"), [(1452, 1), (1453, 2), (20 + 2 * 1432, 2), (21 + 2 * 1432, 3)])
def test_as_few_as_possible(size: int, count: int) -> None:
    pieces = fragment(packet_of(b"p" * (size - 20)), 1452)
    assert len(pieces) == count
    assert all(len(piece) % 8 == 20 % 8 for piece in pieces[:-1])


def test_what_fits_stays_as_it_is() -> None:
    for packet in (packet_of(b"p" * 1432), packet_of(b"p" * 1432, df=True), packet_of(b"")):
        assert fragment(packet, 1452) == [packet]


@pytest.mark.parametrize(
    ("packet", "mtu_bytes"),
    [
        pytest.param(packet_of(b"p" * 1433, df=True), 1452, id="do not fragment"),
        pytest.param(packet_of(b"p" * 1433), 27, id="no room"),
        pytest.param(packet_of(b"p" * 1433), 0, id="MTU zero"),
        pytest.param(packet_of(b"p" * 1433), -5, id="MTU negative"),
        pytest.param(packet_of(b"p" * 2000, offset=8000), 1452, id="past 64 KiB"),
        pytest.param(b"", 1452, id="empty"),
        pytest.param(bytes(2000), 1452, id="zeros"),
        pytest.param(bytes(dpkt.ip6.IP6(src=bytes(16), dst=bytes(16), plen=2000, data=bytes(2000))), 1452, id="IPv6"),
    ],
)
def test_none_where_it_cannot_be(packet: bytes, mtu_bytes: int) -> None:
    assert fragment(packet, mtu_bytes) == []


def test_random_bytes_never_raise() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        packet = bytearray(rng.randbytes(rng.randrange(200)))
        if packet:
            packet[0] = 0x40 | rng.randrange(16)
        fragment(bytes(packet), rng.randrange(-10, 300))
