"""One simulated node: the source, the table and the snapshot of a router, without its engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

from router import rest
from router.config import Etcd, Settings
from router.errors import Refusal
from router.model import Endpoint, Node, SubnetTable
from router.routes import Routes
from router.subnets.difference import difference
from router.subnets.etcd import roster
from router.subnets.etcd.claimant import Wish
from router.subnets.etcd.client import Client
from router.subnets.etcd.layout import Config, Layout
from router.subnets.etcd.member import Member
from router.subnets.source import Lease, SourceState
from router.subnets.tables import Tables

NETWORKS = (ip_network("10.0.0.0/8"), ip_network("fd42::/40"))
PREFIX = "/simulation"
_LAYOUT = Layout(PREFIX)
_UNDERLAY = int(IPv4Address("172.16.0.1"))

# Rows are immutable, and the same for all nodes of this process: read once, they need not be kept a thousand times.
roster.read_row = functools.lru_cache(maxsize=200_000)(roster.read_row)


class _Forgetful:
    """A journal of a node whose disk is not simulated."""

    def load_table(self) -> SubnetTable | None:
        return None

    def save_table(self, table: SubnetTable | None) -> None:
        pass


class _Memory:
    """What a node remembers of its lease over a restart."""

    def __init__(self) -> None:
        self._value: dict[str, Any] | None = None

    def load(self) -> dict[str, Any] | None:
        return self._value

    def save(self, value: dict[str, Any]) -> None:
        self._value = dict(value)


class SharedRoster:
    """One watch for many nodes that do not follow the table themselves, but hold leases of their own."""

    def __init__(self, client: Client, ttl_s: int) -> None:
        self.roster = roster.Roster(client, _LAYOUT, ttl_s)
        self._task = asyncio.create_task(self.roster.run())

    async def stop(self) -> None:
        """End the watch."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class SimulatedNode:
    """A node that can be started, restarted and killed. Of one event loop; a `subnets.source.Listener`."""

    def __init__(self, index: int, client: Client, url: str, ttl_s: int, shared: SharedRoster | None = None) -> None:
        """With a shared roster it does all but keep a table and a snapshot."""
        self._shared = shared
        self.name = f"n{index:05}"
        etcd = Etcd((url,), PREFIX, ttl_s)
        self._settings = Settings(self.name, NETWORKS, Endpoint(IPv4Address(_UNDERLAY + index)), etcd=etcd)
        config = Config(NETWORKS, etcd.ipv4_length, etcd.ipv6_length, self._settings.vni)
        self._wish = Wish(self.name, self._settings.underlay, config, ttl_s)
        self._client = client
        self._memory = _Memory()
        self._tasks: list[asyncio.Task[None]] = []
        self.seen_s: dict[str, float] = {}
        """When each node that is in the snapshot now came into it (CLOCK_MONOTONIC)."""
        self.changed_s = 0.0
        """When the snapshot last changed."""
        self.changes = 0
        self.refused: list[str] = []
        self.lease: Lease | None = None
        self.held_s = 0.0
        """When it last began to hold."""
        self._nodes: tuple[Node, ...] = ()
        self.start_s = 0.0
        self._boot()

    def _boot(self) -> None:
        """Begin as a new process does, with what is remembered."""
        self._routes = Routes(self.name, NETWORKS, egress=True)
        self._tables = Tables(
            self._settings,
            _Forgetful(),  # type: ignore[arg-type]
            self._apply,
            lambda _: None,
            math.inf,
        )
        self.seen_s.clear()
        self._nodes = ()
        self._newest: tuple[Node, ...] = ()
        self._telling = False
        self._due_s = self._rested_s = 0.0

    def start(self) -> None:
        """Join, and follow the others, from now on."""
        self.start_s = time.monotonic()
        watch = self._shared.roster if self._shared else roster.Roster(self._client, _LAYOUT, self._wish.ttl_s)
        member = Member(self._client, _LAYOUT, watch, self._wish, self._memory, self.name, place=self.name)
        self._tasks = [asyncio.create_task(member.run(self))]
        if not self._shared:
            self._tasks.append(asyncio.create_task(watch.run()))

    async def stop(self) -> None:
        """End as a process that is stopped or killed: the lease lives on for a while."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        self._boot()

    @property
    def running(self) -> bool:
        return bool(self._tasks)

    @property
    def rows(self) -> int:
        """How many nodes its snapshot leads to, itself included."""
        return len(self.seen_s)

    @property
    def follows(self) -> bool:
        """Whether it keeps a table of its own."""
        return self._shared is None

    def settled(self, rows: int) -> bool:
        """Tell whether it holds its subnets, and sees that many nodes if it looks."""
        return self.lease is not None and self.lease.held and (self.rows == rows or not self.follows)

    # subnets.source.Listener

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        """Do as the router's thread that tells its daemon: in a storm only the newest, and a rest after each."""
        if not self.follows:
            return
        self._newest = nodes
        if not self._telling:
            self._telling = True
            self._due_s = max(time.monotonic(), self._rested_s)
            asyncio.get_running_loop().call_later(self._due_s - time.monotonic(), self._tell)

    def _tell(self) -> None:
        self._telling = False
        if not self._tasks:
            return
        try:
            self._tables.adopt(self._newest)
        except Refusal as refusal:
            self.refused.append(refusal.message)
        now_s = time.monotonic()
        self._rested_s = now_s + rest.after_s(now_s - self._due_s)

    def table_refused(self, message: str) -> None:
        self.refused.append(message)

    def connection_changed(self, state: SourceState) -> None:
        pass

    def lease_changed(self, lease: Lease) -> None:
        if lease.held:
            self.held_s = time.monotonic()
        self.lease = replace(lease)

    def _apply(self, table: SubnetTable) -> None:
        """Make the snapshot an engine would be handed, and note who is new in it."""
        self._routes.snapshot(table, {})
        now_s = time.monotonic()
        rows = difference(self._nodes, table.nodes)
        for node in rows.removed:
            self.seen_s.pop(node.name, None)
        for node in rows.added:
            self.seen_s[node.name] = now_s
        self._nodes = table.nodes
        self.changed_s = now_s
        self.changes += 1
