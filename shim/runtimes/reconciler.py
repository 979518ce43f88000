"""Rounds of `sync` in a thread beside a router, from its start to its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from shim.client import Client, ClientError
from shim.runtimes.source import Source
from shim.runtimes.sync import sync

_log = logging.getLogger("router.reconcile")
_PATIENCE_S = 1.0


class Reconciler:
    """Asks runtimes every so often, and releases what they do not know."""

    def __init__(self, socket_path: str, sources: Sequence[Source], every_s: float, grace_s: float) -> None:
        self._socket_path = socket_path
        self._sources = sources
        self._every_s = every_s
        self._grace_s = grace_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconcile-runtimes", daemon=True)
        self._said: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin, with a first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round at hand, or leave that to itself: a runtime may be slow to answer, and a router has to go."""
        self._ended.set()
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        with Client(self._socket_path) as client:
            while not self._ended.is_set():
                try:
                    found = sync(client, self._sources, self._grace_s)
                except (ClientError, OSError) as error:
                    _log.warning("runtimes: %s", error)
                except Exception:  # noqa: BLE001 - a bug: the log is to tell of it, and the next round may do better
                    _log.exception("runtimes: this round failed")
                else:
                    for path in found.namespaces:
                        _log.info("removed %s, which its runtime had left", path)
                    if found.failures != self._said:  # once, not every half minute
                        for failure in found.failures:
                            _log.warning("%s; nothing of its Pods is released", failure)
                        self._said = found.failures
                self._ended.wait(self._every_s)
