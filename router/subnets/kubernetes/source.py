"""The Nodes of Kubernetes as a source of subnets: list, then watch from there on; two threads.

follow  asks the API server, and queues what it says    tell  gathers what is queued, and tells the listener

The server ends each watch after a minute, and the next goes on where it ended. A watch that breaks is begun again from the
last resourceVersion; one that the server has forgotten (410) by a new list. Nothing that goes wrong makes a table smaller.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from router.config import Kubernetes
from router.errors import Kind, Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.backoff import Backoff
from router.subnets.kubernetes.api import NodeApi, Pace, Trouble, Watch
from router.subnets.kubernetes.rows import Roster, Row, name_of, row_of, version_of
from router.subnets.source import Listener, SourceState

log = logging.getLogger(__name__)

_Listed = Mapping[str, Row]
"""All Nodes there are."""
_Seen = tuple[str, Row | None]
"""One Node, or that it is no more."""
_FEW_BREAKS = 2
"""A connection that breaks now and then is no news; a proxy that ends every watch as it begins is."""
_STOP_S = 2.0
"""A thread that waits for an answer may be left behind: it says nothing more."""


class KubernetesSource:
    """See `router.subnets.source.Source`."""

    def __init__(
        self,
        settings: Kubernetes,
        own_node_name: str,
        underlay: Endpoint,
        networks: tuple[Prefix, ...],
        pace: Pace = Pace(),  # noqa: B008 - frozen
    ) -> None:
        """Load library and configuration; nothing is asked yet. Raise Refusal when either is missing or wrong."""
        self._api = NodeApi(settings, pace)
        self._pace = pace
        self._underlay = underlay
        self._networks = networks
        self._roster = Roster(own_node_name)
        self._version = ""
        """resourceVersion to watch from; empty: list first."""
        self._told: tuple[Node, ...] | None = None
        self._queue: queue.SimpleQueue[_Listed | _Seen | SourceState | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._opening = threading.Lock()
        self._watch: Watch | None = None
        self._telling = threading.Lock()
        self._threads: tuple[threading.Thread, ...] = ()
        self._opened = False
        """Whether the last watch began."""
        self._breaks = 0
        """How many broke off in a row with nothing seen."""
        self._confirmed_s = 0.0
        self._away = "not asked yet"
        self._refused = ""
        self._remarks = ""

    def read(self) -> tuple[Node, ...] | None:
        """Return the table; None when the API server does not answer, or knows no Node that has a subnet.

        Raise Refusal when it does not let us read Nodes.
        """
        try:
            self._roster.replace(self._list(time.monotonic() + self._pace.read_s))
        except Trouble as trouble:
            if trouble.denied:
                raise Refusal(Kind.STATE, trouble.message) from None
            self._away, self._version = trouble.message, ""
            return None
        self._away, self._remarks = "", self._roster.remarks()
        self._told = self._roster.nodes or None
        return self._told

    def start(self, listener: Listener) -> None:
        """Tell of every change from now on."""
        if self._threads:
            raise RuntimeError("already started")
        self._threads = (
            threading.Thread(target=self._follow, name="kubernetes-follow", daemon=True),
            threading.Thread(target=self._tell, args=(listener,), name="kubernetes-tell", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; no call to the listener comes afterwards. May be called twice, not from such a call."""
        self._stopped.set()
        self._queue.put(None)
        with self._opening:
            if self._watch is not None:
                self._watch.interrupt()
        with self._telling:
            pass
        for thread in self._threads:
            thread.join(_STOP_S)
        self._api.close()

    def state(self) -> SourceState:
        """Say how it stands."""
        error = self._away or self._refused or self._remarks
        return SourceState("kubernetes", self._api.host, not self._away, self._confirmed_s, error)

    # Asking

    def _follow(self) -> None:
        failing, backoff = False, Backoff(self._pace.most_wait_s, self._pace.first_wait_s)
        while not self._stopped.is_set():
            began_s, failed, self._opened = time.monotonic(), True, False
            try:
                if not self._version:
                    self._queue.put(self._list())
                    self._came()
                self._watch_on()
                failed = False
            except Trouble as trouble:
                if trouble.gone:
                    self._version = ""
                elif trouble.silent or (self._breaks > _FEW_BREAKS if self._opened else failing):
                    self._went(trouble.message)
            except Exception:
                log.exception("following the Nodes of Kubernetes met a bug, and begins afresh")
                self._version = ""
            if time.monotonic() - began_s >= self._pace.short_s:
                failing, self._breaks = False, 0
                backoff.reset()
            elif not failed:
                failed = True
            if failed:
                failing = True
                self._stopped.wait(backoff.next_s())

    def _list(self, deadline_s: float = float("inf")) -> dict[str, Row]:
        """Read all Nodes; only a whole list is one. Raise Trouble."""
        found: dict[str, Row] = {}
        listed = ""
        for items, version in self._api.pages():
            listed = version
            for item in items:
                try:
                    found[name_of(item)] = row_of(item, self._networks, self._underlay)
                except ValueError as error:
                    raise Trouble(f"API server {self._api.host}: it lists {error}") from None
            if time.monotonic() > deadline_s or self._stopped.is_set():
                raise Trouble(f"API server {self._api.host}: it is too slow, after {len(found)} Nodes")
        self._version, self._confirmed_s = listed, time.monotonic()
        return found

    def _watch_on(self) -> None:
        """Watch until the server ends it. Raise Trouble."""
        watch = self._api.watch(self._version)
        try:
            with self._opening:
                self._watch = watch
                if self._stopped.is_set():
                    return
            self._opened = True
            if not self._breaks:
                self._came()
            self._breaks += 1
            for kind, item in watch:
                try:
                    version = version_of(item)
                    if kind in ("ADDED", "MODIFIED"):
                        self._queue.put((name_of(item), row_of(item, self._networks, self._underlay)))
                    elif kind == "DELETED":
                        self._queue.put((name_of(item), None))
                    elif kind != "BOOKMARK":
                        raise ValueError(f"an event of type {kind!r}")
                except ValueError as error:
                    raise Trouble(f"API server {self._api.host}: it sends {error}") from None
                self._version, self._breaks = version, 0
                self._came()
            self._breaks = 0
        finally:
            with self._opening:
                self._watch = None
            watch.close()

    def _came(self) -> None:
        """Note that the server answers."""
        self._confirmed_s = time.monotonic()
        if self._away:
            self._away = ""
            self._queue.put(self.state())

    def _went(self, why: str) -> None:
        """Note that it does not."""
        first, self._away = not self._away, why
        if first:
            log.debug("%s", why)
            self._queue.put(self.state())

    # Telling

    def _tell(self, listener: Listener) -> None:
        while (message := self._queue.get()) is not None:
            # What comes close behind comes along: an event is about one Node, but changes come in swarms.
            until_s = time.monotonic() + self._pace.gather_s
            while message is not None:
                if isinstance(message, SourceState):
                    self._call(partial(listener.connection_changed, message))
                else:
                    self._take(message)
                try:
                    message = self._queue.get(timeout=max(0.0, until_s - time.monotonic()))
                except queue.Empty:
                    break
            self._remarks = self._roster.remarks()
            self._call(partial(self._tell_table, listener))
            if message is None:
                return

    def _take(self, message: _Listed | _Seen) -> None:
        if isinstance(message, tuple):
            name, row = message
            if row is None:
                self._roster.remove(name)
            else:
                self._roster.put(name, row)
        else:
            self._roster.replace(message)

    def _tell_table(self, listener: Listener) -> None:
        nodes = self._roster.nodes
        if nodes == self._told:
            return
        self._told = nodes
        try:
            if not nodes:
                # More likely a mistake than meant: this router runs on a Node. No error makes a table empty.
                raise Refusal(Kind.INVALID, f"API server {self._api.host} has no Node with a subnet; {self._remarks}")
            listener.table_changed(nodes)
            self._refused = ""
        except Refusal as refusal:
            self._refused = refusal.message
            listener.table_refused(refusal.message)

    def _call(self, call: Callable[[], None]) -> None:
        """Call the listener unless `stop` was called, and outlive a bug in it."""
        with self._telling:
            if self._stopped.is_set():
                return
            try:
                call()
            except Exception:
                log.exception("what Kubernetes says of its Nodes could not be told")
