"""Everything that answers questions about packets, in one place: what the control edge is handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.engine.interface import Engine
from router.errors import Kind, Refusal
from router.events import EventLog
from router.model import Endpoint
from router.observe.capture import Captures
from router.observe.drops import Drops
from router.observe.flows import Flows
from router.observe.names import Names
from router.observe.taps import Taps
from router.observe.trace.tracer import Tracer


class Observatory:
    """Thread-safe; `close` ends what runs."""

    def __init__(
        self,
        names: Names,
        engine: Engine,
        events: EventLog,
        here: Endpoint,
        round_trips: Callable[[], Mapping[Endpoint, float]] = dict,
        tracer: Tracer | None = None,
    ) -> None:
        """`here` is where this router receives; `round_trips` is as for `Flows`."""
        self.names = names
        self._engine = engine
        self._tracer = tracer
        self.drops = Drops(engine, names)
        self.taps = Taps(engine, events)
        self.captures = Captures(self.taps, names, here)
        self.flows = Flows(self.taps, round_trips)

    @property
    def tracer(self) -> Tracer:
        """What traces packets. Refusal where nothing does."""
        if self._tracer is None:
            raise Refusal(Kind.UNAVAILABLE, "this router traces no packets")
        return self._tracer

    def close(self) -> None:
        """End every stream. Can be repeated."""
        self.taps.close()
