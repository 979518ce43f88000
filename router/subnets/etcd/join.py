"""From outside to holding subnets: is somebody in the way, adopt what we held, or claim.

    look     the network's value, our name, our endpoint, what we were last
      → other settings?        refuse          → nobody wrote any? write ours
      → our name is held       by us, or by a predecessor that ended: adopt its lease, with its epoch
                               by a living router: refuse           by one we cannot see: wait what its lease does
      → our endpoint is held   refuse
    claim    one transaction takes subnets, endpoint and name, or nothing: what we had, a free one, one given up

Nothing that another may hold is ever revoked or written over: a lease that is not renewed is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable

from router.errors import Kind, Refusal
from router.model import Node
from router.subnets.etcd.claim import Subnets
from router.subnets.etcd.claimant import Claimant, Hold, Outdated, View, Wish
from router.subnets.etcd.client import Client
from router.subnets.etcd.errors import EtcdError, Reason
from router.subnets.etcd.holder import Holder, Standing, standing
from router.subnets.etcd.layout import Layout, Row, read_config, read_row, write_config
from router.subnets.etcd.transaction import Condition, Delete, Get, LeasedBy, Put, Stored, Unchanged

MOST_ROUNDS = 30
"""How often one attempt to join may find that things have changed meanwhile."""
PAUSE_S = 0.2

log = logging.getLogger(__name__)


class Join:
    """Joins one node to its network, any number of times."""

    def __init__(
        self, client: Client, layout: Layout, wish: Wish, holder: Holder, clock_s: Callable[[], float]
    ) -> None:
        """Take who we are; `clock_s` is what the TTL is counted with."""
        self._client = client
        self._layout = layout
        self._wish = wish
        self._holder = holder
        self._clock_s = clock_s
        self._claimant = Claimant(client, layout, wish, holder, clock_s)

    async def join(
        self, prefer: Iterable[Subnets], epoch: int, *, waiting: Callable[[str], None], claiming: Callable[[], None]
    ) -> Hold:
        """Hold subnets, if possible those that are preferred, with an epoch above that one unless a lease is adopted.

        `waiting` is told why it takes so long, and `claiming` that nothing is held by now; neither is told while a lease
        that was held is adopted. Raise EtcdError, or Refusal when somebody is in the way.
        """
        wanted = tuple(prefer)
        for _ in range(MOST_ROUNDS):
            view = await self._look()
            if view.member is not None:
                hold = await self._meet(view, view.member, epoch, waiting)
            elif view.endpoint is not None:
                raise await self._endpoint_taken(view.endpoint)
            else:
                claiming()
                try:
                    hold = await self._claimant.claim(view, wanted, epoch)
                except Outdated:
                    continue
            if hold is not None:
                self._claimant.spend(hold.lease)
                return hold
            await asyncio.sleep(PAUSE_S)
        raise EtcdError(Reason.BUSY, f"etcd {self._client.where}: too much changed while {self._wish.name} was joining")

    async def verify(self, hold: Hold) -> tuple[bool, Stored | None]:
        """Tell whether all that is held is there still, and if not what stands under our name instead."""
        member = self._layout.member(self._wish.name)
        conditions: tuple[Condition, ...] = (
            Unchanged(member, hold.revision),
            LeasedBy(member, hold.lease),
            *(LeasedBy(self._layout.lease(subnet), hold.lease) for subnet in hold.node.subnets),
            LeasedBy(self._layout.endpoint(hold.node.endpoint), hold.lease),
        )
        outcome = await self._client.transact(conditions, (), (Get(member),))
        return (True, None) if outcome.succeeded else (False, outcome.one(0))

    async def _look(self) -> View:
        keys = self._claimant.keys()
        while True:
            outcome = await self._client.transact((), tuple(map(Get, keys)))
            config, record, member, endpoint = (outcome.one(index) for index in range(4))
            if config is not None:
                break
            value = write_config(self._wish.config, self._holder, secrets.token_hex(8))
            await self._client.transact((Unchanged(keys[0], 0),), (Put(keys[0], value),))
        theirs, who = read_config(config)
        if theirs != self._wish.config:
            raise Refusal(
                Kind.STATE,
                f"the network in etcd is {theirs} (written by {who}), but node {self._wish.name} is set to "
                f"{self._wish.config}: set all routers alike; to change the network stop all of them, "
                f"and delete {self._layout.config}",
            )
        return View(config, record, member, endpoint)

    # Our name is held.

    async def _meet(self, view: View, stored: Stored, epoch: int, waiting: Callable[[str], None]) -> Hold | None:
        """Deal with whoever holds our name; None: look again."""
        row = read_row(stored, self._layout)
        if not row.lease:
            raise Refusal(
                Kind.STATE, f"etcd key {stored.key} has no lease, so no router wrote it: delete it to let this one in"
            )
        stands = standing(row.holder, self._holder)
        same = row.holder.identity == self._holder.identity
        if stands is Standing.SELF or (stands is Standing.ENDED and same):
            return await self._adopt(view, row, epoch, waiting)
        if stands is Standing.ENDED:  # it left its lease, and its state directory is gone: begin anew
            await self._revoke(row, "what it held is of another state directory", waiting)
            return None
        if stands is Standing.ALIVE or not same:
            raise self._name_taken(row, "one of them needs another name")
        await self._observe(row, waiting)
        return None

    async def _observe(self, row: Row, waiting: Callable[[str], None]) -> None:
        """Wait until a lease that may be our predecessor's has ended; refuse if somebody renews it."""
        waiting(
            f"node {row.node.name} was held by {row.holder} less than {self._wish.ttl_s} s ago: waiting whether it still is"
        )
        last_s, term = float("inf"), 0
        while True:
            asked_s = self._clock_s()
            left_s, term_now = await self._client.remaining(row.lease)
            if left_s < 0:
                return
            if term_now != term:  # a new leader gives every lease its time anew
                last_s, term = float("inf"), term_now
            # Whole seconds, towards 0: it ends between `left` after it was asked, and one more after it answered. 0 says
            # nothing: a lease that has ended and is not cleared away yet has it too.
            if left_s and asked_s + left_s > last_s:
                raise self._name_taken(
                    row, "is one a clone of the other? Give it a state directory and a name of its own"
                )
            last_s = min(last_s, self._clock_s() + left_s + 1)
            await asyncio.sleep(min(1.0, self._wish.ttl_s / 10))

    async def _adopt(self, view: View, row: Row, epoch: int, waiting: Callable[[str], None]) -> Hold | None:
        """Take over a lease of our own; None: it could not be, look again."""
        layout, wish = self._layout, self._wish
        since_s = self._clock_s()
        ttl_s = await self._client.renew(row.lease)
        if not ttl_s:
            return None
        subnets = row.node.subnets
        if view.endpoint is not None and view.endpoint.lease != row.lease:
            raise await self._endpoint_taken(view.endpoint)
        if row.node.epoch < epoch or not self._claimant.slots.fits(subnets):
            await self._revoke(row, "its lease is of a store that has lost something since", waiting)
            return None
        node = Node(wish.name, wish.endpoint, subnets, wish.offload, row.node.epoch)
        moved = row.node.endpoint != wish.endpoint
        conditions: list[Condition] = [
            Unchanged(layout.member(wish.name), row.mod_revision),
            *(LeasedBy(layout.lease(subnet), row.lease) for subnet in subnets),
            LeasedBy(layout.endpoint(row.node.endpoint), row.lease),
        ]
        steps = self._claimant.writes(node, row.lease)
        if moved:
            conditions.append(Unchanged(layout.endpoint(wish.endpoint), 0))
            steps.append(Delete(layout.endpoint(row.node.endpoint)))
        outcome = await self._client.transact(tuple(conditions), tuple(steps), (Get(layout.member(wish.name)),))
        if outcome.succeeded:
            return Hold(node, row.lease, ttl_s, since_s, outcome.revision)
        member = outcome.one(0)
        if member is not None and member.mod_revision == row.mod_revision:
            await self._revoke(row, "somebody took keys away from under its lease", waiting)
        return None

    async def _revoke(self, row: Row, why: str, waiting: Callable[[str], None]) -> None:
        """End a lease of our own."""
        waiting(f"node {row.node.name} claims anew: {why}")
        await self._client.revoke(row.lease)

    # Somebody is in the way.

    def _name_taken(self, row: Row, advice: str) -> Refusal:
        return Refusal(
            Kind.EXISTS,
            f"two routers are node {self._wish.name}: {row.holder} at {row.node.endpoint}, which holds the name, and "
            f"{self._holder} at {self._wish.endpoint}, which is refused: {advice}",
        )

    async def _endpoint_taken(self, stored: Stored) -> Refusal:
        other = stored.value.decode(errors="backslashreplace")[:253]
        other = other if other.isprintable() else repr(other)
        found = (await self._client.transact((), (Get(self._layout.member(other)),))).one(0)
        who = f" on {read_row(found, self._layout).holder}" if found is not None else ""
        return Refusal(
            Kind.EXISTS,
            f"two nodes are at {self._wish.endpoint}: {other}{who}, which holds it, and {self._wish.name} on "
            f"{self._holder}, which is refused: give one of them another --underlay",
        )
