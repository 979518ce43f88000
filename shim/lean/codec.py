"""Protobuf, as much of it as the contract uses: messages to bytes and back, by the tables in fields.py.

A message is a dict by field name. What is read has every field, unset ones with their default; a message field that is
unset is None. Unknown fields are passed over (protobuf.dev, "Encoding").
"""

from __future__ import annotations

from shim.lean.fields import MESSAGES

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_MOST_NESTED = 32


def encode(message: str, values: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message. KeyError for a field it does not have, OverflowError for a number out of range."""
    out = bytearray()
    by_name = {name: (number, kind, repeated) for number, (name, kind, repeated) in MESSAGES[message].items()}
    for name, value in values.items():
        number, kind, repeated = by_name[name]
        if kind == "map":
            for key, text in value.items():
                _put(out, number, _LEN, _entry(key, text))
        elif repeated:
            for each in value:
                _put_one(out, number, kind, each)
        elif value is not None and value not in (0, "", False):
            _put_one(out, number, kind, value)
    return bytes(out)


def decode(message: str, content: bytes, depth: int = 0) -> dict[str, Any]:
    """Return a message's fields. ValueError when the bytes are none of a message's."""
    if depth > _MOST_NESTED:
        raise ValueError("messages are nested too deep")
    table = MESSAGES[message]
    found: dict[str, Any] = {}
    for name, kind, repeated in table.values():
        found[name] = {} if kind == "map" else [] if repeated else _DEFAULTS.get(kind)
    for number, wire, raw in fields(content):
        if number not in table:
            continue
        name, kind, repeated = table[number]
        if kind == "map":
            key, text = _read_entry(_bytes(wire, raw))
            found[name][key] = text
            continue
        if kind in _NUMBERS and wire == _LEN and repeated:
            raise ValueError(f"{message}.{name}: packed numbers are not in the contract")
        value = _read(kind, wire, raw, depth)
        if repeated:
            found[name].append(value)
        else:
            found[name] = value
    return found


_DEFAULTS = {"string": "", "uint": 0, "int64": 0, "bool": False, "double": 0.0}
_NUMBERS = frozenset(("uint", "int64", "bool", "double"))


def _put_one(out: bytearray, number: int, kind: str, value: Any) -> None:
    if kind == "string":
        _put(out, number, _LEN, str(value).encode())
    elif kind in ("uint", "bool"):
        if not 0 <= value < 1 << 64:
            raise OverflowError(f"{value} is no unsigned number of 64 bits")
        _put_varint(out, number << 3 | _VARINT)
        _put_varint(out, int(value))
    elif kind in _NUMBERS:
        raise KeyError(f"the contract sends no {kind}")
    else:
        _put(out, number, _LEN, encode(kind, value))


def _put(out: bytearray, number: int, wire: int, content: bytes) -> None:
    _put_varint(out, number << 3 | wire)
    _put_varint(out, len(content))
    out += content


def _put_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _entry(key: str, text: str) -> bytes:
    out = bytearray()
    _put(out, 1, _LEN, key.encode())
    _put(out, 2, _LEN, text.encode())
    return bytes(out)


def _read_entry(content: bytes) -> tuple[str, Any]:
    """Read a map's entry: string to string, or to a number."""
    key, value = "", None
    for number, wire, raw in fields(content):
        if number == 1:
            key = _bytes(wire, raw).decode()
        elif number == 2:
            value = _bytes(wire, raw).decode() if wire == _LEN else raw
    return key, "" if value is None else value


def _read(kind: str, wire: int, raw: Any, depth: int) -> Any:
    if kind == "string":
        return _bytes(wire, raw).decode()
    if kind == "double":
        if wire != _I64:
            raise ValueError("a double has eight bytes")
        import struct

        return struct.unpack("<d", raw)[0]
    if kind in _NUMBERS:
        if wire != _VARINT:
            raise ValueError("a number is a varint")
        if kind == "bool":
            return bool(raw)
        return raw - (1 << 64) if kind == "int64" and raw >> 63 else raw
    return decode(kind, _bytes(wire, raw), depth + 1)


def _bytes(wire: int, raw: Any) -> bytes:
    if wire != _LEN:
        raise ValueError("text and messages have a length")
    return bytes(raw)


def fields(content: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and raw value of every field of any message. ValueError when the bytes are none."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise ValueError(f"{number} is no field's number")
        if wire == _VARINT:
            value, at = _varint(content, at)
            yield number, wire, value
            continue
        if wire == _LEN:
            size, at = _varint(content, at)
        elif wire in (_I64, _I32):
            size = 8 if wire == _I64 else 4
        else:
            raise ValueError(f"wire type {wire} is not used")
        if size > end - at:
            raise ValueError("a field is longer than its message")
        yield number, wire, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("a number has no end")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
