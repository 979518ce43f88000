"""Header fields as HTTP/2 compresses them (RFC 7541): written as literals, read without a dynamic table.

We announce a table of size 0, so a peer may only use the static table and literals. Huffman-coded text is refused: gRPC's
C core, which serves the contract, writes none.
"""

from __future__ import annotations

_STATUS_AT = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
_NAMES = (
    ":authority :method :method :path :path :scheme :scheme :status :status :status :status :status :status :status "
    "accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow "
    "authorization cache-control content-disposition content-encoding content-language content-length content-location "
    "content-range content-type cookie date etag expect expires from host if-match if-modified-since if-none-match "
    "if-range if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization range "
    "referer refresh retry-after server set-cookie strict-transport-security transfer-encoding user-agent vary via "
    "www-authenticate"
).split()
"""Names of the static table (RFC 7541 appendix A), from index 1."""


def encode(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return a header block of literals that nobody keeps (RFC 7541 section 6.2.2)."""
    out = bytearray()
    for name, value in headers:
        out.append(0)
        for text in (name, value):
            _put_number(out, 7, len(text))
            out += text
    return bytes(out)


def decode(block: bytes) -> dict[str, str]:
    """Return the fields of a header block. ValueError when it is none, or needs what we did not offer."""
    found: dict[str, str] = {}
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # indexed (section 6.1)
            index, at = _number(block, at, 7)
            found[_name(index)] = _STATUS_AT.get(index, "")
        elif first & 0xE0 == 0x20:  # a new table size (section 6.3)
            _, at = _number(block, at, 5)
        else:  # a literal: 6 bits of index where the peer would like it kept, 4 where not (section 6.2)
            index, at = _number(block, at, 6 if first & 0x40 else 4)
            if index:
                name = _name(index)
            else:
                name, at = _text(block, at)
            value, at = _text(block, at)
            found[name] = value
    return found


def _name(index: int) -> str:
    if not 1 <= index <= len(_NAMES):
        raise ValueError(f"header index {index} is not in the static table")
    return _NAMES[index - 1]


def _put_number(out: bytearray, bits: int, value: int) -> None:
    most = (1 << bits) - 1
    if value < most:
        out.append(value)
        return
    out.append(most)
    value -= most
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        if at >= len(block) or shift > 28:
            raise ValueError("a number in the headers has no end")
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _text(block: bytes, at: int) -> tuple[str, int]:
    if at >= len(block):
        raise ValueError("a header has no value")
    if block[at] & 0x80:
        raise ValueError("a header is Huffman-coded")
    size, at = _number(block, at, 7)
    if size > len(block) - at:
        raise ValueError("a header is longer than its block")
    return block[at : at + size].decode("latin-1"), at + size
