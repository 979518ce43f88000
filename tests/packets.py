"""Packets and super-packets for tests, and what a kernel would make of them. Naive on purpose: shares no code with router."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

VNET = struct.Struct("=BBHHHH")
PLAIN_VNET = bytes(VNET.size)
TCP, UDP = 6, 17
FIN, PSH, ACK, ECE, CWR = 1, 8, 16, 64, 128
_CSUM_OFFSET = {TCP: 16, UDP: 6}
_GSO = {(4, TCP): 1, (6, TCP): 4, (4, UDP): 5, (6, UDP): 5}


def word_sum(data: bytes) -> int:
    """Sum 16-bit words and fold the carries in, word by word (RFC 1071 section 4.1)."""
    data = bytes(data) + b"\0" * (len(data) & 1)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip(
    src: str, dst: str, protocol: int, payload: bytes, *,
    ttl: int = 64, df: bool = True, ident: int = 0, options: bytes = b"", fragment: int = 0,
) -> bytes:  # fmt: skip
    """Make an IPv4 or IPv6 packet; `options` are IPv4's, or whole IPv6 extension headers after `protocol` names them."""
    source, destination = ip_address(src), ip_address(dst)
    ends = source.packed + destination.packed
    if source.version == 6:
        body = options + payload
        return struct.pack(">IHBB", 0x60012345, len(body), protocol, ttl) + ends + body
    size = 20 + len(options) + len(payload)
    flags = 0x4000 if df else fragment
    head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 8, size, ident, flags, ttl, protocol, 0) + ends + options
    return head[:10] + (~word_sum(head) & 0xFFFF).to_bytes(2, "big") + head[12:] + payload


def tcp(
    payload: bytes, *, seq: int = 1, flags: int = ACK, options: bytes = b"", ports: tuple[int, int] = (40000, 50001)
) -> bytes:
    """Make a TCP segment without checksum."""
    return struct.pack(">HHIIBBHHH", *ports, seq, 7, (5 + len(options) // 4) << 4, flags, 512, 0, 0) + options + payload


def udp(payload: bytes, ports: tuple[int, int] = (40000, 50001)) -> bytes:
    """Make a UDP datagram without checksum."""
    return struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload


def l4_at(packet: bytes, protocol: int) -> int:
    """Find the L4 header: after the IP header and, in IPv6, the destination options that tests use."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    return 40 if packet[6] == protocol else 40 + (packet[41] + 1) * 8


def _pseudo(packet: bytes, protocol: int, at: int) -> int:
    ends = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return word_sum(ends + struct.pack(">II", protocol, len(packet) - at))


def partial(packet: bytes, protocol: int) -> bytes:
    """Put the pseudo-header's sum where the L4 checksum belongs, as a stack does that leaves the rest to a device."""
    at = l4_at(packet, protocol)
    where = at + _CSUM_OFFSET[protocol]
    return packet[:where] + _pseudo(packet, protocol, at).to_bytes(2, "big") + packet[where + 2 :]


def finished(packet: bytes, protocol: int) -> bytes:
    """Fill in the L4 checksum from nothing."""
    at = l4_at(packet, protocol)
    where = at + _CSUM_OFFSET[protocol]
    bare = packet[:where] + b"\0\0" + packet[where + 2 :]
    value = (
        ~word_sum(bare[at:] + b"\0" * (len(bare) - at & 1) + _pseudo(bare, protocol, at).to_bytes(2, "big")) & 0xFFFF
    )
    if not value and protocol == UDP:
        value = 0xFFFF
    return bare[:where] + value.to_bytes(2, "big") + bare[where + 2 :]


def frame(packet: bytes, protocol: int = 0, gso_size: int = 0) -> bytes:
    """Put a virtio header before a packet: plain; with partial checksum (`protocol`); or a super-packet (`gso_size`)."""
    if not protocol:
        return PLAIN_VNET + packet
    at = l4_at(packet, protocol)
    offset = _CSUM_OFFSET[protocol]
    gso, header_bytes = 0, 0
    if gso_size:
        gso = _GSO[packet[0] >> 4, protocol]
        header_bytes = _header_bytes(packet, at, offset)
    return VNET.pack(1, gso, header_bytes, gso_size, at, offset) + partial(packet, protocol)


def _header_bytes(packet: bytes, at: int, offset: int) -> int:
    return at + ((packet[at + 12] >> 4) * 4 if offset == _CSUM_OFFSET[TCP] else 8)


def packets_of(received: bytes) -> list[bytes]:
    """Return the finished packets a frame stands for, as a kernel's GSO and checksum code would put them on a wire.

    tcp_gso_segment (net/ipv4/tcp_offload.c), __udp_gso_segment (net/ipv4/udp_offload.c). An IPv4 identification counts
    up only where DF is not set, which is all that RFC 6864 asks.
    """
    flags, gso, _, gso_size, at, offset = VNET.unpack_from(received)
    packet = received[VNET.size :]
    if not flags & 1:
        assert not gso
        return [packet]
    protocol = TCP if offset == _CSUM_OFFSET[TCP] else UDP
    assert offset == _CSUM_OFFSET[protocol]
    if not gso:
        return [finished(packet, protocol)]
    version = packet[0] >> 4
    assert gso & 0x7F == _GSO[version, protocol]
    header_bytes = _header_bytes(packet, at, offset)
    payload = packet[header_bytes:]
    pieces = [payload[start : start + gso_size] for start in range(0, len(payload), gso_size)] or [b""]
    return [
        finished(
            _segment(bytearray(packet[:header_bytes]), at, index, piece, index == len(pieces) - 1, gso_size), protocol
        )
        for index, piece in enumerate(pieces)
    ]


def _segment(head: bytearray, at: int, index: int, piece: bytes, is_last: bool, gso_size: int) -> bytes:
    size = len(head) + len(piece)
    if head[0] >> 4 == 4:
        ident, flags = struct.unpack_from(">HH", head, 4)
        head[2:6] = struct.pack(">HH", size, ident + (0 if flags & 0x4000 else index) & 0xFFFF)
        head[10:12] = b"\0\0"
        head[10:12] = (~word_sum(bytes(head[: (head[0] & 15) * 4])) & 0xFFFF).to_bytes(2, "big")
    else:
        head[4:6] = struct.pack(">H", size - 40)
    if len(head) - at >= 20:
        head[at + 4 : at + 8] = struct.pack(
            ">I", struct.unpack_from(">I", head, at + 4)[0] + index * gso_size & 0xFFFFFFFF
        )
        if index:
            head[at + 13] &= ~CWR
        if not is_last:
            head[at + 13] &= ~(FIN | PSH)
    else:
        head[at + 4 : at + 6] = struct.pack(">H", 8 + len(piece))
    return bytes(head) + piece


def flows(size: int, own: int = 1, other: int = 2) -> Iterator[tuple[str, int, bytes]]:
    """Yield (name, protocol, packet) of every kind that is joined and split, with a payload of that size.

    From Pod 2 of node `own` to Pod 3 of node `other`.
    """
    payload = bytes(index * 7 & 0xFF for index in range(size))
    timestamps = b"\1\1\x08\x0a" + bytes(range(8))
    extension = bytes((0, 0, 1, 4, 0, 0, 0, 0))
    for version, src, dst in (
        (4, f"10.42.{own}.2", f"10.42.{other}.3"),
        (6, f"fd42:{own}::2", f"fd42:{other}::3"),
    ):
        for protocol, body in ((TCP, tcp(payload, options=timestamps)), (UDP, udp(payload))):
            name = f"{'tcp' if protocol == TCP else 'udp'}{version}"
            yield name, protocol, ip(src, dst, protocol, body)
            if version == 4:
                yield f"{name}-options", protocol, ip(src, dst, protocol, body, options=b"\1\1\1\0")
                yield f"{name}-may-fragment", protocol, ip(src, dst, protocol, body, df=False, ident=0xFFFE)
            else:
                after = bytes((protocol,)) + extension[1:]
                yield f"{name}-extension", protocol, ip(src, dst, 60, body, options=after)
