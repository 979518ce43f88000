"""What one thread remembers of the packets it dropped: by source, reason and flow, the last so many.

A flood of flows costs what a few do: they are kept as bytes, and made readable only when somebody asks.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from heapq import merge
from ipaddress import ip_address

from router.engine.interface import DROPS_KEPT, DroppedFlow
from router.engine.ports import Party
from router.model import DropReason, Endpoint
from router.wire.flow import flow_from, flow_key
from router.wire.packet import Buffer

SockAddr = tuple[str, int]
"""A stranger, as the socket says it."""


_Key = tuple[str | SockAddr, int, bytes | None]
"""Source, reason and flow, as what is hashed without a call into Python."""


class _Row:
    """One line of it."""

    __slots__ = ("source", "reason", "packets", "first_ns", "last_ns", "packet_bytes", "limit_bytes")

    def __init__(self, source: Party | SockAddr, reason: DropReason, now_ns: int) -> None:
        self.source = source.source if isinstance(source, Party) else source  # who leaves is not kept
        self.reason = reason
        self.packets = self.packet_bytes = self.limit_bytes = 0
        self.first_ns = self.last_ns = now_ns


class DropLog:
    """For one thread; `flows` between two batches."""

    __slots__ = ("_rows", "_newest")

    def __init__(self) -> None:
        self._rows: OrderedDict[_Key, _Row] = OrderedDict()
        """What was dropped last is last."""
        self._newest: _Key | None = None

    def note(
        self, source: Party | SockAddr, reason: DropReason, packet: Buffer | None, packets: int, packet_bytes: int,
        limit_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Remember `packets` of the flow of `packet`, each of that length; None when they were no packets."""
        name = source.name if isinstance(source, Party) else source
        key = name, id(reason), None if packet is None else flow_key(packet)
        now_ns = time.time_ns()
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= DROPS_KEPT:
                self._rows.popitem(last=False)
            row = self._rows[key] = _Row(source, reason, now_ns)
        elif key != self._newest:
            self._rows.move_to_end(key)
        self._newest = key
        row.packets += packets
        row.last_ns, row.packet_bytes, row.limit_bytes = now_ns, packet_bytes, limit_bytes

    def flows(self) -> list[DroppedFlow]:
        """Return all of it, newest first."""
        return [
            DroppedFlow(
                row.source if not isinstance(row.source, tuple) else Endpoint(ip_address(row.source[0]), row.source[1]),
                row.reason, None if flow is None else flow_from(flow),
                row.packets, row.first_ns, row.last_ns, row.packet_bytes, row.limit_bytes,
            )
            for (_, _, flow), row in reversed(self._rows.items())
        ]  # fmt: skip


def newest_first(logs: Iterable[DropLog]) -> tuple[DroppedFlow, ...]:
    """Return what several threads remember."""
    return tuple(merge(*(log.flows() for log in logs), key=lambda each: each.last_ns, reverse=True))
