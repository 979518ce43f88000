"""All members of the network, as the store says and as they change.

    list everything at revision R → watch from R + 1 → the connection ends
      → the same store as before?  yes: watch on from the last change seen    no, or compacted: list everything

A store that comes back may have forgotten everybody: emptied, or because all leases ended while it stood still. Who
lives then comes back within seconds, with the same subnets. So after every time without a connection a row that is gone
is kept for one TTL more, unless a row that is there now has its endpoint or one of its subnets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

from router import rest
from router.errors import Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.backoff import Backoff
from router.subnets.etcd.client import Client
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.layout import Layout, Row, read_row
from router.subnets.etcd.transaction import Change, Get, GetAll, Stored

GATHER_S = 0.05
"""How long changes are gathered before they are told; longer in a storm (rest.py)."""
PROGRESS_S = 10.0
"""After how long a silence the server is asked whether it is there."""

_NOBODY: frozenset[str] = frozenset()

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Connected:
    """How the watch stands. Swapped whole, so that any thread may look."""

    now: bool = False
    confirmed_s: float = 0.0
    """When the rows were last known to be what the store says (loop time: CLOCK_MONOTONIC)."""
    error: str = "the store was not reached yet"
    """Why there is no connection."""
    bad_rows: str = ""
    """What is wrong with rows that are left out."""


@dataclass(frozen=True, slots=True)
class Published:
    """The table as of a revision. Swapped whole."""

    nodes: tuple[Node, ...] = ()
    """By name."""
    by_name: Mapping[str, Node] = field(default_factory=dict)
    """Those that the store says."""
    revision: int = 0


class Follower(Protocol):
    """Whom a roster tells, from its loop."""

    def roster_changed(self) -> None:
        """There are other nodes now, or other rows that are left out; some time after the rows changed."""

    def row_changed(self) -> None:
        """The row of the follower's name is another, or the store is: at once."""

    def connection_changed(self) -> None:
        """The watch was cut off, or is back."""


class Roster:
    """Follows the members of one network, for any number of followers in one event loop."""

    def __init__(self, client: Client, layout: Layout, ttl_s: float) -> None:
        """Take how long leases live; nothing is asked before `run`."""
        self._client = client
        self._layout = layout
        self._ttl_s = ttl_s
        self._silence_s = min(PROGRESS_S, ttl_s / 3)
        self._rows: dict[str, Row] = {}
        self._takers: dict[Endpoint | Prefix, set[str]] = defaultdict(set)
        """Names of the rows that have an endpoint or a subnet."""
        self._kept: dict[str, Node] = {}
        """Nodes whose rows are gone, but perhaps because the store forgot."""
        self._keep_until_s = 0.0
        self._bad: dict[str, str] = {}
        self._resumes = False
        """Whether the watch may go on where it was cut off."""
        self._mark: tuple[int, Stored | None] | None = None
        """What tells this store from another: its cluster, and the network's value with its revision."""
        self._followers: dict[str, list[Follower]] = {}
        self._publishing: asyncio.TimerHandle | None = None
        self._publish_due_s = 0.0
        self._gather_s = GATHER_S
        self._forgetting: asyncio.TimerHandle | None = None
        self.rows: Mapping[str, Row] = MappingProxyType(self._rows)
        """What the store says, by name; at once."""
        self.revision = 0
        """As of when."""
        self.generation = 0
        """Grows when the store is not the one it was; revisions of different generations say nothing of each other."""
        self.published = Published()
        """The table, a moment later."""
        self.loaded = asyncio.Event()
        """Whether it is of the store at all."""
        self.connected = Connected()

    def follow(self, name: str, follower: Follower) -> None:
        """Tell it from now on; `name` is the node whose row it wants to know of at once."""
        self._followers.setdefault(name, []).append(follower)

    def unfollow(self, name: str, follower: Follower) -> None:
        """Tell it no more."""
        self._followers[name].remove(follower)

    def is_taken(self, node: Node) -> bool:
        """Tell whether another's row has its endpoint or one of its subnets."""
        return any(self._takers.get(what, _NOBODY) - {node.name} for what in (node.endpoint, *node.subnets))

    async def run(self) -> None:
        """Follow the store until cancelled."""
        backoff = Backoff()
        try:
            while True:
                try:
                    await self._follow(backoff)
                except EtcdError as error:
                    if error.reason is Reason.COMPACTED:
                        self._resumes = False
                    self._cut_off(error.message)
                await asyncio.sleep(backoff.next_s())
        finally:
            for timer in (self._publishing, self._forgetting):
                if timer is not None:
                    timer.cancel()

    async def _follow(self, backoff: Backoff) -> None:
        if not await self._is_same_store():
            await self._list()
        async with self._client.watch(self._layout.members, self.revision + 1, self._silence_s) as watch:
            self._heard()
            self._back()
            backoff.reset()
            while True:
                seen = await watch.next()
                self._heard()
                for change in seen.changes:
                    self._apply(change)
                    self.revision = max(self.revision, change.revision)

    async def _is_same_store(self) -> bool:
        """Ask whether the watch can go on from where it was cut off."""
        if not self._resumes or self._mark is None or self._mark[1] is None:
            return False
        outcome = await self._client.transact((), (Get(self._layout.config),))
        return (outcome.cluster, outcome.one(0)) == self._mark and outcome.revision >= self.revision

    async def _list(self) -> None:
        outcome = await self._client.transact((), (Get(self._layout.config), GetAll(self._layout.members, limit=1)))
        mark = (outcome.cluster, outcome.one(0))
        revision, stored = await self._client.list_all(self._layout.members)
        self._heard()
        if mark != self._mark or revision < self.revision:
            self.generation += 1
            self._keep_what_is_forgotten()
        self._mark, self.revision, self._resumes = mark, revision, True
        found = {entry.key: entry for entry in stored}
        for name in [name for name in self._rows if self._layout.member(name) not in found]:
            self._remove(name)
        for key in [key for key in self._bad if key not in found]:
            del self._bad[key]
        for entry in stored:
            self._put(entry)
        for followers in self._followers.values():
            for follower in followers:
                follower.row_changed()
        self._publish()

    def _apply(self, change: Change) -> None:
        name = change.key.removeprefix(self._layout.members)
        if change.stored is not None:
            self._put(change.stored)
        else:
            self._bad.pop(change.key, None)
            self._remove(name)
        for follower in self._followers.get(name, ()):
            follower.row_changed()
        if self._publishing is None:
            now_s = self._now_s()
            if now_s - self._publish_due_s > rest.MOST_S:
                self._gather_s = GATHER_S  # the storm is over
            self._publish_due_s = now_s + self._gather_s
            self._publishing = asyncio.get_running_loop().call_at(self._publish_due_s, self._publish)

    def _put(self, stored: Stored) -> None:
        try:
            row = read_row(stored, self._layout)
        except Refusal as refusal:
            self._bad[stored.key] = refusal.message
            name = stored.key.removeprefix(self._layout.members)
            if name in self._rows:  # whoever it was may still be there: its last good row stays until the key goes
                self._rows[name] = replace(self._rows[name], mod_revision=stored.mod_revision, lease=stored.lease)
            return
        self._bad.pop(stored.key, None)
        name = row.node.name
        self._kept.pop(name, None)
        known = self._rows.get(name)
        # The same object as long as it says the same: tables compare by identity first.
        if known is not None and known.node == row.node:
            row = replace(row, node=known.node)
        else:
            if known is not None:
                self._count_out(known.node)
            for what in (row.node.endpoint, *row.node.subnets):
                self._takers[what].add(name)
        self._rows[name] = row

    def _remove(self, name: str) -> None:
        row = self._rows.pop(name, None)
        if row is not None:
            self._count_out(row.node)
            if self._now_s() < self._keep_until_s:
                self._kept[name] = row.node

    def _count_out(self, node: Node) -> None:
        for what in (node.endpoint, *node.subnets):
            takers = self._takers[what]
            takers.discard(node.name)
            if not takers:
                del self._takers[what]

    def _publish(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        by_name = {name: row.node for name, row in self._rows.items()}
        kept = [node for node in self._kept.values() if not self.is_taken(node)]
        nodes = tuple(sorted([*by_name.values(), *kept], key=lambda node: node.name))
        if nodes == self.published.nodes:
            nodes = self.published.nodes
        bad = "; ".join(list(self._bad.values())[:3])
        was, self.published = self.published, Published(nodes, by_name, self.revision)
        if nodes is not was.nodes or bad != self.connected.bad_rows or not self.loaded.is_set():
            self.connected = replace(self.connected, bad_rows=bad)
            self.loaded.set()
            for follower in self._all_followers():
                follower.roster_changed()
        # Lateness counts as work: then it is others of this loop that have too much of it.
        self._gather_s = max(GATHER_S, rest.after_s(self._now_s() - self._publish_due_s))

    def _cut_off(self, message: str) -> None:
        was, self.connected = self.connected, replace(self.connected, now=False, error=message)
        if was.now or was.error != message:
            for follower in self._all_followers():
                follower.connection_changed()

    def _back(self) -> None:
        was, self.connected = self.connected, replace(self.connected, now=True, error="", confirmed_s=self._now_s())
        if not was.now:
            for follower in self._all_followers():
                follower.connection_changed()

    def _heard(self) -> None:
        """Take note that the store was heard; after a silence, keep for a while what it has forgotten."""
        now_s = self._now_s()
        if self.loaded.is_set() and now_s - self.connected.confirmed_s > max(2 * self._silence_s, self._ttl_s * 2 / 3):
            self._keep_what_is_forgotten()
        self.connected = replace(self.connected, confirmed_s=now_s)

    def _keep_what_is_forgotten(self) -> None:
        if self.loaded.is_set():
            log.info("the store was away: rows that it has lost are kept for %.0f s", self._ttl_s)
            self._keep_until_s = self._now_s() + self._ttl_s
            if self._forgetting is not None:
                self._forgetting.cancel()
            self._forgetting = asyncio.get_running_loop().call_later(self._ttl_s, self._forget)

    def _forget(self) -> None:
        self._kept.clear()
        self._publish()

    def _all_followers(self) -> list[Follower]:
        return [follower for followers in self._followers.values() for follower in followers]

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
