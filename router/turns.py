"""One at a time for each key: calls about one attachment wait for each other, about different ones do not."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Turns:
    """Thread-safe; who has a key's turn must not ask for it again."""

    def __init__(self) -> None:
        self._busy: set[Hashable] = set()
        self._idle = threading.Condition()

    @contextmanager
    def of(self, key: Hashable) -> Iterator[None]:
        """Be the only one to work on a key."""
        with self._idle:
            self._idle.wait_for(lambda: key not in self._busy)
            self._busy.add(key)
        try:
            yield
        finally:
            with self._idle:
                self._busy.discard(key)
                self._idle.notify_all()
