"""Durable state of a router in SQLite: what was acknowledged is on disk, and survives a kill -9 at any moment.

Order: an attachment is written as `attaching` before anything is made for it, and as `attached` before the caller is
told; a detachment likewise. After a crash the intent says what was under way. Addresses are leases with a UNIQUE
address, so even a bug elsewhere cannot give one to two Pods.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from router.errors import Kind, Refusal
from router.ipam import Resting
from router.kernel import netns
from router.model import (
    Attachment,
    AttachmentKey,
    Endpoint,
    Limit,
    Limits,
    Node,
    PortMapping,
    Protocol,
    SubnetTable,
)
from router.statefile import StateFile

_STEPS = (
    """
CREATE TABLE attachment (
    sandbox_id TEXT NOT NULL, if_name TEXT NOT NULL, intent TEXT NOT NULL, netns_path TEXT NOT NULL,
    mtu_bytes INTEGER NOT NULL, labels TEXT NOT NULL, PRIMARY KEY (sandbox_id, if_name)) WITHOUT ROWID;
CREATE TABLE lease (
    address TEXT PRIMARY KEY, prefix_bits INTEGER NOT NULL, sandbox_id TEXT NOT NULL, if_name TEXT NOT NULL,
    position INTEGER NOT NULL, released_at_s REAL) WITHOUT ROWID;
CREATE INDEX lease_key ON lease (sandbox_id, if_name);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
""",
    # Who asked, what else was asked for, which namespace it was, and since when; and which keys were detached when.
    """
ALTER TABLE attachment ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE attachment ADD COLUMN ports TEXT NOT NULL DEFAULT '[]';
ALTER TABLE attachment ADD COLUMN limits TEXT NOT NULL DEFAULT '[null, null]';
ALTER TABLE attachment ADD COLUMN namespace TEXT NOT NULL DEFAULT '';
ALTER TABLE attachment ADD COLUMN since_ns INTEGER NOT NULL DEFAULT 0;
CREATE TABLE departed (
    sandbox_id TEXT NOT NULL, if_name TEXT NOT NULL, detached_ns INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, if_name)) WITHOUT ROWID;
""",
)
"""What makes schema 1 of nothing, and 2 of 1."""
SCHEMA = len(_STEPS)
_ADD_ATTACHMENT = "INSERT OR IGNORE INTO attachment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@unique
class Intent(StrEnum):
    """What was being done with an attachment when it was last written."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


@dataclass(frozen=True, slots=True)
class Recorded:
    """An attachment and what was being done with it."""

    attachment: Attachment
    intent: Intent
    namespace: netns.Identity | None = None
    """Which namespace its path led to; None when written by a version that did not say."""
    since_ns: int = 0
    """When it was attached (CLOCK_BOOTTIME)."""


@dataclass(frozen=True, slots=True)
class State:
    """All that a router needs to go on where its predecessor stopped."""

    attachments: tuple[Recorded, ...] = ()
    resting: tuple[Resting, ...] = ()
    """Released addresses; the times are seconds of the wall clock (Unix)."""
    departed: tuple[tuple[AttachmentKey, int], ...] = ()
    """Keys and when they were last detached (CLOCK_BOOTTIME, nanoseconds), attached or not."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose journal it is."""

    name: str
    """The node."""
    epoch: str
    """UUID of this state directory's life."""
    counters_epoch: str
    """Changes when counters start at 0."""


class Journal:
    """One router's durable state. Thread-safe; each call is committed when it returns."""

    def __init__(self, path: Path, lock_fd: int = -1) -> None:
        """Open or create the file, and keep every other router out of its directory until `close`; see StateFile."""
        self._file = StateFile(path, _STEPS, lock_fd)
        status = path.stat()
        self.place = f"{status.st_dev}:{status.st_ino}"
        """Which file it is, on this machine: no two routers have the same one."""
        self.close = self._file.close
        self.withdraw = self._file.withdraw
        self.claim = self._file.claim
        self.lend_lock = self._file.lend_lock
        self.freeze = self._file.freeze

    def begin_attach(self, attachment: Attachment, namespace: netns.Identity | None = None, since_ns: int = 0) -> None:
        """Record that an attachment is being made, with the addresses it holds. Refuse a known key or held address."""
        key = attachment.key
        row = (*_columns(key), Intent.ATTACHING, *_wishes(attachment), _place(namespace), since_ns)
        with self._file.transaction() as db:
            if not db.execute(_ADD_ATTACHMENT, row).rowcount:
                raise Refusal(Kind.EXISTS, f"attachment {key} is in the journal already: detach it first")
            for position, interface in enumerate(attachment.addresses):
                # A resting address may be taken over (the ipam says when), a held one never.
                taken = db.execute(
                    "INSERT INTO lease VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (address) DO UPDATE SET "
                    "prefix_bits = excluded.prefix_bits, sandbox_id = excluded.sandbox_id, if_name = excluded.if_name, "
                    "position = excluded.position, released_at_s = NULL WHERE released_at_s IS NOT NULL",
                    (str(interface.ip), interface.network.prefixlen, *_columns(key), position),
                )
                if not taken.rowcount:
                    where = "SELECT sandbox_id, if_name FROM lease WHERE address = ?"
                    holder = AttachmentKey(*db.execute(where, (str(interface.ip),)).fetchone())
                    raise Refusal(Kind.EXISTS, f"address {interface.ip}, wanted for {key}, is held by {holder}")

    def commit_attach(self, key: AttachmentKey) -> None:
        """Record that the attachment is complete."""
        self._set_intent(key, Intent.ATTACHED)

    def renew_attach(self, key: AttachmentKey, since_ns: int) -> None:
        """Record that an attachment was asked for again, at that time (CLOCK_BOOTTIME)."""
        with self._file.transaction() as db:
            where = "UPDATE attachment SET since_ns = ? WHERE sandbox_id = ? AND if_name = ?"
            db.execute(where, (since_ns, *_columns(key)))

    def begin_detach(self, key: AttachmentKey) -> None:
        """Record that the attachment is being taken down; it still holds its addresses."""
        self._set_intent(key, Intent.DETACHING)

    def finish_detach(self, key: AttachmentKey, released_at_s: float, detached_ns: int = 0) -> None:
        """Forget the attachment and let its addresses rest from that time (Unix); unknown ones are no error.

        Given a time of CLOCK_BOOTTIME, remember it as the last detachment of the key, which may be unknown.
        """
        with self._file.transaction() as db:
            if detached_ns:
                db.execute("INSERT OR REPLACE INTO departed VALUES (?, ?, ?)", (*_columns(key), detached_ns))
            if db.execute("DELETE FROM attachment WHERE sandbox_id = ? AND if_name = ?", _columns(key)).rowcount:
                db.execute(
                    "UPDATE lease SET released_at_s = ? WHERE sandbox_id = ? AND if_name = ? AND released_at_s IS NULL",
                    (released_at_s, *_columns(key)),
                )

    def forget_resting(self, before_s: float) -> None:
        """Drop addresses released before that time (Unix): they have rested."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM lease WHERE released_at_s < ?", (before_s,))

    def forget_departed(self, before_ns: int, after_ns: int) -> None:
        """Drop detachments before or after these times (CLOCK_BOOTTIME): too old to matter, or of an earlier boot."""
        with self._file.transaction() as db:
            db.execute("DELETE FROM departed WHERE detached_ns < ? OR detached_ns > ?", (before_ns, after_ns))

    def load(self) -> State:
        """Read every attachment and resting address."""
        with self._file.transaction() as db:
            attachments = db.execute("SELECT * FROM attachment ORDER BY sandbox_id, if_name").fetchall()
            departed = db.execute("SELECT * FROM departed ORDER BY detached_ns").fetchall()
            leases = db.execute("SELECT * FROM lease ORDER BY released_at_s, position").fetchall()
        with self._file.understood():
            held: dict[tuple[str, str], list[str]] = {}
            resting = []
            for address, bits, sandbox_id, if_name, _, released_at_s in leases:
                if released_at_s is None:
                    held.setdefault((sandbox_id, if_name), []).append(f"{address}/{bits}")
                else:
                    resting.append(Resting(ip_address(address), AttachmentKey(sandbox_id, if_name), released_at_s))
            recorded = tuple(_recorded(row, held.get(row[:2], ())) for row in attachments)
            gone = tuple((AttachmentKey(sandbox_id, if_name), at_ns) for sandbox_id, if_name, at_ns in departed)
            return State(recorded, tuple(resting), gone)

    def save_table(self, table: SubnetTable | None) -> None:
        """Keep the subnet table, or forget it."""
        if table is None:
            with self._file.transaction() as db:
                db.execute("DELETE FROM meta WHERE name = 'table'")
            return
        # Row by row: one call for 100,000 of them would keep the interpreter from the engine for a tenth of a second.
        nodes = ",".join(
            json.dumps(
                (
                    node.name,
                    str(node.endpoint.address),
                    node.endpoint.port,
                    [str(s) for s in node.subnets],
                    node.offload,
                    node.epoch,
                ),
                ensure_ascii=False,
            )
            for node in table.nodes
        )
        self._set_meta(table=f"[{table.version}, [{nodes}]]")

    def load_table(self) -> SubnetTable | None:
        """Return the subnet table that was last saved."""
        text = self._meta().get("table")
        with self._file.understood():
            if text is None:
                return None
            version, nodes = json.loads(text)
            return SubnetTable(
                version,
                tuple(
                    Node(name, Endpoint(ip_address(address), port), tuple(map(ip_network, subnets)), offload, *epoch)
                    for name, address, port, subnets, offload, *epoch in nodes  # without the epoch from earlier versions
                ),
            )

    def node(self) -> Identity | None:
        """Return whose journal it is; None while it is new."""
        meta = self._meta()
        return Identity(meta["node"], meta["epoch"], meta["counters_epoch"]) if "node" in meta else None

    def set_node(self, identity: Identity) -> None:
        """Say whose journal it is."""
        self._set_meta(node=identity.name, epoch=identity.epoch, counters_epoch=identity.counters_epoch)

    def memory(self, name: str) -> Memory:
        """Return a place for what a source of subnets must not forget."""
        return Memory(self, name)

    def recall(self, name: str) -> str | None:
        """Return what was remembered under a name."""
        return self._meta().get(f"memory:{name}")

    def remember(self, name: str, text: str) -> None:
        """Keep a text under a name."""
        self._set_meta(**{f"memory:{name}": text})

    def _set_intent(self, key: AttachmentKey, intent: Intent) -> None:
        with self._file.transaction() as db:
            sql = "UPDATE attachment SET intent = ? WHERE sandbox_id = ? AND if_name = ?"
            if not db.execute(sql, (intent, *_columns(key))).rowcount:
                raise Refusal(Kind.NOT_FOUND, f"attachment {key} is not in the journal")

    def _set_meta(self, **values: str) -> None:
        with self._file.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _meta(self) -> dict[str, str]:
        with self._file.transaction() as db:
            return dict(db.execute("SELECT name, value FROM meta"))


class Memory:
    """A JSON object under one name of a journal."""

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal = journal
        self._name = name

    def load(self) -> dict[str, Any] | None:
        """Return what was saved last; None when nothing was, or it is not to be read."""
        try:
            found = json.loads(self._journal.recall(self._name) or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def save(self, what: dict[str, Any]) -> None:
        """Keep it: it is on disk when this returns."""
        self._journal.remember(self._name, json.dumps(what))


def _columns(key: AttachmentKey) -> tuple[str, str]:
    return key.sandbox_id, key.if_name


def _wishes(attachment: Attachment) -> tuple[str, int, str, str, str, str]:
    """Return what was asked for, as it stands in a row."""
    ports = [
        (port.host_port, port.container_port, port.protocol, str(port.host_address or "")) for port in attachment.ports
    ]
    limits = [limit and (limit.bytes_per_s, limit.burst_bytes) for limit in _both_ways(attachment.limits)]
    return (
        attachment.netns_path,
        attachment.mtu_bytes,
        json.dumps(attachment.labels, ensure_ascii=False),
        attachment.owner,
        json.dumps(ports),
        json.dumps(limits),
    )


def _recorded(row: tuple[Any, ...], addresses: Sequence[str]) -> Recorded:
    sandbox_id, if_name, intent, netns_path, mtu_bytes, labels, owner, ports, limits, namespace, since_ns = row
    attachment = Attachment(
        AttachmentKey(sandbox_id, if_name),
        netns_path,
        tuple(map(ip_interface, addresses)),
        mtu_bytes,
        tuple((name, value) for name, value in json.loads(labels)),
        owner,
        tuple(
            PortMapping(host_port, container_port, Protocol(protocol), ip_address(host) if host else None)
            for host_port, container_port, protocol, host in json.loads(ports)
        ),
        Limits(*(limit and Limit(*limit) for limit in json.loads(limits))),
    )
    return Recorded(attachment, Intent(intent), _identity(namespace), since_ns)


def _both_ways(limits: Limits) -> tuple[Limit | None, Limit | None]:
    return limits.ingress, limits.egress


def _place(namespace: netns.Identity | None) -> str:
    return f"{namespace[0]}:{namespace[1]}" if namespace else ""


def _identity(text: str) -> netns.Identity | None:
    device, colon, inode = text.partition(":")
    return (int(device), int(inode)) if colon else None
