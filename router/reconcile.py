"""Release what is gone without anybody having said so: a thread that looks once a second.

detachments that found no router (tombstones.py) → namespaces that vanished (attachments.py)

What a runtime no longer knows is its own to say: it calls Sync.
"""

from __future__ import annotations

import logging
import threading

from router.attachments import Attachments
from router.errors import Refusal
from router.takeover.gate import Gate
from router.tombstones import Tombstones

_log = logging.getLogger(__name__)

PERIOD_S = 1.0
"""A stat a Pod and a directory listing each time: 0.5 ms with 200 Pods."""


class Reconciler:
    """Looks from `start` to `stop`; `round` looks once."""

    def __init__(self, attachments: Attachments, tombstones: Tombstones, gate: Gate) -> None:
        self._attachments = attachments
        self._gate = gate
        self._tombstones = tombstones
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconcile", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the round it is in."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def round(self) -> None:
        """Look once. What cannot be released stays for the next time."""
        if self._gate.closed:
            return
        try:
            with self._gate.passing():
                self._tombstones.bury(self._attachments.bury)
                self._attachments.release_vanished()
        except Refusal as refusal:
            _log.warning("reconcile: %s", refusal.message)

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                self.round()
            except Exception:  # noqa: BLE001 - a bug must not end the watch
                _log.exception("reconcile failed: a bug of the router")
