"""A node in its network: it joins, holds by keep-alives, and says at any moment whether it holds.

Held is what the store said so less than a TTL ago, counted from when it was asked. Then it is not sure any more: no new
address may be given out, but Pods, table and traffic stay as they are. When the store answers again and the lease lives,
nothing has changed; has it ended, the node claims anew, first of all what it had, with a new epoch.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter

from router.errors import Refusal
from router.model import Node
from router.subnets.backoff import Backoff
from router.subnets.etcd.claimant import Hold, Wish
from router.subnets.etcd.client import Client
from router.subnets.etcd.connection import DEADLINE_S
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.holder import boot_clock_s, living, this_process
from router.subnets.etcd.join import Join
from router.subnets.etcd.layout import Layout, read_row
from router.subnets.etcd.memory import Memory, Remembered, remembered
from router.subnets.etcd.roster import Roster
from router.subnets.etcd.transaction import Stored
from router.subnets.source import Lease, Listener, SourceState

VERIFY_EVERY = 6
"""After how many renewals a node looks whether all its keys are there, though nobody told it that one is not."""
SURE = 0.9
"""Which part of a TTL is counted on: clocks differ, and an etcd that is not the leader any more may grant a renewal
for an election's time (1 s), that the next leader does not know of."""
REFUSED_S = 5.0
"""How long to wait at most before trying again what somebody has to mend first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Situation:
    """How a member stands. Swapped whole, so that any thread may look."""

    lease: Lease
    trouble: str = ""
    """Why it does not hold, or what its listener refused."""


class Member:
    """One node, in one event loop; many may share a client and a roster, whose `run` is somebody else's to start."""

    def __init__(
        self,
        client: Client,
        layout: Layout,
        roster: Roster,
        wish: Wish,
        memory: Memory,
        identity: str,
        *,
        place: str = "",
        clock_s: Callable[[], float] = boot_clock_s,
        failed: Callable[[EtcdError | Refusal], None] = lambda _: None,
    ) -> None:
        """Take who we are; `identity` and `place` are of Holder. `failed` is told whenever an attempt to join fails."""
        self._client = client
        self._layout = layout
        self._roster = roster
        self._wish = wish
        self._memory = memory
        self._clock_s = clock_s
        self._failed = failed
        self._holder = this_process(identity, place)
        self._join = Join(client, layout, wish, self._holder, clock_s)
        self._hold: Hold | None = None
        self._own: Node | None = None
        """Our row of the table: as held now, or last."""
        self._until_s = 0.0
        """Until when it is sure that we hold."""
        self._watchdog: asyncio.TimerHandle | None = None
        self._nudged = asyncio.Event()
        self._listener: Listener | None = None
        self._told: tuple[Node, ...] | None = None
        self._told_bad = ""
        self._told_lease: Lease | None = None
        self.joined = asyncio.Event()
        """Whether it held anything since it was made."""
        self.situation = Situation(Lease((), 0, held=False, why="etcd was not reached yet"))
        if (last := remembered(memory)) is not None:
            self._own = Node(wish.name, wish.endpoint, last.subnets, wish.offload, last.epoch)
            self.situation = Situation(replace(self.situation.lease, subnets=last.subnets, epoch=last.epoch))
            if last.boot_id == self._holder.boot_id:
                self._until_s = min(last.until_s, clock_s() + wish.ttl_s)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The table: what the store says of others, and our own row as we know it, unless another has what it says.

        Under our name the store may say nothing, or something older, or what a clone wrote there.
        """
        own, published = self._own, self._roster.published
        if published.by_name.get(self._wish.name) == own:
            return published.nodes
        nodes = list(published.nodes)
        at = bisect_left(nodes, self._wish.name, key=attrgetter("name"))
        if at < len(nodes) and nodes[at].name == self._wish.name:
            del nodes[at]
        if own is not None and not self._roster.is_taken(own):
            nodes.insert(at, own)
        return tuple(nodes)

    def state(self) -> SourceState:
        """Say how it stands. From any thread."""
        connected, situation = self._roster.connected, self.situation
        error = connected.error or situation.trouble or connected.bad_rows
        return SourceState("etcd", self._client.where, connected.now, connected.confirmed_s, error, situation.lease)

    async def run(self, listener: Listener) -> None:
        """Be a member until cancelled; the lease lives on then, for a successor."""
        self._listener = listener
        living.add(self._holder.run)
        self._roster.follow(self._wish.name, self)
        if self._sure_for_s() > 0:
            self._renewed(self._until_s)
        quick, slow = Backoff(), Backoff(REFUSED_S, 0.5)
        try:
            while True:
                try:
                    lease = self.situation.lease
                    prefer = [lease.subnets] if lease.subnets else []
                    self._take(
                        await self._join.join(prefer, lease.epoch, waiting=self._lose, claiming=self._stop_believing)
                    )
                    slow.reset()
                    why = await self._keep(quick)
                    self._lose(why)
                    backoff = quick
                except EtcdError as error:
                    self._trouble(error.message)
                    if error.reason is Reason.FULL:
                        self._lose(error.message)
                    elif not self.situation.lease.held:
                        self.situation = replace(self.situation, lease=replace(self.situation.lease, why=error.message))
                    self._failed(error)
                    backoff = quick if error.reason is Reason.AWAY else slow
                except Refusal as refusal:
                    self._lose(refusal.message)
                    self._failed(refusal)
                    backoff = slow
                await asyncio.sleep(backoff.next_s())
        finally:
            living.discard(self._holder.run)
            self._roster.unfollow(self._wish.name, self)
            if self._watchdog is not None:
                self._watchdog.cancel()
            self._save()

    # What the roster tells.

    def roster_changed(self) -> None:
        """Tell of the table, and of rows that are left out of it."""
        if (bad := self._roster.connected.bad_rows) != self._told_bad:
            self._told_bad = bad
            if bad and self._listener is not None:
                self._listener.table_refused(bad)
        self._tell_table()

    def row_changed(self) -> None:
        """Look whether our row is still ours."""
        row = self._roster.rows.get(self._wish.name)
        if self._hold is not None and (row is None or row.mod_revision != self._hold.revision):
            self._nudged.set()

    def connection_changed(self) -> None:
        """Tell of it; keep-alives say for themselves whether they arrive."""
        if self._listener is not None:
            self._listener.connection_changed(self.state())

    # Holding.

    def _take(self, hold: Hold) -> None:
        self._hold, self._own = hold, hold.node
        lease = self.situation.lease
        self.situation = Situation(replace(lease, subnets=hold.node.subnets, epoch=hold.node.epoch))
        self._renewed(hold.since_s + hold.ttl_s * SURE)
        self._save()
        self.joined.set()
        log.info("node %s holds %s, epoch %d", hold.node.name, ", ".join(map(str, hold.node.subnets)), hold.node.epoch)
        self._tell_table()

    async def _keep(self, backoff: Backoff) -> str:
        """Keep the lease alive; return why it is not ours any more."""
        hold = self._hold
        assert hold is not None
        every_s = hold.ttl_s / 3
        retry = Backoff(min(1.0, every_s))
        due_s, renewals = hold.since_s + every_s, 0
        while True:
            await self._sleep_until(due_s)
            nudged = self._nudged.is_set()
            self._nudged.clear()
            asked_s = self._clock_s()
            try:
                ttl_s = await self._client.renew(hold.lease, min(DEADLINE_S, every_s))
                if not ttl_s:
                    return f"the lease of node {hold.node.name} has ended in etcd: it was not reached for too long"
                self._renewed(asked_s + ttl_s * SURE)
                self._save()  # a start after a crash counts on what is still held for sure
                backoff.reset()
                renewals += 1
                if nudged or renewals % VERIFY_EVERY == 0:
                    whole, found = await self._join.verify(hold)
                    if not whole:
                        why = self._who_took(hold, found)
                        self._lose(why)  # before anybody can have it
                        await self._client.revoke(hold.lease)
                        return why
            except EtcdError as error:
                if nudged:
                    self._nudged.set()
                self._trouble(error.message)
                due_s = self._clock_s() + retry.next_s()
                continue
            retry.reset()
            due_s = asked_s + every_s

    async def _sleep_until(self, due_s: float) -> None:
        """Wait until then (our clock), or until something has to be looked at; a failed look is not repeated at once."""
        wait_s = due_s - self._clock_s()
        if self._nudged.is_set():
            await asyncio.sleep(min(max(wait_s, 0), 1.0) if self.situation.trouble else 0)
            return
        try:
            async with asyncio.timeout(max(wait_s, 0)):
                await self._nudged.wait()
        except TimeoutError:
            pass

    def _renewed(self, until_s: float) -> None:
        """Take note that the lease lives until then."""
        self._until_s = max(until_s, self._until_s)
        expires_s = asyncio.get_running_loop().time() + self._sure_for_s()
        self.situation = Situation(replace(self.situation.lease, expires_s=expires_s))
        self._say(True, "")

    def _watch_over(self) -> None:
        """See to it that the end of being sure is noticed, whatever hangs then."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = None
        if self.situation.lease.held:
            # A loop's clock stands still while the machine sleeps: look now and then what the other one says.
            wait_s = min(max(self._sure_for_s(), 0), self._wish.ttl_s / 10)
            self._watchdog = asyncio.get_running_loop().call_later(wait_s, self._check_sure)

    def _check_sure(self) -> None:
        if self._sure_for_s() <= 0:
            why = self.situation.trouble or f"etcd {self._client.where} does not answer"
            self._say(False, f"it is not sure that the lease lives: {why}")
            self._nudged.set()
        else:
            self._watch_over()

    def _sure_for_s(self) -> float:
        return self._until_s - self._clock_s()

    def _who_took(self, hold: Hold, found: Stored | None) -> str:
        name = self._wish.name
        if found is None or found.mod_revision == hold.revision:
            return f"a key of node {name} in etcd was deleted by hand, though its lease lives"
        try:
            return f"the row of node {name} in etcd was changed, last by {read_row(found, self._layout).holder}"
        except Refusal as refusal:
            return f"the row of node {name} in etcd was overwritten: {refusal.message}"

    def _lose(self, why: str) -> None:
        """Say that nothing is held for sure, and why."""
        self._hold = None
        self._until_s = 0.0
        self._watch_over()
        self._trouble(why)
        self._say(False, why)
        self._save()

    def _stop_believing(self) -> None:
        if self.situation.lease.held:
            self._lose("the lease that was remembered is not in etcd any more")

    def _trouble(self, why: str) -> None:
        if self.situation.trouble != why:
            log.warning("node %s: %s", self._wish.name, why)
            self.situation = replace(self.situation, trouble=why)

    def _say(self, held: bool, why: str) -> None:
        lease = replace(self.situation.lease, held=held, why=why, reserved=self._wish.reserve)
        self.situation = Situation(lease, "" if held else self.situation.trouble)
        self._watch_over()
        news = replace(lease, expires_s=0.0)
        if self._listener is not None and news != self._told_lease:
            self._told_lease = news
            self._listener.lease_changed(lease)

    def _tell_table(self) -> None:
        if self._listener is None or not self._roster.loaded.is_set():
            return
        nodes = self.nodes
        if nodes is not self._told and nodes != self._told:
            self._told = nodes
            tell_table(self._listener, nodes)

    def _save(self) -> None:
        lease = self.situation.lease
        if lease.subnets:
            Remembered(lease.subnets, lease.epoch, self._holder.boot_id, self._until_s).save(self._memory)


def tell_table(listener: Listener, nodes: tuple[Node, ...]) -> str:
    """Tell a listener of a table; return why it was refused, and tell that too."""
    try:
        listener.table_changed(nodes)
    except Refusal as refusal:
        message = refusal.message
    except Exception as error:  # whoever tells must outlive a bug of who is told
        log.exception("the table from etcd could not be put into force")
        message = f"the table from etcd could not be put into force: {error!r}; see the log"
    else:
        return ""
    listener.table_refused(message)
    return message
