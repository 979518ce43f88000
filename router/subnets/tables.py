"""The subnet table in force: checked before it replaces the last, versioned, and kept over restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from router.config import Settings
from router.errors import Kind, Refusal
from router.journal import Journal
from router.model import Node, Prefix, SubnetTable
from router.subnets.check import check


class Tables:
    """Holds the table and changes it whole. Thread-safe; `apply` is called with one change at a time."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        apply: Callable[[SubnetTable], None],
        announce: Callable[[SubnetTable], None],
    ) -> None:
        """`apply` puts a checked table into force; what it raises leaves the old one there. `announce` tells of it."""
        self._settings = settings
        self._journal = journal
        self._apply = apply
        self._announce = announce
        self._lock = threading.Lock()
        self._table = journal.load_table() or SubnetTable(0)
        self._since_s = time.time()
        self.error = ""
        """Why the newest table was refused; empty when it is in force."""

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
            check(nodes, self._settings.networks, self._settings.node, self._settings.underlay)
            if nodes != self._table.nodes:
                new = SubnetTable(self._table.version + 1, nodes)
                self._journal.save_table(new)
                self._table = new
            return self._table

    def confirm(self) -> SubnetTable:
        """Return the last table in force, checked against settings that may have changed since. Raise Refusal."""
        if self._table.nodes:
            check(self._table.nodes, self._settings.networks, self._settings.node, self._settings.underlay)
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
        if self._settings.subnets_file is not None:
            raise Refusal(
                Kind.STATE,
                f"the subnet table of this router comes from {self._settings.subnets_file}: change it there, "
                "or run the router without --subnets",
            )

    def _put(self, nodes: tuple[Node, ...]) -> SubnetTable:
        check(nodes, self._settings.networks, self._settings.node, self._settings.underlay)
        if nodes != self._table.nodes:
            old, new = self._table, SubnetTable(self._table.version + 1, nodes)
            # On disk first, so that what is in force is never lost; seen by others last, so that what is seen is in force.
            self._journal.save_table(new)
            try:
                self._apply(new)
            except BaseException:
                self._journal.save_table(old)
                raise
            self._table = new
            self._announce(new)
        self._since_s = time.time()
        self.error = ""
        return self._table
