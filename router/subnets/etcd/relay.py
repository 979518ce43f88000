"""Between the loop that talks to etcd and the daemon: what is told waits here, so that neither waits for the other."""

from __future__ import annotations

import logging
import threading
import time

from router import rest
from router.model import Node
from router.subnets.etcd.member import tell_table
from router.subnets.source import Lease, Listener, SourceState

log = logging.getLogger(__name__)


class Relay:
    """A listener that never blocks, and a thread that tells another one. Of what is overtaken only the newest is told."""

    def __init__(self) -> None:
        """Gather; nothing is told before `start`."""
        self._condition = threading.Condition()
        self._table: tuple[Node, ...] | None = None
        self._told: tuple[Node, ...] | None = None
        self._lease: Lease | None = None
        self._state: SourceState | None = None
        self._messages: list[str] = []
        self._stopped = False
        self._thread: threading.Thread | None = None
        self.refused = ""
        """Why the table that was told last is not in force."""

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        """Tell that later."""
        with self._condition:
            self._table = nodes
            self._condition.notify()

    def table_refused(self, message: str) -> None:
        """Tell that later."""
        with self._condition:
            self._messages.append(message)
            self._condition.notify()

    def connection_changed(self, state: SourceState) -> None:
        """Tell that later."""
        with self._condition:
            self._state = state
            self._condition.notify()

    def lease_changed(self, lease: Lease) -> None:
        """Tell that later."""
        with self._condition:
            self._lease = lease
            self._condition.notify()

    def start(self, listener: Listener, known: tuple[Node, ...] | None) -> None:
        """Tell a listener from now on, who knows a table already."""
        self._told = known
        self._thread = threading.Thread(target=self._run, args=(listener,), name="subnets-told", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell nothing more, once a call that is under way has returned."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, listener: Listener) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._stopped or self._messages or self._table is not None or self._lease or self._state
                )
                if self._stopped:
                    return
                state, lease, table, messages = self._state, self._lease, self._table, self._messages
                self._state = self._lease = self._table = None
                self._messages = []
            try:
                if lease is not None:
                    listener.lease_changed(lease)
                if state is not None:
                    listener.connection_changed(state)
                for message in messages:
                    listener.table_refused(message)
            except Exception:
                log.exception("what etcd says could not be told")
            if table is not None and table != self._told:
                self._told = table
                began_s = time.monotonic()
                self.refused = tell_table(listener, table)
                rest_s = rest.after_s(time.monotonic() - began_s)
                with self._condition:
                    self._condition.wait_for(lambda: self._stopped, rest_s)
