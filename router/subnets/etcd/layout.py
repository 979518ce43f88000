"""Where everything stands in etcd, and what it looks like there. Pure; what cannot be read is a Refusal naming the key.

    PREFIX/config             the network, written by the first to come: all have to mean the same by it
    PREFIX/members/NAME       a node's row of the table (leased); the table is all of these
    PREFIX/leases/SUBNET      who holds a subnet (leased): NAME. 10.32.1.0/24 is called 10.32.1.0-24
    PREFIX/endpoints/ENDPOINT who receives there (leased): NAME
    PREFIX/owners/SUBNET      who had a subnet last, or has it for good
    PREFIX/nodes/NAME         what a node was last: its state directory, epoch, subnets

Values are JSON objects, so that `etcdctl get` shows what is what; members of them that are not known here are let be.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from ipaddress import ip_network
from typing import Any

from router.errors import Kind, Refusal
from router.model import Endpoint, Node, Prefix
from router.subnets.check import check_name
from router.subnets.etcd.holder import Holder
from router.subnets.etcd.transaction import Stored
from router.values import parse_endpoint

MOST_BYTES = 65536
"""Longest value that is looked at."""
MOST_SUBNETS = 64
"""Most subnets in one value."""
MOST_EPOCH = 2**53
"""As far as JSON's numbers go."""


@dataclass(frozen=True, slots=True)
class Config:
    """What all routers of a network have to agree on."""

    networks: tuple[Prefix, ...]
    ipv4_length: int
    ipv6_length: int
    vni: int

    def __str__(self) -> str:
        versions = sorted({network.version for network in self.networks})
        lengths = {4: self.ipv4_length, 6: self.ipv6_length}
        cut = " and ".join(f"/{lengths[version]}" for version in versions)
        return f"{', '.join(map(str, self.networks))} in subnets of {cut}, VNI {self.vni}"


@dataclass(frozen=True, slots=True)
class Row:
    """A member: its row of the table, and who it is."""

    node: Node
    holder: Holder
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Who had a subnet last."""

    node: str
    epoch: int
    reserved: bool
    """Whether it stays that node's though it is away."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a node was last."""

    identity: str
    epoch: int
    subnets: tuple[Prefix, ...]


class Layout:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        """Take what all keys begin with, without a slash at the end."""
        self.config = f"{prefix}/config"
        self.members = f"{prefix}/members/"
        self.leases = f"{prefix}/leases/"
        self.owners = f"{prefix}/owners/"
        self._endpoints = f"{prefix}/endpoints/"
        self._nodes = f"{prefix}/nodes/"

    def member(self, name: str) -> str:
        """Return the key of a node's row."""
        return self.members + name

    def lease(self, subnet: Prefix) -> str:
        """Return the key that locks a subnet."""
        return self.leases + subnet_word(subnet)

    def owner(self, subnet: Prefix) -> str:
        """Return the key of a subnet's last owner."""
        return self.owners + subnet_word(subnet)

    def endpoint(self, endpoint: Endpoint) -> str:
        """Return the key that locks an endpoint."""
        return f"{self._endpoints}{endpoint}"

    def node(self, name: str) -> str:
        """Return the key of what a node was last."""
        return self._nodes + name


def subnet_word(subnet: Prefix) -> str:
    """Return a subnet as it stands in keys."""
    return str(subnet).replace("/", "-")


def write_config(config: Config, holder: Holder, store: str) -> bytes:
    """Return a network's value; `store` tells this store from one that was emptied and filled anew."""
    return _write(
        networks=list(map(str, config.networks)),
        ipv4_length=config.ipv4_length,
        ipv6_length=config.ipv6_length,
        vni=config.vni,
        by=holder.hostname,
        at=holder.since,
        store=store,
    )


def read_config(stored: Stored) -> tuple[Config, str]:
    """Return a network, and who wrote it when, for people."""
    value = _Value(stored)
    config = Config(
        value.prefixes("networks"),
        value.number("ipv4_length", 32),
        value.number("ipv6_length", 128),
        value.number("vni", 0xFFFFFF),
    )
    return config, f"{value.text('by')} at {value.text('at')}"


def write_row(node: Node, holder: Holder) -> bytes:
    """Return a member's value."""
    return _write(
        endpoint=str(node.endpoint),
        subnets=list(map(str, node.subnets)),
        offload=node.offload,
        epoch=node.epoch,
        holder=asdict(holder),
    )


def read_row(stored: Stored, layout: Layout) -> Row:
    """Return a member."""
    value = _Value(stored)
    name = stored.key.removeprefix(layout.members)
    try:
        check_name(name)
        endpoint = parse_endpoint(value.text("endpoint"))
    except (Refusal, ValueError) as error:
        raise value.wrong(str(error)) from None
    node = Node(name, endpoint, value.prefixes("subnets"), value.flag("offload"), value.number("epoch", MOST_EPOCH))
    return Row(node, value.holder("holder"), stored.mod_revision, stored.lease)


def write_owner(owner: Owner) -> bytes:
    """Return a last owner's value."""
    return _write(node=owner.node, epoch=owner.epoch, reserved=owner.reserved)


def read_owner(stored: Stored) -> Owner:
    """Return a last owner."""
    value = _Value(stored)
    return Owner(value.text("node"), value.number("epoch", MOST_EPOCH), value.flag("reserved"))


def write_record(record: Record) -> bytes:
    """Return the value of what a node was last."""
    return _write(identity=record.identity, epoch=record.epoch, subnets=list(map(str, record.subnets)))


def read_record(stored: Stored) -> Record:
    """Return what a node was last."""
    value = _Value(stored)
    return Record(value.text("identity"), value.number("epoch", MOST_EPOCH), value.prefixes("subnets"))


def _write(**members: object) -> bytes:
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


class _Value:
    """A value of ours, or of whoever wrote there: each member is checked as it is read."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        if len(stored.value) > MOST_BYTES:
            raise self.wrong(f"it has {len(stored.value)} bytes, and {MOST_BYTES} are too many")
        try:
            self._members = json.loads(stored.value)
        except (ValueError, RecursionError):  # what is no UTF-8 is a ValueError too
            raise self.wrong("it is not JSON") from None
        if not isinstance(self._members, dict):
            raise self.wrong("it is no JSON object")

    def wrong(self, what: str) -> Refusal:
        """Return a refusal of the key that this stands under; whoever may write there chooses what it is called."""
        key = self._stored.key if self._stored.key.isprintable() else ascii(self._stored.key)
        return Refusal(Kind.INVALID, f"etcd key {key}: {what}; delete it unless a router still needs it")

    def text(self, name: str) -> str:
        """Return a short printable text."""
        found = self._members.get(name)
        if not isinstance(found, str) or len(found) > 1000 or not found.isprintable():
            raise self.wrong(f"{name} must be text")
        return found

    def number(self, name: str, most: int) -> int:
        """Return a whole number from 0 on."""
        found = self._members.get(name)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
            raise self.wrong(f"{name} must be a whole number from 0 to {most}")
        return found

    def flag(self, name: str) -> bool:
        """Return true or false."""
        found = self._members.get(name)
        if not isinstance(found, bool):
            raise self.wrong(f"{name} must be true or false")
        return found

    def prefixes(self, name: str) -> tuple[Prefix, ...]:
        """Return prefixes, one at least."""
        found = self._members.get(name)
        if not isinstance(found, list) or not 1 <= len(found) <= MOST_SUBNETS:
            raise self.wrong(f"{name} must be a list of 1 to {MOST_SUBNETS} prefixes")
        return tuple(self._prefix(name, entry) for entry in found)

    def holder(self, name: str) -> Holder:
        """Return a holder."""
        found = self._members.get(name)
        if not isinstance(found, dict):
            raise self.wrong(f"{name} must be an object")
        inner = _Value.__new__(_Value)
        inner._stored, inner._members = self._stored, found  # noqa: SLF001 — one more of this class
        read: dict[str, Any] = {
            field.name: inner.number(field.name, 2**63) if field.type == "int" else inner.text(field.name)
            for field in fields(Holder)
        }
        return Holder(**read)

    def _prefix(self, name: str, text: object) -> Prefix:
        try:
            # Written by a router, so in the one way that it writes: 10.0.0.0/8, not 10.0.0.0/255.0.0.0 or 10.0.0.1/8.
            if isinstance(text, str) and "/" in text and str(found := ip_network(text)) == text:
                return found
        except ValueError:
            pass
        raise self.wrong(f"{name}: {str(text)[:60]!r} is no prefix such as 10.32.1.0/24")
