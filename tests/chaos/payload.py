"""What packets carry: who sent them to whom, and bytes that follow from flow and place, so that each can be checked. Pure."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

HEADER = struct.Struct("!4sBxHIQ8s8s16s16s")
"""Magic, kind, size of all, flow, number in it, uid of sender and receiver, their addresses (IPv4 ones mapped)."""
MAGIC = b"pwcz"
DATAGRAM, PING, REACH, STREAM, ASK, SPOOF = range(1, 7)
"""Kinds. SPOOF is what nobody may ever receive: its sender does not hold the source address."""
_PERIOD = (1 << 20) - 3
_BLOCK = random.Random("chaos").randbytes(_PERIOD) * 2
MOST_BYTES = _PERIOD


@dataclass(frozen=True, slots=True)
class Who:
    """A Pod in one of its lives: attached anew, it is another."""

    uid: str
    """At most 8 characters."""
    pod: str
    node: str
    v4: IPv4Address
    v6: IPv6Address

    def address(self, family: int) -> IPv4Address | IPv6Address:
        return self.v4 if family == 4 else self.v6


@dataclass(frozen=True, slots=True)
class Header:
    """What a packet says of itself."""

    kind: int
    size_bytes: int
    flow: int
    number: int
    src_uid: str
    dst_uid: str
    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address


class WrongBytes(Exception):
    """Bytes that are not what was sent."""


class WrongPod(Exception):
    """A packet from or for somebody else."""


def content(flow: int, number: int, size_bytes: int) -> bytes:
    """Return bytes that no other place of any flow has, up to 1 MiB."""
    start = (flow * 0x9E3779B1 + number * 0x85EBCA6B) % _PERIOD
    return _BLOCK[start : start + size_bytes]


def stream(flow: int, offset: int, size_bytes: int) -> bytes:
    """Return what a stream carries from that byte on, up to 1 MiB at a time."""
    start = (flow * 0x9E3779B1 + offset) % _PERIOD
    return _BLOCK[start : start + size_bytes]


def header(kind: int, flow: int, number: int, src: Who, dst: Who, family: int, size_bytes: int) -> bytes:
    """Say who sends what to whom."""
    return HEADER.pack(
        MAGIC, kind, size_bytes, flow, number, src.uid.encode(), dst.uid.encode(),
        _mapped(src.address(family)), _mapped(dst.address(family)),
    )  # fmt: skip


def datagram(kind: int, flow: int, number: int, src: Who, dst: Who, family: int, size_bytes: int) -> bytes:
    """Make a whole one, of that size or of its header's."""
    size_bytes = max(size_bytes, HEADER.size)
    head = header(kind, flow, number, src, dst, family, size_bytes)
    return head + content(flow, number, size_bytes - HEADER.size)


def read(data: bytes) -> Header:
    """Read a header and check all bytes behind it. WrongBytes when one is not as it was sent."""
    if len(data) < HEADER.size:
        raise WrongBytes(f"{len(data)} bytes are no datagram of ours: {data[:32].hex()}")
    magic, kind, size_bytes, flow, number, src_uid, dst_uid, src, dst = HEADER.unpack_from(data)
    if magic != MAGIC or size_bytes != len(data):
        raise WrongBytes(f"{len(data)} bytes begin as those of {size_bytes}: {data[: HEADER.size].hex()}")
    if data[HEADER.size :] != content(flow, number, size_bytes - HEADER.size):
        at = next(
            i
            for i, (a, b) in enumerate(zip(data[HEADER.size :], content(flow, number, size_bytes), strict=False))
            if a != b
        )
        raise WrongBytes(f"flow {flow} number {number}: byte {HEADER.size + at} of {size_bytes} is not what was sent")
    try:
        uids = [uid.rstrip(b"\0").decode() for uid in (src_uid, dst_uid)]
        return Header(kind, size_bytes, flow, number, *uids, _unmapped(src), _unmapped(dst))
    except ValueError as error:
        raise WrongBytes(f"flow {flow} number {number}: a header that nobody made ({error})") from None


def check_ends(found: Header, receiver: Who, seen_src: str) -> None:
    """Check that it is for its receiver and from whom it says. WrongPod otherwise."""
    what = f"{found.src_uid} {found.src} → {found.dst_uid} {found.dst} (flow {found.flow} number {found.number})"
    if found.kind == SPOOF:
        raise WrongPod(f"{receiver.uid} received a spoofed packet: {what}, seen from {seen_src}")
    if found.dst_uid != receiver.uid or found.dst not in (receiver.v4, receiver.v6):
        raise WrongPod(f"{receiver.uid} received what was for another: {what}")
    if ip_address(seen_src) != found.src:
        raise WrongPod(f"{receiver.uid} received {what} from {seen_src}")


def _mapped(address: IPv4Address | IPv6Address) -> bytes:
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _unmapped(packed: bytes) -> IPv4Address | IPv6Address:
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
