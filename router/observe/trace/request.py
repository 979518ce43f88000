"""What a stranger wants to have traced, checked and found on this node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address

from router.errors import Kind, Refusal
from router.kernel import netns
from router.model import NODE_KEY, Address, AttachmentKey
from router.observe.names import Names
from router.observe.trace.packet import DEFAULT_PORT, MOST_BYTES, Asked, Transport, least_bytes
from router.observe.trace.steps import TraceRequest

_MOST_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Wanted:
    """A trace that can be made."""

    key: AttachmentKey
    """Of the source."""
    source: str
    destination: str
    netns_path: str
    """In which the source is."""
    if_name: str
    asked: Asked
    far_netns_path: str = ""
    """In which the destination is; empty when that is on another node, or the node itself."""
    far_if_name: str = ""


def read(request: TraceRequest, names: Names) -> Wanted:
    """Check a request. Raise Refusal: INVALID, or NOT_FOUND when the source is not here."""
    for field, text in (("src", request.src), ("dst", request.dst)):
        if not 1 <= len(text) <= _MOST_CHARACTERS or not text.isprintable():
            raise Refusal(
                Kind.INVALID, f"{field}: say which Pod or address, in 1 to {_MOST_CHARACTERS} printable characters"
            )
    transport = _transport(request)
    key = names.attachment(request.src)
    if key is None:
        if isinstance(names.source(request.src), AttachmentKey):  # attached this moment
            raise Refusal(Kind.UNAVAILABLE, f"{request.src} has just changed; try again")
        raise Refusal(Kind.NOT_FOUND, f"{request.src} is another node: run the trace there, or from a Pod of this one")
    own = _addresses(key, names)
    destination, far = _destination(request.dst, names)
    src, dst = _pair(own, destination, request)
    held, far_held = names.held(key), names.held(far) if far is not None else None
    least = least_bytes(dst.version, transport)
    if request.packet_bytes and not least <= request.packet_bytes <= MOST_BYTES:
        raise Refusal(
            Kind.INVALID, f"packet_bytes {request.packet_bytes}: such a packet has {least} to {MOST_BYTES} bytes"
        )
    asked = Asked(
        src,
        dst,
        transport,
        request.dst_port or DEFAULT_PORT[transport],
        request.packet_bytes or least,
        request.dont_fragment,
    )
    return Wanted(
        key,
        names.pod(key),
        request.dst if far is None else names.pod(far),
        netns.OWN if held is None else held.netns_path,
        key.if_name,
        asked,
        "" if far_held is None else far_held.netns_path,
        "" if far_held is None else far_held.key.if_name,
    )


def _transport(request: TraceRequest) -> Transport:
    try:
        transport = Transport(request.protocol or Transport.ICMP)
    except ValueError:
        known = ", ".join(Transport)
        raise Refusal(Kind.INVALID, f"protocol {request.protocol[:32]!r} is none of {known}") from None
    if request.dst_port and transport is Transport.ICMP:
        raise Refusal(Kind.INVALID, "dst_port: ICMP has no ports; say protocol tcp or udp")
    if not 0 <= request.dst_port <= 0xFFFF:
        raise Refusal(Kind.INVALID, f"dst_port {request.dst_port}: use 1 to 65535, or 0 for the usual one")
    if request.ip_version not in (0, 4, 6):
        raise Refusal(Kind.INVALID, f"ip_version {request.ip_version}: use 4, 6, or 0 for either")
    return transport


def _addresses(key: AttachmentKey, names: Names) -> Collection[Address]:
    held = names.held(key)
    return names.own if key == NODE_KEY or held is None else [interface.ip for interface in held.addresses]


def _destination(text: str, names: Names) -> tuple[Collection[Address], AttachmentKey | None]:
    """Return the addresses that a destination may mean, and the attachment when it is one of this node."""
    key = names.attachment(text)
    try:
        address = ip_address(text)
    except ValueError:
        if key is None:
            if (node := names.peer(text)) is not None:
                # A node has the first address of each of its subnets (docs/architecture.md).
                return [subnet[1] for subnet in node.subnets], None
            names.source(text)  # says what is wrong with it
            raise Refusal(Kind.INVALID, f"dst {text!r} is on another node: give its address") from None
        return _addresses(key, names), key
    if address.version == 6 and address.scope_id is not None:
        raise Refusal(Kind.INVALID, f'dst {text!r}: leave the zone "%{address.scope_id}" away')
    return [address], key


def _pair(own: Collection[Address], theirs: Collection[Address], request: TraceRequest) -> tuple[Address, Address]:
    """Choose addresses of one IP version."""
    for version in (request.ip_version,) if request.ip_version else (4, 6):
        for dst in (each for each in theirs if each.version == version):
            for src in (each for each in own if each.version == version):
                return src, dst
    has = ", ".join(map(str, own)) or "no address"
    wanted = f"IPv{request.ip_version}" if request.ip_version else "one IP version"
    raise Refusal(
        Kind.INVALID,
        f"{request.src} ({has}) and {request.dst} ({', '.join(map(str, theirs)) or 'no address'}) have no addresses of {wanted} in common",
    )
