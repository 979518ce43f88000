"""What a router answers about packets, as plain values. Names and meaning of the fields are those of docs/reference/api.md."""

from __future__ import annotations

from dataclasses import dataclass

from shim.answers import AttachmentKey, Endpoint


@dataclass(frozen=True, slots=True)
class FiveTuple:
    """Which packets belong together; ports are type and code of ICMP."""

    src: str
    dst: str
    protocol: int
    src_port: int
    dst_port: int

    def __str__(self) -> str:
        word = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp"}.get(self.protocol, f"proto {self.protocol}")
        if self.protocol in (1, 58):
            return f"{word} {self.src} → {self.dst} type {self.src_port} code {self.dst_port}"
        if not (self.src_port or self.dst_port):
            return f"{word} {self.src} → {self.dst}"
        return f"{word} {_with_port(self.src, self.src_port)} → {_with_port(self.dst, self.dst_port)}"


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Party:
    """One end: an attachment of the node or a peer, and what people call it."""

    attachment: AttachmentKey | None
    endpoint: Endpoint | None
    name: str


@dataclass(frozen=True, slots=True)
class TraceStep:
    """A decision, a probe, or the conclusion."""

    kind: str
    node: str
    verdict: str
    reason: str
    target: str
    mtu_bytes: int
    hop: int
    address: str
    rtt_s: float | None
    text: str
    reached: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets of one flow that went no further for one reason."""

    source: Party
    reason: str
    flow: FiveTuple | None
    packets: int
    first_s: float
    last_s: float
    packet_bytes: int
    limit_bytes: int
    text: str


@dataclass(frozen=True, slots=True)
class ListDropsResponse:
    """What was dropped lately, newest first."""

    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class CaptureChunk:
    """Whole blocks of a pcapng file."""

    pcapng: bytes
    packets: int
    lost: int


@dataclass(frozen=True, slots=True)
class Flow:
    """What was seen of a flow since it was last told of; without flow and source: the rest."""

    flow: FiveTuple | None
    source: Party | None
    target: Party | None
    verdict: str
    reason: str
    packets: int
    bytes: int
    sampled: int
    first_s: float
    last_s: float
    latency_s: float | None
