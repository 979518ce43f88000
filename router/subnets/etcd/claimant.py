"""Takes subnets, endpoint and name by one transaction, or nothing of it.

what we had last, if nobody leases it            → a slot of our own beginning, untried, a few times
  → list all keys: what nobody ever had          → what was given up longest ago          → the range is full
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.errors import Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.etcd.claim import Slots, Subnets, direct_tries, given_up, may_take, never_owned, slots_of_words
from router.subnets.etcd.client import Client
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.holder import Holder
from router.subnets.etcd.layout import (
    Config,
    Layout,
    Owner,
    Record,
    read_owner,
    read_record,
    write_owner,
    write_record,
    write_row,
)
from router.subnets.etcd.transaction import Condition, Get, GetAll, Put, Step, Stored, Unchanged

MOST_TRIES = 100
"""How many subnets are tried for before looking again what is free."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a router wants to be in the network."""

    name: str
    endpoint: Endpoint
    config: Config
    ttl_s: int
    reserve: bool = False
    offload: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """What a router holds."""

    node: Node
    lease: int
    ttl_s: int
    since_s: float
    """From when the TTL counts (the member's clock)."""
    revision: int
    """When its row was written."""


class Outdated(Exception):
    """Things have changed since we looked."""


@dataclass(frozen=True, slots=True)
class View:
    """What stood in the store when we looked."""

    config: Stored
    record: Stored | None
    member: Stored | None
    endpoint: Stored | None


class Claimant:
    """Claims for one node, any number of times."""

    def __init__(
        self, client: Client, layout: Layout, wish: Wish, holder: Holder, clock_s: Callable[[], float]
    ) -> None:
        """Take who we are; `clock_s` is what the TTL is counted with."""
        self._client = client
        self._layout = layout
        self._wish = wish
        self._holder = holder
        self._clock_s = clock_s
        self.slots = Slots(wish.config)
        self._granted: tuple[int, int, float] | None = None
        """A lease that nothing depends on yet: id, TTL, and since when."""

    def keys(self) -> tuple[str, str, str, str]:
        """Return the keys of a view, in its order."""
        layout, name = self._layout, self._wish.name
        return layout.config, layout.node(name), layout.member(name), layout.endpoint(self._wish.endpoint)

    def spend(self, lease: int) -> None:
        """Take note that a lease is in use, and not to be given back."""
        if self._granted is not None and self._granted[0] == lease:
            self._granted = None

    async def claim(self, view: View, prefer: tuple[Subnets, ...], epoch: int) -> Hold | None:
        """Take subnets, with an epoch above that one; None: others were faster each time.

        Raise Outdated when our name or endpoint was taken meanwhile, EtcdError, or Refusal.
        """
        try:
            return await self._claim(view, prefer, epoch)
        except EtcdError as error:
            if error.reason is not Reason.AWAY:  # then it may have been used
                await self._give_back()
            raise
        except Refusal:
            await self._give_back()
            raise

    async def _claim(self, view: View, prefer: tuple[Subnets, ...], epoch: int) -> Hold | None:
        record = read_record(view.record) if view.record is not None else None
        if record is not None:
            epoch = max(epoch, record.epoch)
            prefer = (*prefer, record.subnets)
        epoch += 1
        wanted = [subnets for subnets in dict.fromkeys(prefer) if self.slots.fits(subnets)]
        if wanted:
            steps = [Get(key) for subnets in wanted for subnet in subnets for key in self._locks(subnet)]
            outcome = await self._client.transact((), tuple(steps))
            found = {step.key: outcome.one(index) for index, step in enumerate(steps)}
            for subnets in wanted:
                owners = [found[self._layout.owner(subnet)] for subnet in subnets]
                free = not any(found[self._layout.lease(subnet)] for subnet in subnets)
                if free and all(owner is None or may_take(self._wish.name, _owner(owner)) for owner in owners):
                    revisions = [owner.mod_revision if owner else 0 for owner in owners]
                    if hold := await self._try(view, subnets, revisions, epoch):
                        return hold
        for subnets in direct_tries(self.slots, self._wish.name):
            if hold := await self._try(view, subnets, [0] * len(subnets), epoch):
                return hold
        return await self._choose(view, epoch)

    async def _choose(self, view: View, epoch: int) -> Hold | None:
        """Look through all that is taken for what is not."""
        layout, name = self._layout, self._wish.name
        listed = await self._client.transact((), (GetAll(layout.leases, True), GetAll(layout.owners, True)))
        leased, owned = (
            [stored.key.removeprefix(prefix) for stored in found]
            for prefix, found in zip((layout.leases, layout.owners), listed.found, strict=True)
        )
        tries = 0
        for subnets in never_owned(self.slots, name, [*leased, *owned]):
            if hold := await self._try(view, subnets, [0] * len(subnets), epoch):
                return hold
            if (tries := tries + 1) == MOST_TRIES:
                break
        if tries:
            return None
        _, stored = await self._client.list_all(layout.owners)
        owners = {entry.key.removeprefix(layout.owners): (entry.mod_revision, _owner(entry)) for entry in stored}
        for subnets in given_up(self.slots, name, leased, owners):
            revisions = [_revision(owners, self._layout, subnet_key) for subnet_key in map(layout.owner, subnets)]
            if hold := await self._try(view, subnets, revisions, epoch):
                return hold
            if (tries := tries + 1) == MOST_TRIES:
                return None
        if tries:
            return None
        held = len(slots_of_words(self.slots, leased))
        kept = self.slots.count - held
        raise EtcdError(
            Reason.FULL,
            f"no subnet is left for node {name}: of the {self.slots.count} in {self._wish.config} {held} are held"
            + (f" and {kept} reserved by nodes that are away" if kept > 0 else "")
            + f"; widen the network, or delete under {layout.owners} what nobody comes back for",
        )

    async def _try(self, view: View, subnets: Subnets, owners: list[int], epoch: int) -> Hold | None:
        """Take subnets nobody leases, whose last owners were written at these revisions; None: they were taken."""
        keys = self.keys()
        now = (view.config, view.record, view.member, view.endpoint)
        known = tuple(stored.mod_revision if stored else 0 for stored in now)
        conditions: list[Condition] = [Unchanged(key, revision) for key, revision in zip(keys, known, strict=True)]
        for subnet, revision in zip(subnets, owners, strict=True):
            conditions += (Unchanged(self._layout.lease(subnet), 0), Unchanged(self._layout.owner(subnet), revision))
        lease, ttl_s, since_s = await self._unused_lease()
        node = Node(self._wish.name, self._wish.endpoint, subnets, self._wish.offload, epoch)
        steps = self.writes(node, lease)
        try:
            outcome = await self._client.transact(tuple(conditions), tuple(steps), tuple(map(Get, keys)))
        except EtcdError as error:
            if error.reason is Reason.LEASE_GONE:
                self._granted = None
                raise Outdated from None
            raise
        if outcome.succeeded:
            return Hold(node, lease, ttl_s, since_s, outcome.revision)
        found = tuple(stored.mod_revision if (stored := outcome.one(index)) else 0 for index in range(len(keys)))
        if found != known:
            raise Outdated
        return None

    def writes(self, node: Node, lease: int) -> list[Step]:
        """Return the steps that say all of a hold; public, for a lease that is adopted is written anew."""
        layout, name = self._layout, node.name.encode()
        owner = write_owner(Owner(node.name, node.epoch, self._wish.reserve))
        return [
            Put(layout.member(node.name), write_row(node, self._holder), lease),
            *(Put(layout.lease(subnet), name, lease) for subnet in node.subnets),
            Put(layout.endpoint(node.endpoint), name, lease),
            *(Put(layout.owner(subnet), owner) for subnet in node.subnets),
            Put(layout.node(node.name), write_record(Record(self._holder.identity, node.epoch, node.subnets))),
        ]

    def _locks(self, subnet: Prefix) -> tuple[str, str]:
        return self._layout.lease(subnet), self._layout.owner(subnet)

    async def _unused_lease(self) -> tuple[int, int, float]:
        if self._granted is None or self._clock_s() - self._granted[2] > self._granted[1] / 2:
            await self._give_back()
            since_s = self._clock_s()
            lease, ttl_s = await self._client.grant(self._wish.ttl_s)
            self._granted = lease, ttl_s, since_s
        return self._granted

    async def _give_back(self) -> None:
        granted, self._granted = self._granted, None
        if granted is not None:
            try:
                await self._client.revoke(granted[0])
            except EtcdError as error:
                log.debug("an unused lease is left to end by itself: %s", error.message)


def _owner(stored: Stored) -> Owner | None:
    """Return a subnet's last owner; None, which is nobody's to take, when it cannot be read."""
    try:
        return read_owner(stored)
    except Refusal as refusal:
        log.warning("a subnet is not given out: %s", refusal.message)
        return None


def _revision(owners: Mapping[str, tuple[int, Owner | None]], layout: Layout, key: str) -> int:
    known = owners.get(key.removeprefix(layout.owners))
    return known[0] if known is not None else 0
