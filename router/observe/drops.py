"""What was dropped lately, as people ask for it: by the Pod or peer that sent it or was to get it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple

from router.engine.interface import DroppedFlow, Engine, Source
from router.errors import Kind, Refusal
from router.model import Address, Endpoint
from router.observe import reasons
from router.observe.names import Names

MOST_DROPS = 4096


class Dropped(NamedTuple):
    """Packets of a flow that were dropped, and what that means."""

    found: DroppedFlow
    text: str


_Concerns = Callable[[DroppedFlow], bool]


class Drops:
    """Looks through what the engine remembers. Thread-safe."""

    def __init__(self, engine: Engine, names: Names) -> None:
        self._engine = engine
        self._names = names

    def list(self, subject: str = "") -> tuple[Dropped, ...]:
        """Return what was dropped lately of a subject, of all if it is empty; newest first.

        A subject is a Pod or node, as `Names` knows it, or any address. Refusal when it is neither.
        """
        concerns = self._concerns(subject)
        found = [drop for drop in self._engine.drops() if concerns(drop)][:MOST_DROPS]
        return tuple(Dropped(drop, _text(drop)) for drop in found)

    def _concerns(self, subject: str) -> _Concerns:
        if not subject:
            return lambda _drop: True
        try:
            party = self._names.source(subject)
        except Refusal as refusal:
            if refusal.kind is not Kind.NOT_FOUND:
                raise
            try:
                address = ip_address(subject)
            except ValueError:
                raise refusal from None
            return lambda drop: address in _ends(drop)
        receives = self._names.receives(party)

        def sent(source: Source) -> bool:
            if isinstance(party, Endpoint) and isinstance(source, Endpoint):
                return source.address == party.address  # from another port it is a stranger, and that is the answer
            return source == party

        return lambda drop: sent(drop.source) or (drop.flow is not None and receives(drop.flow.dst))


def _ends(drop: DroppedFlow) -> tuple[Address | None, ...]:
    """Return the addresses that a drop has to do with."""
    outer = drop.source.address if isinstance(drop.source, Endpoint) else None
    return (outer, drop.flow.src, drop.flow.dst) if drop.flow is not None else (outer,)


def _text(drop: DroppedFlow) -> str:
    return reasons.explain(drop.reason, drop.packet_bytes, drop.limit_bytes)
