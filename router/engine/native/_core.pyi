"""What src/python.rs gives Python."""

from collections.abc import Sequence
from typing import Any

Counts = tuple[int, int, int, int, int, int, int, int, int, list[int]]
"""Received packets, bytes, frames; delivered, tunnelled; sent packets, bytes; ICMP errors; control packets; drops by reason."""

Name = tuple[int | None, bytes, int]
"""An attachment's number, or a packed address and a port."""

DroppedRow = tuple[Name, int, tuple[bytes, bytes, int, int, int] | None, int, int, int, int, int]
"""Source; reason; packed source and destination, protocol, ports; packets; first and last time; length, limit in bytes."""

TapRow = tuple[int, tuple[int, int, int] | None, bool, Sequence[tuple[int, int, int, int]], int, int, bool, bool, bool]
"""Number; kind, slot and serial of the party, if it is there; whether there is to be one; program; most bytes to copy; one in
how many; before; after; dropped only."""

SightingRow = tuple[int, int, bool, Name | None, Name | None, str, int | None, int, int, bytes]
"""Tap; time; whether before; source; target; verdict; reason; packets; length in bytes; the packet."""

DROP_REASONS: list[str]

class Core:
    def __init__(
        self,
        socket: int,
        *,
        threads: int,
        vni: int,
        mtu_bytes: int,
        icmp_errors_per_s: int,
        max_segments: int,
        tun_checksum: bool,
        tun_tso: bool,
        tun_uso: bool,
        udp_segment: bool,
        spin_ns: int = 0,
        spin_percent: int = 100,
    ) -> None: ...
    def replace_routes(
        self,
        prefixes: Sequence[tuple[bytes, int, int]],
        leads: Sequence[tuple[int, int]],
        peers: Sequence[tuple[int, int, bytes, int, bool, int | None, bool, int]],
        egress: bool,
        node_addresses: Sequence[bytes],
        epoch: int,
    ) -> None: ...
    def attach(
        self,
        slot: int,
        number: int,
        fd: int,
        addresses: Sequence[bytes],
        is_node: bool,
        mtu_bytes: int,
        ingress: tuple[int, int] | None,
        egress: tuple[int, int] | None,
    ) -> int: ...
    def detach(self, slot: int) -> Counts: ...
    def decide(self, packet: bytes, kind: int, slot: int) -> tuple[str, int]: ...
    def emit(self, thread: int, packet: bytes, kind: int, slot: int, serial: int) -> bool: ...
    def lower_mtu(self, slot: int, serial: int, mtu_bytes: int) -> None: ...
    def mtu_of(self, slot: int, serial: int) -> int | None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def forward(self, budget: int) -> int: ...
    def counters(self) -> tuple[list[Counts], list[Counts], Counts, Counts, int, int, int, list[int]]: ...
    def drops(self) -> list[DroppedRow]: ...
    def told_of(self) -> list[int]: ...
    def watch(self, taps: Sequence[TapRow]) -> None: ...
    def sightings(self, timeout_s: float) -> tuple[list[SightingRow], list[tuple[int, int]]]: ...
    def exceptions(self, timeout_s: float) -> list[tuple[Any, ...]]: ...
    def nudge(self) -> None: ...
    def sabotage(self) -> None: ...

def run_program(program: Sequence[tuple[int, int, int, int]], packet: bytes) -> int: ...

class Lookup:
    def __init__(self, prefixes: Sequence[tuple[bytes, int, int]]) -> None: ...
    def index(self, packed: bytes) -> int: ...
    def time(self, packed: bytes, each: int, times: int) -> float: ...
