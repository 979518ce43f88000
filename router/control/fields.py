"""Checks of what a stranger wrote: text to the words of the model, or a Refusal that names the field. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from router.errors import Kind, Refusal
from router.model import GENEVE_PORT, Address, AttachmentKey, Endpoint, Limit, PortMapping, Prefix, Protocol

MAX_ADDRESSES = 16
MAX_ATTACHMENTS = 100_000
MAX_LABELS = 64
MAX_NODES = 200_000
MAX_SUBNETS = 400_000

MAX_PORTS = 1024
MAX_CHECKED = 64

_SANDBOX_ID_CHARACTERS = 256
_OWNER_CHARACTERS = 64
_NODE_NAME_CHARACTERS = 253
_IF_NAME_BYTES = 15
"""IFNAMSIZ - 1, linux/if.h."""
_PATH_BYTES = 4095
"""PATH_MAX - 1, linux/limits.h."""
_LABEL_KEY_CHARACTERS = 128
_LABEL_VALUE_CHARACTERS = 1024
_MTU_BYTES = (576, 65535)
_SHOWN_CHARACTERS = 80
_INT64_MAX = 2**63 - 1
_LEAST_RATE_BITS_PER_S = 8000
_BURST_NOT_SAID_BITS = 2**31 - 1
"""Kubernetes' runtimes send this, or 2^32-1, for a burst that nobody set."""
_DEFAULT_BURSTS_PER_S = 4
"""A quarter of a second: more than TCP's least retransmission timeout of 200 ms, in which a smaller bucket would overflow and
the stream lose half of its rate (measured: 0.53 of it with a tenth of a second, 1.0 with this)."""
_LEAST_DEFAULT_BURST_BYTES = 128 * 1024
"""Two super-packets: a smaller bucket would never let one pass."""


def attachment_key(sandbox_id: str, if_name: str) -> AttachmentKey:
    """Check both parts of an attachment's key."""
    return AttachmentKey(_name("sandbox_id", sandbox_id, _SANDBOX_ID_CHARACTERS), interface_name(if_name))


def interface_name(name: str) -> str:
    """Check an interface name as the kernel does (dev_valid_name, net/core/dev.c); CNI asks the same."""
    size = len(name.encode())
    if not 1 <= size <= _IF_NAME_BYTES:
        raise _invalid("if_name", name, f"it has {size} bytes; use 1 to {_IF_NAME_BYTES}")
    if name in (".", ".."):
        raise _invalid("if_name", name, 'it is not a name; use one like "eth0"')
    if any(c in "/:" or c.isspace() or not c.isprintable() for c in name):
        raise _invalid("if_name", name, 'it must not have "/", ":", whitespace or control characters')
    return name


def node_name(name: str) -> str:
    """Check the name of a node."""
    return _name("node name", name, _NODE_NAME_CHARACTERS)


def netns_path(path: str) -> str:
    """Check the path of a network namespace, without looking at the file system."""
    if not path.startswith("/"):
        raise _invalid("netns_path", path, "it must be an absolute path, as /run/netns/NAME or /proc/PID/ns/net")
    if "\0" in path:
        raise _invalid("netns_path", path, "it has a NUL character")
    if len(path.encode()) > _PATH_BYTES:
        raise _invalid("netns_path", path, f"it is longer than {_PATH_BYTES} bytes")
    return path


def address(field: str, text: str) -> Address:
    """Parse an IP address."""
    try:
        value = ipaddress.ip_address(text)
    except ValueError:
        hint = "; leave the prefix length away" if "/" in text else ""
        raise _invalid(field, text, f"it is no IPv4 or IPv6 address{hint}") from None
    if value.version == 6 and value.scope_id is not None:
        raise _invalid(field, text, f'leave the zone "%{value.scope_id}" away')
    return value


def addresses(texts: tuple[str, ...]) -> tuple[Address, ...]:
    """Parse the addresses asked for; each once."""
    count("addresses", len(texts), MAX_ADDRESSES)
    values = tuple(address("addresses", text) for text in texts)
    if len(set(values)) < len(values):
        twice = next(str(value) for value in values if values.count(value) > 1)
        raise _invalid("addresses", twice, "it is there twice; name each address once")
    return values


def prefix(field: str, text: str) -> Prefix:
    """Parse a prefix with its length and without host bits."""
    base, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit()) or "%" in base:
        raise _invalid(field, text, "it is no prefix; write address/length, as 10.1.2.0/24 or fd00:0:0:2::/64")
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _invalid(field, text, "it is no IPv4 or IPv6 prefix") from None
    raise _invalid(field, text, f"it has bits set after its length; write {meant}")


def endpoint(field: str, host: str, port: int) -> Endpoint:
    """Check where a router receives: a unicast address and a UDP port, 0 standing for Geneve's."""
    where = address(f"{field}.address", host)
    if where.is_multicast or where.is_unspecified:
        raise _invalid(f"{field}.address", host, "give the underlay address of one node")
    if port > 65535:
        raise _invalid(f"{field}.port", str(port), f"use 1 to 65535, or 0 for {GENEVE_PORT}")
    return Endpoint(where, port or GENEVE_PORT)


def mtu(mtu_bytes: int) -> int:
    """Check an MTU asked for; 0 stands for the overlay's."""
    low, high = _MTU_BYTES
    if mtu_bytes and not low <= mtu_bytes <= high:
        raise _invalid("mtu_bytes", str(mtu_bytes), f"use {low} to {high}, or 0 for the overlay MTU")
    return mtu_bytes


def labels(pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Check labels and order them by key."""
    count("labels", len(pairs), MAX_LABELS)
    for key, value in pairs.items():
        if not 1 <= len(key) <= _LABEL_KEY_CHARACTERS or not key.isprintable():
            raise _invalid("labels", key, f"use a key of 1 to {_LABEL_KEY_CHARACTERS} printable characters")
        if len(value) > _LABEL_VALUE_CHARACTERS or not value.isprintable():
            limit = f"at most {_LABEL_VALUE_CHARACTERS} printable characters"
            raise _invalid(f"labels[{shown(key)}]", value, f"use a value of {limit}")
    return tuple(sorted(pairs.items()))


def owner(text: str) -> str:
    """Check who asks for an attachment; empty for nobody in particular."""
    if len(text) > _OWNER_CHARACTERS or any(c.isspace() or not c.isprintable() for c in text):
        raise _invalid("owner", text, f"use at most {_OWNER_CHARACTERS} printable characters without whitespace")
    return text


def moment(field: str, ns: int) -> int:
    """Check a time of CLOCK_BOOTTIME in nanoseconds."""
    if ns > _INT64_MAX:
        raise _invalid(field, str(ns), "it is no time of CLOCK_BOOTTIME in nanoseconds")
    return ns


def epoch(field: str, number: int) -> int:
    """Check which holding of its subnets a node's row is."""
    if number > _INT64_MAX:
        raise _invalid(field, str(number), f"use 0 to {_INT64_MAX}")
    return number


def port_mapping(host_port: int, container_port: int, protocol: str, host_address: str) -> PortMapping:
    """Check a port of the node that is to lead to a Pod."""
    for field, port in (("ports.host_port", host_port), ("ports.container_port", container_port)):
        if not 1 <= port <= 65535:
            raise _invalid(field, str(port), "use 1 to 65535")
    try:
        spoken = Protocol(protocol.lower() or "tcp")
    except ValueError:
        raise _invalid("ports.protocol", protocol, f"use {', '.join(Protocol)}") from None
    where = address("ports.host_address", host_address) if host_address else None
    if where is not None and (where.is_unspecified or where.is_multicast):
        raise _invalid("ports.host_address", host_address, "name one address of the node, or none for all of them")
    return PortMapping(host_port, container_port, spoken, where)


def limit(way: str, bits_per_s: int, burst_bits: int) -> Limit | None:
    """Check a rate and its burst, and turn them into bytes; None for no limit."""
    if not bits_per_s:
        if 0 < burst_bits < _BURST_NOT_SAID_BITS:
            raise _invalid(f"limits.{way}_burst_bits", str(burst_bits), "a burst needs a rate; give one too")
        return None
    if not _LEAST_RATE_BITS_PER_S <= bits_per_s <= _INT64_MAX:
        why = f"use {_LEAST_RATE_BITS_PER_S} to 2^63-1, or 0 for no limit"
        raise _invalid(f"limits.{way}_bits_per_s", str(bits_per_s), why)
    said = 0 < burst_bits < _BURST_NOT_SAID_BITS
    bytes_per_s = bits_per_s // 8
    burst_bytes = (
        max(1, burst_bits // 8) if said else max(bytes_per_s // _DEFAULT_BURSTS_PER_S, _LEAST_DEFAULT_BURST_BYTES)
    )
    return Limit(bytes_per_s, burst_bytes)


def number(field: str, found: int, least: int, most: int) -> int:
    """Check a number."""
    if not least <= found <= most:
        raise _invalid(field, str(found), f"use {least} to {most}")
    return found


def count(field: str, found: int, most: int) -> None:
    """Check how many of something there are."""
    if found > most:
        raise Refusal(Kind.INVALID, f"{field}: {found} are too many; send at most {most}")


def shown(text: str) -> str:
    """Return a stranger's text as it can stand in a message of one line."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _name(field: str, text: str, most: int) -> str:
    if not 1 <= len(text) <= most:
        raise _invalid(field, text, f"it has {len(text)} characters; use 1 to {most}")
    if any(c == "/" or c.isspace() or not c.isprintable() for c in text):
        raise _invalid(field, text, 'use printable characters without whitespace and "/"')
    return text


def _invalid(field: str, text: str, why: str) -> Refusal:
    return Refusal(Kind.INVALID, f"{field} {shown(text)}: {why}")
