"""Everything that answers questions about packets, in one place: what the control edge is handed."""

from __future__ import annotations

from router.engine.interface import Engine
from router.observe.names import Names


class Observatory:
    """Thread-safe; `close` ends what runs."""

    def __init__(self, names: Names, engine: Engine) -> None:
        self.names = names
        self._engine = engine

    def close(self) -> None:
        """End every stream."""
