"""What a trace is asked and what it tells: names and meaning as in podwire.v1. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique

from router.model import VerdictKind


@unique
class StepKind(StrEnum):
    """What a step tells."""

    DECISION = "decision"
    PROBE = "probe"
    CONCLUSION = "conclusion"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A packet to trace; as a stranger wrote it."""

    src: str
    dst: str
    protocol: str = ""
    dst_port: int = 0
    packet_bytes: int = 0
    dont_fragment: bool = False
    dry_run: bool = False
    ip_version: int = 0


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of a trace."""

    kind: StepKind
    node: str = ""
    verdict: VerdictKind | None = None
    reason: str = ""
    target: str = ""
    mtu_bytes: int = 0
    hop: int = 0
    address: str = ""
    rtt_s: float | None = None
    text: str = ""
    reached: bool = False
