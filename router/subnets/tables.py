"""The subnet table in force: checked before it replaces the last, versioned, and kept over restarts."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from router.config import Settings
from router.errors import Kind, Refusal
from router.journal import Journal
from router.model import Node, Prefix, SubnetTable
from router.subnets.check import Checked
from router.subnets.difference import Difference

_REMEMBER_EVERY_S = 5.0
_VERSIONS_MISSED = 10_000
"""More than can have come into force since the journal was last written behind; so versions grow over restarts too."""

_log = logging.getLogger(__name__)


class Tables:
    """Holds the table and changes it whole. Thread-safe; `apply` is called with one change at a time.

    A table that nobody else keeps is on disk before it is in force. One from a store of its own (etcd, Kubernetes) is the
    store's to keep; the journal only remembers it for a start without the store, and is written some seconds behind.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        apply: Callable[[SubnetTable], None],
        announce: Callable[[SubnetTable], None],
        remember_every_s: float = _REMEMBER_EVERY_S,
    ) -> None:
        """`apply` puts a checked table into force; what it raises leaves the old one there. `announce` tells of it.

        `remember_every_s`: how far the journal may be behind a store; infinite: it is written at `close` only.
        """
        self._settings = settings
        self._journal = journal
        self._apply = apply
        self._announce = announce
        self._lock = threading.Lock()
        self._checked = Checked(settings.networks, settings.node, settings.underlay)
        self._table = journal.load_table() or SubnetTable(0)
        self._memory: _Memory | None = None
        if settings.etcd is not None or settings.kubernetes is not None:
            self._memory = _Memory(journal, remember_every_s)
            self._table = SubnetTable(self._table.version and self._table.version + _VERSIONS_MISSED, self._table.nodes)
        self._since_s = time.time()
        self.error = ""
        """Why the newest table was refused; empty when it is in force."""

    def close(self) -> None:
        """Write what the journal does not have yet. May be called twice."""
        if self._memory is not None:
            self._memory.close()

    def flush(self) -> None:
        """Write what the journal does not have yet."""
        if self._memory is not None:
            self._memory.flush()

    @property
    def current(self) -> SubnetTable:
        """The table in force."""
        return self._table

    @property
    def age_s(self) -> float:
        """Seconds since it was last confirmed by its source, or changed."""
        return time.time() - self._since_s

    def own_subnets(self, table: SubnetTable | None = None) -> tuple[Prefix, ...]:
        """Return this node's subnets in a table, the one in force if not told otherwise."""
        nodes = (table or self._table).nodes
        return tuple(subnet for node in nodes if node.name == self._settings.node for subnet in node.subnets)

    def prepare(self, nodes: tuple[Node, ...]) -> SubnetTable:
        """Take the first table a source gives, before there is anything to apply it to. Raise Refusal."""
        with self._lock:
            rows = self._checked.check(nodes)
            if nodes != self._table.nodes:
                new = SubnetTable(self._table.version + 1, nodes)
                self._save(new)
                self._table = new
            self._accept(nodes, rows)
            return self._table

    def confirm(self) -> SubnetTable:
        """Return the last table in force, checked against settings that may have changed since. Raise Refusal."""
        with self._lock:
            nodes = self._table.nodes
            if nodes:
                self._accept(nodes, self._checked.check(nodes))
            return self._table

    def adopt(self, nodes: tuple[Node, ...]) -> SubnetTable:
        """Take over what the source says, as the next version if it says something new. Raise Refusal."""
        with self._lock:
            return self._put(nodes)

    def replace(self, nodes: tuple[Node, ...], expected_version: int | None) -> SubnetTable:
        """Replace the table for a caller who knows it at a version. Raise Refusal(CONFLICT) when that has moved."""
        with self._lock:
            self._check_writable()
            if expected_version is not None and expected_version != self._table.version:
                raise Refusal(
                    Kind.CONFLICT,
                    f"the subnet table is at version {self._table.version}, not {expected_version}: read it and try again",
                )
            return self._put(nodes)

    def upsert(self, node: Node) -> SubnetTable:
        """Add a node, or replace the one of its name."""
        with self._lock:
            self._check_writable()
            others = tuple(other for other in self._table.nodes if other.name != node.name)
            kept = tuple(node if other.name == node.name else other for other in self._table.nodes)
            return self._put(kept if len(others) < len(self._table.nodes) else (*others, node))

    def remove(self, name: str) -> SubnetTable:
        """Take a node out. Raise Refusal(NOT_FOUND) when it is not in the table."""
        with self._lock:
            self._check_writable()
            others = tuple(other for other in self._table.nodes if other.name != name)
            if len(others) == len(self._table.nodes):
                raise Refusal(Kind.NOT_FOUND, f"no node {name!r} in the subnet table")
            return self._put(others)

    def _check_writable(self) -> None:
        settings = self._settings
        if settings.subnets_file is not None:
            where, instead, option = str(settings.subnets_file), "change it there", "--subnets"
        elif settings.etcd is not None:
            where = f"etcd at {', '.join(settings.etcd.endpoints)}"
            instead, option = "nodes take their subnets there themselves", "--etcd"
        elif settings.kubernetes is not None:
            where, instead, option = "the Nodes of Kubernetes", "change them there", "--kubernetes"
        else:
            return
        raise Refusal(
            Kind.STATE,
            f"the subnet table of this router comes from {where}: {instead}, or run the router without {option}",
        )

    def _put(self, nodes: tuple[Node, ...]) -> SubnetTable:
        rows = self._checked.check(nodes)
        if nodes != self._table.nodes:
            old, new = self._table, SubnetTable(self._table.version + 1, nodes)
            # On disk first, so that what is in force is never lost; seen by others last, so that what is seen is in force.
            self._save(new)
            try:
                self._apply(new)
            except BaseException:
                self._save(old)
                raise
            self._table = new
            self._announce(new)
        self._accept(nodes, rows)
        self._since_s = time.time()
        self.error = ""
        return self._table

    def _accept(self, nodes: tuple[Node, ...], rows: Difference) -> None:
        self._checked.accept(nodes, rows)
        if nodes is not self._table.nodes:  # as good as equal; but the source's own objects are known again at a glance
            self._table = SubnetTable(self._table.version, nodes)

    def _save(self, table: SubnetTable) -> None:
        if self._memory is None:
            self._journal.save_table(table)
        else:
            self._memory.note(table)


class _Memory:
    """Keeps a table in the journal that its store keeps too: late, and so that many changes cost one write. Thread-safe."""

    def __init__(self, journal: Journal, every_s: float) -> None:
        self._journal = journal
        self._every_s = every_s
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._newest: SubnetTable | None = None
        """None: the journal has it."""
        self._timer: threading.Timer | None = None
        self._closed = False

    def note(self, table: SubnetTable) -> None:
        """Take a table; it is on disk a while later. Waits for no disk."""
        with self._lock:
            self._newest = table
            if self._timer is None and not self._closed and self._every_s < math.inf:
                self._timer = threading.Timer(self._every_s, self._write)
                self._timer.name = "subnets-memory"
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write what is not written yet, and nothing afterwards."""
        self._closed = True
        self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._write()

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                table, self._newest, self._timer = self._newest, None, None
            if table is not None:
                try:
                    self._journal.save_table(table)
                except Refusal as refusal:  # the store has it still
                    _log.error("the subnet table could not be remembered: %s", refusal.message)
