"""Super-packets and trains: what both are made of, and the headers that change when one becomes the other. Pure.

    super-packet   virtio header + one IP packet of up to 64 KiB, as a TUN with TSO/USO hands it over
    train          the packets it stands for, each true and whole, side by side in their Geneve headers: one
                   UDP_SEGMENT send, one UDP_GRO receive

`split` makes the second of the first, `merge` the first of the second: what a kernel's GSO and GRO do
(net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c), done outside it. The L4 checksum stays partial the whole way, so
nobody sums a payload here.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from router.wire import geneve
from router.wire.packet import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    IPV6_BYTES,
    NEEDS_CSUM,
    NO_OFFLOAD,
    TCP,
    TCP_CSUM_OFFSET,
    UDP,
    UDP_CSUM_OFFSET,
    VNET_BYTES,
    IpHeader,
    VnetHeader,
    checksum,
    write_vnet,
)

MAX_PACKET_BYTES: Final = 65535
MAX_TRAIN_BYTES: Final = 65507
"""Most bytes of one UDP send over IPv4 (65535 − 20 − 8); one bound for both families."""
UDP_BYTES: Final = 8

FIN, PSH, ACK, ECE, CWR = 0x01, 0x08, 0x10, 0x40, 0x80
"""TCP flags (RFC 9293 section 3.1, RFC 3168 section 6.1)."""
U16 = struct.Struct(">H")


class Train(NamedTuple):
    """Datagrams side by side, all of `segment_bytes` but the last, which may be shorter: one UDP_SEGMENT send."""

    datagrams: memoryview
    segment_bytes: int
    packets: int

    def row(self, number: int) -> memoryview:
        """Return one of the datagrams, counted from 0."""
        return self.datagrams[number * self.segment_bytes : (number + 1) * self.segment_bytes]


class Shape(NamedTuple):
    """Where the headers of a TCP or UDP packet end. Offsets count from the IP header."""

    l4: int
    header_bytes: int
    csum_offset: int

    @property
    def is_tcp(self) -> bool:
        """Tell TCP from UDP."""
        return self.csum_offset == TCP_CSUM_OFFSET


def shape_of(packet: memoryview, header: IpHeader, csum_start: int, csum_offset: int) -> Shape | None:
    """Find the end of the L4 header; None unless this is a whole TCP or UDP header where the checksum offsets say so."""
    if header.fragment or csum_start < header.header_bytes:
        return None
    if csum_offset == TCP_CSUM_OFFSET:
        protocol, minimum = TCP, 20
    elif csum_offset == UDP_CSUM_OFFSET:
        protocol, minimum = UDP, UDP_BYTES
    else:
        return None
    # An IPv6 packet may have extension headers before csum_start; they are copied to every segment as they are.
    if (csum_start == header.header_bytes and header.protocol != protocol) or csum_start + minimum > len(packet):
        return None
    if header.version == 4 and csum_start != header.header_bytes:
        return None
    size = (packet[csum_start + 12] >> 4) << 2 if protocol == TCP else UDP_BYTES
    if size < minimum or csum_start + size > len(packet):
        return None
    return Shape(csum_start, csum_start + size, csum_offset)


def packets_in(packet_bytes: int, shape: Shape, gso_size: int) -> int:
    """Return how many packets a super-packet stands for; one without payload is one."""
    return max(1, -(-(packet_bytes - shape.header_bytes) // gso_size))


def gso_shape(packet: memoryview, header: IpHeader, vnet: VnetHeader) -> Shape | None:
    """Check a super-packet's virtio header against its bytes; None when they do not belong together."""
    shape = shape_of(packet, header, vnet.csum_start, vnet.csum_offset)
    if shape is None or not vnet.gso_size or not vnet.flags & NEEDS_CSUM:
        return None
    if geneve.HEADER_BYTES + shape.header_bytes + vnet.gso_size > MAX_TRAIN_BYTES:
        return None  # no segment so long can be sent
    kind = vnet.gso_type & ~GSO_ECN
    if shape.is_tcp:
        expected = GSO_TCPV4 if header.version == 4 else GSO_TCPV6
    else:
        expected = GSO_UDP_L4
    return shape if kind == expected else None


def shift_sum(value: int, by: int) -> int:
    """Add a signed number to a partial checksum, staying in 1..0xFFFF."""
    return (value + by) % 0xFFFF or 0xFFFF


def set_lengths(header: bytearray, at: int, version: int, shape: Shape, was_bytes: int, payload_bytes: int) -> None:
    """Make the headers at `at` (IP to L4) those of a packet of that payload, their lengths and sums changed to fit."""
    size = shape.header_bytes + payload_bytes
    if version == 4:
        U16.pack_into(header, at + 2, size)
        U16.pack_into(header, at + 10, 0)
        ihl = (header[at] & 15) << 2
        U16.pack_into(header, at + 10, checksum(header[at : at + ihl]))
    else:
        U16.pack_into(header, at + 4, size - IPV6_BYTES)
    l4 = at + shape.l4
    if not shape.is_tcp:
        U16.pack_into(header, l4 + 4, UDP_BYTES + payload_bytes)
    where = l4 + shape.csum_offset
    (partial,) = U16.unpack_from(header, where)
    U16.pack_into(header, where, shift_sum(partial, size - was_bytes))


def write_plain_vnet(buffer: memoryview, offset: int, encap: geneve.Encapsulation) -> None:
    """Write the virtio header of one decapsulated packet: its checksum partial if the option says so."""
    if encap.flags & geneve.PARTIAL_CHECKSUM:
        write_vnet(buffer, offset, NEEDS_CSUM, GSO_NONE, 0, 0, encap.csum_start, encap.csum_offset)
    else:
        buffer[offset : offset + VNET_BYTES] = NO_OFFLOAD
