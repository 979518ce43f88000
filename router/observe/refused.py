"""Pods that were not attached lately, and why: who asks for one by name should not only hear that it is not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from router.errors import Refusal
from router.model import AttachmentKey

KEPT = 256


class RefusedPods:
    """The last of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: dict[AttachmentKey, tuple[frozenset[str], float, str]] = {}

    @contextmanager
    def noting(self, key: AttachmentKey, labels: tuple[tuple[str, str], ...]) -> Iterator[None]:
        """Remember it when what is done inside, an attachment, is refused; forget what was refused before when it is not."""
        try:
            yield
        except Refusal as refusal:
            self._note(key, labels, refusal.message)
            raise
        with self._lock:
            self._refused.pop(key, None)

    def _note(self, key: AttachmentKey, labels: tuple[tuple[str, str], ...], why: str) -> None:
        """Let the oldest give way."""
        known = dict(labels)
        name, namespace = known.get("name", ""), known.get("namespace", "")
        words = frozenset((key.sandbox_id, str(key), name, f"{namespace}/{name}" if name and namespace else "")) - {""}
        with self._lock:
            self._refused.pop(key, None)
            while len(self._refused) >= KEPT:
                del self._refused[next(iter(self._refused))]
            self._refused[key] = (words, time.time(), why)

    def why(self, subject: str) -> str:
        """Return why the Pod of that name or id was refused last, and when; empty when it was not."""
        with self._lock:
            found = [(at_s, why) for words, at_s, why in self._refused.values() if subject in words]
        if not found:
            return ""
        at_s, why = max(found)
        return f"its attachment was refused at {time.strftime('%H:%M:%S', time.localtime(at_s))}: {why}"
