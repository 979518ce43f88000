"""Which subnets to try for, and in which order. Pure.

The cluster range is cut into slots: the first slot is the first subnet of each IP version, and so on, so that a node's
IPv4 and IPv6 subnet have the same number. A range of several prefixes is cut one prefix after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from itertools import islice

from router.model import Prefix
from router.subnets.etcd.layout import Config, Owner, subnet_word

DIRECT_TRIES = 4
"""How many slots are tried blindly before all keys are listed."""

Subnets = tuple[Prefix, ...]


class Slots:
    """A cluster range cut into subnets."""

    def __init__(self, config: Config) -> None:
        """Take a network whose lengths cut subnets from each of its prefixes (config checks that)."""
        lengths: dict[int, int] = {4: config.ipv4_length, 6: config.ipv6_length}
        self._networks: dict[int, Subnets] = {
            version: tuple(network for network in config.networks if network.version == version)
            for version in sorted({network.version for network in config.networks})
        }
        self._lengths: dict[int, int] = {version: lengths[version] for version in self._networks}
        self.count = min(
            sum(1 << self._lengths[version] - network.prefixlen for network in networks)
            for version, networks in self._networks.items()
        )
        """How many there are."""

    def __getitem__(self, slot: int) -> Subnets:
        """Return the subnets of a slot, IPv4 first."""
        return tuple(self._subnet(version, slot) for version in self._networks)

    def slot_of(self, subnet: Prefix) -> int | None:
        """Return which slot a subnet is in; None when it is not cut as ours are."""
        if subnet.prefixlen != self._lengths.get(subnet.version):
            return None
        first = 0
        for network in self._networks[subnet.version]:
            bits = subnet.prefixlen - network.prefixlen
            offset = (
                int(subnet.network_address) - int(network.network_address) >> subnet.max_prefixlen - subnet.prefixlen
            )
            if 0 <= offset < 1 << bits:
                return first + offset
            first += 1 << bits
        return None

    def fits(self, subnets: Subnets) -> bool:
        """Tell whether these are what a node may hold: one of each IP version, cut as ours are."""
        versions = [subnet.version for subnet in subnets]
        return versions == list(self._networks) and all(self.slot_of(subnet) is not None for subnet in subnets)

    def _subnet(self, version: int, slot: int) -> Prefix:
        length = self._lengths[version]
        for network in self._networks[version]:
            here = 1 << length - network.prefixlen
            if slot < here:
                address = int(network.network_address) + (slot << network.max_prefixlen - length)
                return ip_network((address, length))
            slot -= here
        raise IndexError(slot)


def first_slot(slots: Slots, name: str, attempt: int = 0) -> int:
    """Return where a node begins to look: elsewhere than others, and the same each time."""
    digest = hashlib.blake2b(f"{attempt}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % slots.count


def direct_tries(slots: Slots, name: str) -> Iterator[Subnets]:
    """Yield what to try without looking."""
    yield from (slots[slot] for slot in dict.fromkeys(first_slot(slots, name, n) for n in range(DIRECT_TRIES)))


def never_owned(slots: Slots, name: str, taken: Iterable[str]) -> Iterator[Subnets]:
    """Yield what nobody has or had, the node's own beginning first; `taken` is subnets' words of leases and owners."""
    used = slots_of_words(slots, taken)
    start = first_slot(slots, name)
    # No more than `used` can be in the way: there is no need to count through a range of 2⁴⁰ slots.
    for slot in islice(range(slots.count), len(used) + 64):
        here = (start + slot) % slots.count
        if here not in used:
            yield slots[here]


def given_up(
    slots: Slots, name: str, leased: Iterable[str], owners: Mapping[str, tuple[int, Owner | None]]
) -> Iterator[Subnets]:
    """Yield what had an owner whose lease has ended, longest ago first.

    `owners` says of a subnet's word when the owner was written, and who; None: it cannot be read, so it is let be.
    """
    used = slots_of_words(slots, leased)
    last: dict[int, int] = {}
    for word, (revision, owner) in owners.items():
        for slot in slots_of_words(slots, (word,)):
            if may_take(name, owner):
                last[slot] = max(last.get(slot, 0), revision)
            else:
                used.add(slot)
    yield from (slots[slot] for slot in sorted(last, key=lambda slot: (last[slot], slot)) if slot not in used)


def may_take(name: str, owner: Owner | None) -> bool:
    """Tell whether a node may take a subnet that nobody leases, from whom had it last."""
    return owner is not None and (owner.node == name or not owner.reserved)


def slots_of_words(slots: Slots, words: Iterable[str]) -> set[int]:
    """Return the slots that subnets' words of keys are in; of what is no subnet of ours, nothing."""
    found = set()
    for word in words:
        try:
            subnet = ip_network(word.replace("-", "/", 1))
        except ValueError:
            continue
        if subnet_word(subnet) == word and (slot := slots.slot_of(subnet)) is not None:
            found.add(slot)
    return found
