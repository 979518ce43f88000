"""Sightings to a pcapng file: an interface for each party and side, and in a comment what became of each packet.

A packet is on the interface of who handed it over ("web-1 before the router", inbound), and once more on that of who got it
("node-2 after the router", outbound).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from importlib import metadata
from ipaddress import IPv6Address
from platform import release
from typing import Final, NamedTuple

from router.engine.interface import Side, Sighting, Source
from router.model import AttachmentKey, DropReason, Endpoint, VerdictKind
from router.observe import pcapng, reasons
from router.observe.pcapng import Direction
from router.wire.packet import UDP, checksum, ones_sum, pseudo_sum

CHUNK_BYTES = 256 * 1024
"""A chunk is finished when it has so many bytes: it has one packet more at most."""
MOST_INTERFACES = 4096
"""Parties and sides that get an interface of their own; the rest share one a side."""
_MOST_FATES = 4096
_NAMES_AGE_S = 5.0
_LEAST_NAMES_AGE_S = 0.1

STRANGERS, OTHERS = "strangers", "others"
_DATAGRAMS: Final = frozenset((DropReason.UNKNOWN_PEER, DropReason.BAD_ENCAPSULATION, DropReason.WRONG_NETWORK))
"""Of what is dropped for these there is no inner packet, and the datagram was copied."""
_TTL: Final = 64
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_UDP = struct.Struct(">HHHH")
_MOST_IP_BYTES: Final = 0xFFFF


class _Fate(NamedTuple):
    """What packets have in common that came from one party and went to one."""

    interface: int
    options: bytes
    is_datagram: bool


class Recording:
    """One file as it grows. For one thread."""

    def __init__(self, naming: Callable[[], Callable[[Source], str]], here: Endpoint, snap_bytes: int) -> None:
        """`naming` is of observe.names.Names; `here` is the router's endpoint."""
        self._naming = naming
        self._name = naming()
        self._named_at_s = time.monotonic()
        self._here = here
        self._snap_bytes = snap_bytes
        self._interfaces: dict[tuple[Source | str, Side], int] = {}
        self._counts: list[int] = []
        self._fates: dict[tuple[object, ...], _Fate] = {}
        self._last: Sighting | None = None
        self._fate: _Fate | None = None
        """What is said of the last one."""
        self._started_ns = time.time_ns()
        self.packets = 0
        """How many are in it."""

    def head(self) -> bytes:
        """Return what the file begins with."""
        return pcapng.section(f"podwire {metadata.version('podwire')}", f"Linux {release()}")

    def chunks(self, seen: Iterable[Sighting]) -> Iterator[bytes]:
        """Return the blocks of sightings in pieces; what is counted is what was returned."""
        if time.monotonic() >= self._named_at_s + _NAMES_AGE_S:
            self._learn_names()
        blocks: list[bytes] = []
        size_bytes = 0
        for sighting in seen:
            for block in self._blocks(sighting):
                blocks.append(block)
                size_bytes += len(block)
            if size_bytes >= CHUNK_BYTES:
                yield b"".join(blocks)
                blocks, size_bytes = [], 0
        if blocks:
            yield b"".join(blocks)

    def tail(self, lost: int) -> bytes:
        """Return what it ends with: the statistics of each interface; of losses nobody knows which."""
        ended_ns = time.time_ns()
        said = "packets that were lost because they came too fast are counted at the first interface, for all of them"
        return b"".join(
            pcapng.statistics(
                number, self._started_ns, ended_ns, delivered, 0 if number else lost, "" if number else said
            )
            for number, delivered in enumerate(self._counts)
        )

    def _blocks(self, sighting: Sighting) -> Iterator[bytes]:
        last, fate = self._last, self._fate
        # Most packets are followed by one of the same flow: that is cheaper to see than to look up.
        if (
            last is None
            or fate is None
            or last.source is not sighting.source
            or last.target is not sighting.target
            or last.side is not sighting.side
            or last.verdict is not sighting.verdict
            or last.reason is not sighting.reason
            or last.packets != sighting.packets
        ):
            fate = yield from self._look_up(sighting)
            self._last, self._fate = sighting, fate
        found, packet_bytes = sighting.packet, sighting.packet_bytes
        if fate.is_datagram and isinstance(sighting.source, Endpoint):
            header = _outer(sighting.source, self._here, found, packet_bytes)
            found, packet_bytes = (header + found)[: self._snap_bytes], len(header) + packet_bytes
        self._counts[fate.interface] += 1
        self.packets += 1
        yield pcapng.packet(fate.interface, sighting.time_ns, found, packet_bytes, fate.options)

    def _look_up(self, sighting: Sighting) -> Generator[bytes, None, _Fate]:
        """Return what is said of such packets, and yield their interface before its first packet."""
        before = sighting.side is Side.BEFORE
        party = sighting.source if before else sighting.target
        known = STRANGERS if sighting.reason is DropReason.UNKNOWN_PEER else OTHERS if party is None else party
        other = None if before else sighting.source
        key = (sighting.side, known, other, sighting.target, sighting.verdict, sighting.reason, sighting.packets)
        fate = self._fates.get(key)
        if fate is not None:
            return fate
        number = self._interfaces.get((known, sighting.side))
        if number is None and len(self._interfaces) >= MOST_INTERFACES:
            known = OTHERS
            number = self._interfaces.get((known, sighting.side))
        if number is None:
            number = self._interfaces[known, sighting.side] = len(self._interfaces)
            self._counts.append(0)
            name = known if isinstance(known, str) else self._name_of(known)
            yield pcapng.interface(f"{name} {sighting.side.value} the router", _describe(known), self._snap_bytes)
        if len(self._fates) >= _MOST_FATES:
            self._fates.clear()
        options = pcapng.packet_options(Direction.INBOUND if before else Direction.OUTBOUND, self._say(sighting))
        fate = self._fates[key] = _Fate(number, options, sighting.reason in _DATAGRAMS)
        return fate

    def _say(self, sighting: Sighting) -> str:
        if sighting.reason is not None:
            word = "rejected" if sighting.verdict is VerdictKind.REJECT else "dropped"
            said = f"{word}: {sighting.reason.value} ({reasons.meaning(sighting.reason)})"
        else:
            word = "tunnelled" if sighting.verdict is VerdictKind.TUNNEL else "delivered"
            said = f"{word} to {self._name_of(sighting.target)}" if sighting.target is not None else word
        if sighting.side is Side.AFTER:
            said += (
                f", from {self._name_of(sighting.source)}" if sighting.source is not None else ", made by the router"
            )
        return said if sighting.packets == 1 else f"{said}; stands for {sighting.packets} packets"

    def _name_of(self, source: Source) -> str:
        name = self._name(source)
        if name == str(source) and time.monotonic() >= self._named_at_s + _LEAST_NAMES_AGE_S:
            self._learn_names()  # a Pod that came after the names were looked at
            name = self._name(source)
        return name

    def _learn_names(self) -> None:
        self._name = self._naming()
        self._named_at_s = time.monotonic()
        self._fates.clear()
        self._last = None


def _describe(known: Source | str) -> str:
    if isinstance(known, str):
        return "datagrams from no known peer" if known == STRANGERS else "more parties than fit"
    if isinstance(known, AttachmentKey):
        return f"interface {known}" if known.sandbox_id else f"interface {known.if_name} of the node itself"
    return f"router at {known}"


def _outer(source: Endpoint, here: Endpoint, datagram: bytes, datagram_bytes: int) -> bytes:
    """Return the IP and UDP header that a datagram must have had; hop limit and the like are made up."""
    udp_bytes = min(_UDP.size + datagram_bytes, _MOST_IP_BYTES - _IPV4.size)
    src, dst = source.address.packed, here.address.packed
    if len(src) != len(dst):  # a dual-stack socket
        dst = bytes(len(src))
    udp = _UDP.pack(source.port, here.port, udp_bytes, 0)
    if isinstance(source.address, IPv6Address):
        if len(datagram) == datagram_bytes:  # RFC 8200 section 8.1: never without
            total = ones_sum(udp, pseudo_sum(src + dst, UDP, udp_bytes))
            udp = _UDP.pack(source.port, here.port, udp_bytes, checksum(datagram, total) or 0xFFFF)
        return _IPV6.pack(6 << 28, udp_bytes, UDP, _TTL, src, dst) + udp
    fields = (0x45, 0, _IPV4.size + udp_bytes, 0, 0x4000, _TTL, UDP)
    head = _IPV4.pack(*fields, 0, src, dst)
    return _IPV4.pack(*fields, checksum(head), src, dst) + udp
