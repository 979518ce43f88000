"""Addresses of this node's subnets: who holds which, and which rest before they are given out again. Pure.

A subnet is a circle walked by a cursor. What is released rests, and then queues behind whatever the cursor has not yet
come to, so the address freed first among those freed comes back first, and as late as the subnet's size allows (late
packets and cached ARP, DNS or conntrack entries of the old Pod must not reach a new one). No step scans the subnet.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface

from router.errors import Kind, Refusal
from router.model import Address, AttachmentKey, Interface, Prefix

_REMEMBERED = 1 << 16
"""Most rested addresses a subnet queues; older ones are met again by the cursor. Bounds memory in a /64."""


@dataclass(frozen=True, slots=True)
class Resting:
    """An address given back, who held it last, and when it was released (seconds, the clock of the caller)."""

    address: Address
    key: AttachmentKey
    released_at_s: float


class Ipam:
    """Addresses of this node's subnets. The caller locks; every `now_s` comes from one clock."""

    def __init__(self, subnets: tuple[Prefix, ...], rest_s: float = 60.0) -> None:
        """Start with nothing held. Refuse a subnet too small for the node and a Pod."""
        self._pools = [_Pool(subnet) for subnet in subnets]
        self._rest_s = rest_s
        self._held: dict[AttachmentKey, tuple[Interface, ...]] = {}

    def allocate(self, key: AttachmentKey, requested: tuple[Address, ...], now_s: float) -> tuple[Interface, ...]:
        """Give the key what it asks for, and an address of every other family the node has subnets of.

        The same key gets the same answer again. Raises Refusal and changes nothing when any of it cannot be had.
        """
        if (present := self._held.get(key)) is not None:
            if other := [str(address) for address in requested if address not in {held.ip for held in present}]:
                text = ", ".join(str(held.ip) for held in present) or "no address"
                raise Refusal(
                    Kind.EXISTS,
                    f"{key} already holds {text}, not {', '.join(other)}: detach it first to change addresses",
                )
            return present
        if not self._pools:
            raise Refusal(Kind.STATE, f"no address for {key}: the subnet table gives this node no subnet yet")
        self._wake(now_s)
        if len(set(requested)) != len(requested):
            raise Refusal(Kind.INVALID, f"{key} asks for one address twice: {', '.join(map(str, requested))}")
        wanted = [(self._pool_for(address, key, now_s), int(address)) for address in requested]
        asked = {address.version for address in requested}
        roomy = [self._roomy(version, now_s) for version in self._families() if version not in asked]
        wanted += [(pool, pool.next()) for pool in roomy]
        granted = tuple(pool.hold(number, key) for pool, number in wanted)
        self._held[key] = granted
        return granted

    def release(self, key: AttachmentKey, now_s: float) -> tuple[Interface, ...]:
        """Take the key's addresses back and let them rest; return them, or () when it held none."""
        granted = self._held.pop(key, ())
        for interface in granted:
            if pool := self._owner(interface.ip):
                pool.rest(Resting(interface.ip, key, now_s))
        return granted

    def withdraw(self, key: AttachmentKey) -> None:
        """Take back addresses that nobody came to use: they need no rest."""
        for interface in self._held.pop(key, ()):
            if pool := self._owner(interface.ip):
                pool.held.pop(int(interface.ip), None)

    def restore(
        self, held: Mapping[AttachmentKey, tuple[Interface, ...]], resting: Iterable[Resting]
    ) -> tuple[Interface, ...]:
        """Take over what the journal kept; return held addresses that lie in no subnet of this node any more.

        Such a stray stays its holder's until released, and is then forgotten. Refuses an address held twice.
        """
        strays = []
        for key, granted in held.items():
            for interface in granted:
                if (pool := self._owner(interface.ip)) is None:
                    strays.append(interface)
                elif holder := pool.held.get(int(interface.ip)):
                    raise Refusal(Kind.STATE, f"address {interface.ip} is held by both {holder} and {key}: detach one")
                else:
                    pool.hold(int(interface.ip), key)
            self._held[key] = granted
        for entry in sorted(resting, key=lambda entry: entry.released_at_s):
            if (pool := self._owner(entry.address)) and int(entry.address) not in pool.held:
                pool.rest(entry)
        for pool in self._pools:
            pool.skip_known()
        return tuple(strays)

    def held(self) -> Mapping[AttachmentKey, tuple[Interface, ...]]:
        """Return who holds what; with `resting`, enough to `restore` an Ipam of changed subnets."""
        return dict(self._held)

    def resting(self, now_s: float) -> tuple[Resting, ...]:
        """Return what rests at that time, longest first."""
        self._wake(now_s)
        return tuple(entry for pool in self._pools for entry in pool.resting.values())

    def free(self, now_s: float) -> Mapping[Prefix, int]:
        """Return how many addresses of each subnet could be given out at that time."""
        self._wake(now_s)
        return {pool.subnet: pool.room for pool in self._pools}

    def _families(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(pool.subnet.version for pool in self._pools))

    def _owner(self, address: Address) -> _Pool | None:
        return next((pool for pool in self._pools if address in pool.subnet), None)

    def _wake(self, now_s: float) -> None:
        for pool in self._pools:
            pool.wake(now_s, self._rest_s)

    def _pool_for(self, address: Address, key: AttachmentKey, now_s: float) -> _Pool:
        """Return the pool in which the key may have just that address."""
        pool = self._owner(address)
        if pool is None:
            own = ", ".join(str(pool.subnet) for pool in self._pools) or "none"
            raise Refusal(Kind.INVALID, f"requested address {address} is not in this node's subnets ({own})")
        number = int(address)
        if not pool.lowest <= number <= pool.highest:
            node = node_address(pool.subnet).ip
            what = "the node's own" if address == node else "the subnet's network or broadcast address"
            raise Refusal(Kind.INVALID, f"requested address {address} is reserved: it is {what} in {pool.subnet}")
        if holder := pool.held.get(number):
            raise Refusal(
                Kind.EXISTS, f"requested address {address} is held by {holder}: detach it, or ask for another"
            )
        if (entry := pool.resting.get(number)) and entry.key != key:
            wait_s = _wait_s(entry.released_at_s + self._rest_s - now_s)
            raise Refusal(
                Kind.UNAVAILABLE,
                f"requested address {address} rests after {entry.key} released it: "
                f"ask again in {wait_s} s, or for another",
            )
        return pool

    def _roomy(self, version: int, now_s: float) -> _Pool:
        """Return the family's first subnet with room."""
        family = [pool for pool in self._pools if pool.subnet.version == version]
        for pool in family:
            if pool.room:
                return pool
        resting = [entry.released_at_s for pool in family for entry in pool.resting.values()]
        text = ", ".join(str(pool.subnet) for pool in family)
        message = f"no IPv{version} address is free in {text}: {sum(len(pool.held) for pool in family)} held"
        if resting:
            wait_s = _wait_s(min(resting) + self._rest_s - now_s)
            message += f", {len(resting)} resting after release (the next is free in {wait_s} s)"
        raise Refusal(Kind.EXHAUSTED, f"{message}; detach Pods, or give this node another subnet")


def node_address(subnet: Prefix) -> Interface:
    """Return the node's own address in a subnet: the first that a host may have. Refuse a subnet of one address."""
    if subnet.prefixlen == subnet.max_prefixlen:
        raise Refusal(
            Kind.INVALID,
            f"subnet {subnet} is a single address, but the node takes one and each Pod one: "
            f"use /{subnet.max_prefixlen - 1} or shorter",
        )
    # In a /31 (RFC 3021) and a /127 (RFC 6164) both addresses are hosts'. Elsewhere the lowest is the network's, in
    # IPv6 the subnet-router anycast address (RFC 4291 section 2.6.1).
    offset = 0 if subnet.prefixlen == subnet.max_prefixlen - 1 else 1
    return ip_interface(f"{subnet.network_address + offset}/{subnet.prefixlen}")


class _Pool:
    """The Pod addresses of one subnet, as numbers. Every one is held, resting, rested, or not come to."""

    def __init__(self, subnet: Prefix) -> None:
        self.subnet = subnet
        self.lowest = int(node_address(subnet).ip) + 1
        # IPv6 has no broadcast address, and neither has a /31.
        broadcast = subnet.version == 4 and subnet.prefixlen < 31
        self.highest = int(subnet.network_address) + subnet.num_addresses - 1 - broadcast
        self.held: dict[int, AttachmentKey] = {}
        self.resting: OrderedDict[int, Resting] = OrderedDict()
        self._rested: OrderedDict[int, None] = OrderedDict()
        self._cursor = self.lowest
        self._ahead = self.highest - self.lowest + 1
        """Addresses the cursor has yet to come to on this lap."""

    @property
    def room(self) -> int:
        """How many addresses are neither held nor resting."""
        return self.highest - self.lowest + 1 - len(self.held) - len(self.resting)

    def next(self) -> int:
        """Return the address that has been free longest. Only while there is room."""
        while True:
            while self._ahead:
                number, self._cursor = self._cursor, self._cursor + 1 if self._cursor < self.highest else self.lowest
                self._ahead -= 1
                if number not in self.held and number not in self.resting and number not in self._rested:
                    return number
            if self._rested:
                return next(iter(self._rested))
            # Only addresses that the queue was too short for are left: go round again.
            self._ahead = self.highest - self.lowest + 1

    def hold(self, number: int, key: AttachmentKey) -> Interface:
        """Give out an address, wherever it was."""
        self.resting.pop(number, None)
        self._rested.pop(number, None)
        self.held[number] = key
        address = ip_address(number.to_bytes(self.subnet.max_prefixlen // 8, "big"))
        return ip_interface((address, self.subnet.prefixlen))

    def rest(self, entry: Resting) -> None:
        """Take an address back."""
        number = int(entry.address)
        self.held.pop(number, None)
        self.resting[number] = entry

    def wake(self, now_s: float, rest_s: float) -> None:
        """Queue what has rested."""
        while self.resting:
            number, entry = next(iter(self.resting.items()))
            if entry.released_at_s > now_s:
                # A wall clock was set back: let it all rest from now, instead of until the clock has caught up.
                for later, other in self.resting.items():
                    self.resting[later] = replace(other, released_at_s=now_s)
                return
            if now_s - entry.released_at_s < rest_s:
                return
            del self.resting[number]
            self._rested[number] = None
            if len(self._rested) > _REMEMBERED:
                self._rested.popitem(last=False)

    def skip_known(self) -> None:
        """Go on behind the highest address in use: what rested before a restart is forgotten, and so comes last."""
        known = max((*self.held, *self.resting), default=self.highest)
        self._cursor = known + 1 if known < self.highest else self.lowest
        self._ahead = self.highest - self.lowest + 1


def _wait_s(seconds: float) -> int:
    return max(1, math.ceil(seconds))
