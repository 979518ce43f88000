"""IPv4 fragmentation by a router: one packet in, packets that fit the next link out (RFC 791 section 3.2). Pure."""

from __future__ import annotations

import struct

from router.wire.packet import IPV4_BYTES, checksum, parse_ip

_MORE_FRAGMENTS = 0x2000
_OFFSET = 0x1FFF
_END_OF_OPTIONS, _NO_OPERATION, _COPIED = 0, 1, 0x80


def fragment(packet: bytes, mtu_bytes: int) -> list[bytes]:
    """Return the packet cut into fragments of at most `mtu_bytes`, or the packet alone where it fits.

    Empty where that cannot be done: not IPv4, DF set, no room for 8 bytes of payload, or an offset past 65535 bytes.
    """
    header = parse_ip(packet, 0, len(packet))
    if header is None or header.version != 4:
        return []
    if len(packet) <= mtu_bytes:
        return [packet]
    first_offset, more = header.fragment & _OFFSET, header.fragment & _MORE_FRAGMENTS
    units = (len(packet) - header.header_bytes + 7) >> 3
    if not header.may_fragment or mtu_bytes < header.header_bytes + 8 or first_offset + units > _OFFSET + 1:
        return []

    fragments = []
    head, at = packet[: header.header_bytes], header.header_bytes
    while at < len(packet):
        payload = packet[at : at + ((mtu_bytes - len(head)) & ~7)]
        offset = first_offset + ((at - header.header_bytes) >> 3)
        at += len(payload)
        fragments.append(
            _header(head, len(payload), offset | (_MORE_FRAGMENTS if at < len(packet) else more)) + payload
        )
        if len(fragments) == 1:
            options = _copied_options(head[IPV4_BYTES:])
            head = bytes((0x40 | (IPV4_BYTES + len(options)) >> 2,)) + head[1:IPV4_BYTES] + options
    return fragments


def _header(head: bytes, payload_bytes: int, flags_and_offset: int) -> bytes:
    """Return a fragment's header: length, flags, offset and checksum are its own."""
    fresh = bytearray(head)
    struct.pack_into(">H", fresh, 2, len(head) + payload_bytes)
    struct.pack_into(">H", fresh, 6, flags_and_offset)
    struct.pack_into(">H", fresh, 10, 0)
    struct.pack_into(">H", fresh, 10, checksum(fresh))
    return bytes(fresh)


def _copied_options(options: bytes) -> bytes:
    """Keep the options every fragment carries, those with the copied flag, padded to whole words (RFC 791 section 3.1)."""
    kept, at = b"", 0
    while at < len(options) and options[at] != _END_OF_OPTIONS:
        if options[at] == _NO_OPERATION:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break  # the rest is not options; the first fragment carries it as it came
        if options[at] & _COPIED:
            kept += options[at : at + size]
        at += size
    return kept + bytes(-len(kept) % 4)
