"""The other router, made by hand: a socket, and the bytes that the wire format asks for, packed one by one."""

from __future__ import annotations

import struct

from tests.engine_rig import VNI, Rig, endpoint_of, node, underlay, until
from tests.packets import TCP, UDP, word_sum

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104  # linux/udp.h
V4 = ("10.42.1.2", "10.42.2.3")
V6 = ("fd42:1::2", "fd42:2::3")
"""A Pod of node 1 and one of node 2."""


def one_hop_on(packet: bytes) -> bytes:
    """Return the packet as it leaves a router."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    size = (packet[0] & 15) * 4
    head = packet[:8] + bytes((packet[8] - 1,)) + packet[9:10] + b"\0\0" + packet[12:size]
    return head[:10] + struct.pack(">H", ~word_sum(head) & 0xFFFF) + packet[12:]


def geneve(
    packet: bytes, protocol: int = 0, at: int = 0, vni: int = VNI, option: bool = True, epoch: int = 0, flags: int = 0,
    frame_id: int = 0, index: int = 0,
) -> bytes:  # fmt: skip
    """Encapsulate by hand, as docs/architecture.md draws it; `protocol` means its checksum is partial."""
    base = struct.pack(">HI", 0x0800 if packet[0] >> 4 == 4 else 0x86DD, vni << 8)
    if not option:
        return b"\0\0" + base + packet
    offset = {TCP: 16, UDP: 6}.get(protocol, 0)
    flags |= protocol != 0
    option_bytes = struct.pack(">HBBBBHHBB", 0xFFFF, 0x81, 2, flags, offset, at, frame_id, index, epoch)
    return b"\3\x40" + base + option_bytes + packet


def probe(
    kind: int = 1, size: int = 28, sequence: int = 7, sent_ns: int = 99, vni: int = VNI, fill: bool = True
) -> bytes:
    """Make a probe by hand, as router/wire/probe.py draws it; a request is filled up to its size."""
    head = b"\5\xc0" + struct.pack(">HIHBBBBHIQ", 0, vni << 8, 0xFFFF, 0x82, 4, kind, 0, size, sequence, sent_ns)
    return head.ljust(size, b"\0") if kind == 1 and fill else head


class HandMade:
    """A peer made by hand: a socket, and the datagrams that came."""

    def __init__(self, rig: Rig, number: int = 2, offload: bool = True, address: str = "127.0.0.1") -> None:
        self.socket = underlay(address)
        self.node = node(number, endpoint_of(self.socket), offload)
        self._rig = rig

    def __enter__(self) -> HandMade:
        self._rig.know((*self._rig.table.nodes[1:], self.node))
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def datagrams(self, count: int) -> list[bytes]:
        found: list[bytes] = []

        def enough() -> bool:
            self._rig.pump()
            try:
                whole, control, _, sender = self.socket.recvmsg(1 << 17, 64)
            except BlockingIOError:
                return len(found) >= count
            assert sender == self._rig.socket.getsockname()
            step = len(whole)
            for level, kind, value in control:
                if (level, kind) == (SOL_UDP, UDP_GRO):
                    (step,) = struct.unpack_from("=i", value)
            found.extend(whole[at : at + step] for at in range(0, len(whole), step))
            return len(found) >= count

        until(enough, f"{count} datagrams, only {len(found)} came")
        return found

    def send(self, *rows: bytes) -> None:
        """Send datagrams, several as one train."""
        control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(rows[0])))] if len(rows) > 1 else []
        self.socket.sendmsg([b"".join(rows)], control, 0, self._rig.socket.getsockname())
