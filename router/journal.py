"""Durable state of a router in SQLite: what was acknowledged is on disk, and survives a kill -9 at any moment.

Order: an attachment is written as `attaching` before anything is made for it, and as `attached` before the caller is
told; a detachment likewise. After a crash the intent says what was under way. Addresses are leases with a UNIQUE
address, so even a bug elsewhere cannot give one to two Pods.

Durability: WAL with synchronous=NORMAL. A killed process loses nothing, because a commit is in the page cache before
the call returns. A power cut may lose the last commits (never the file), and with them only Pods whose namespaces the
same power cut took. A commit of one attachment takes 0.05–0.09 ms with NORMAL and 0.25–0.30 ms with FULL (medians of 500,
ext4 on a virtio disk); FULL waits for the medium in every RPC, which is worse by far on an edge node's flash.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum, unique
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from router.errors import Kind, Refusal
from router.ipam import Resting
from router.model import Attachment, AttachmentKey, Endpoint, Node, SubnetTable

_VERSION = 1
_APPLICATION_ID = 0x706F6477
"""`podw`: tells our file from any other SQLite file."""
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE attachment (
    sandbox_id TEXT NOT NULL, if_name TEXT NOT NULL, intent TEXT NOT NULL, netns_path TEXT NOT NULL,
    mtu_bytes INTEGER NOT NULL, labels TEXT NOT NULL, PRIMARY KEY (sandbox_id, if_name)) WITHOUT ROWID;
CREATE TABLE lease (
    address TEXT PRIMARY KEY, prefix_bits INTEGER NOT NULL, sandbox_id TEXT NOT NULL, if_name TEXT NOT NULL,
    position INTEGER NOT NULL, released_at_s REAL) WITHOUT ROWID;
CREATE INDEX lease_key ON lease (sandbox_id, if_name);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""


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


@dataclass(frozen=True, slots=True)
class State:
    """All that a router needs to go on where its predecessor stopped."""

    attachments: tuple[Recorded, ...] = ()
    resting: tuple[Resting, ...] = ()
    """Released addresses; the times are seconds of the wall clock (Unix)."""


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

    def __init__(self, path: Path) -> None:
        """Open or create the file, and keep every other router out of its directory until `close`."""
        self._path = path
        self._mutex = threading.Lock()
        self._made = [made for made in (path, path.parent / "lock", path.parent) if not os.path.lexists(made)]
        self._lock_fd = _own_directory(path)
        try:
            self._db = self._open()
        except BaseException:
            self._unmake()
            os.close(self._lock_fd)
            raise

    def begin_attach(self, attachment: Attachment) -> None:
        """Record that an attachment is being made, with the addresses it holds. Refuse a known key or held address."""
        key = attachment.key
        labels = json.dumps(attachment.labels, ensure_ascii=False)
        row = (*_columns(key), Intent.ATTACHING, attachment.netns_path, attachment.mtu_bytes, labels)
        with self._transaction() as db:
            if not db.execute("INSERT OR IGNORE INTO attachment VALUES (?, ?, ?, ?, ?, ?)", row).rowcount:
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
                    holder = self._holder(interface.ip)
                    raise Refusal(Kind.EXISTS, f"address {interface.ip}, wanted for {key}, is held by {holder}")

    def commit_attach(self, key: AttachmentKey) -> None:
        """Record that the attachment is complete."""
        self._set_intent(key, Intent.ATTACHED)

    def begin_detach(self, key: AttachmentKey) -> None:
        """Record that the attachment is being taken down; it still holds its addresses."""
        self._set_intent(key, Intent.DETACHING)

    def finish_detach(self, key: AttachmentKey, released_at_s: float) -> None:
        """Forget the attachment and let its addresses rest from that time (Unix). Nothing happens if it is unknown."""
        with self._transaction() as db:
            if db.execute("DELETE FROM attachment WHERE sandbox_id = ? AND if_name = ?", _columns(key)).rowcount:
                db.execute(
                    "UPDATE lease SET released_at_s = ? WHERE sandbox_id = ? AND if_name = ? AND released_at_s IS NULL",
                    (released_at_s, *_columns(key)),
                )

    def forget_resting(self, before_s: float) -> None:
        """Drop addresses released before that time (Unix): they have rested."""
        with self._transaction() as db:
            db.execute("DELETE FROM lease WHERE released_at_s < ?", (before_s,))

    def load(self) -> State:
        """Read every attachment and resting address."""
        with self._transaction() as db:
            attachments = db.execute("SELECT * FROM attachment ORDER BY sandbox_id, if_name").fetchall()
            leases = db.execute("SELECT * FROM lease ORDER BY released_at_s, position").fetchall()
        with self._understood():
            held: dict[tuple[str, str], list[str]] = {}
            resting = []
            for address, bits, sandbox_id, if_name, _, released_at_s in leases:
                if released_at_s is None:
                    held.setdefault((sandbox_id, if_name), []).append(f"{address}/{bits}")
                else:
                    resting.append(Resting(ip_address(address), AttachmentKey(sandbox_id, if_name), released_at_s))
            recorded = [
                Recorded(
                    Attachment(
                        AttachmentKey(sandbox_id, if_name),
                        netns_path,
                        tuple(ip_interface(text) for text in held.get((sandbox_id, if_name), ())),
                        mtu_bytes,
                        tuple((name, value) for name, value in json.loads(labels)),
                    ),
                    Intent(intent),
                )
                for sandbox_id, if_name, intent, netns_path, mtu_bytes, labels in attachments
            ]
            return State(tuple(recorded), tuple(resting))

    def save_table(self, table: SubnetTable | None) -> None:
        """Keep the subnet table that was pushed over gRPC, or forget it."""
        if table is None:
            with self._transaction() as db:
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
                ),
                ensure_ascii=False,
            )
            for node in table.nodes
        )
        self._set_meta(table=f"[{table.version}, [{nodes}]]")

    def load_table(self) -> SubnetTable | None:
        """Return the subnet table that was last saved."""
        text = self._meta().get("table")
        with self._understood():
            if text is None:
                return None
            version, nodes = json.loads(text)
            return SubnetTable(
                version,
                tuple(
                    Node(name, Endpoint(ip_address(address), port), tuple(map(ip_network, subnets)), offload)
                    for name, address, port, subnets, offload in nodes
                ),
            )

    def node(self) -> Identity | None:
        """Return whose journal it is; None while it is new."""
        meta = self._meta()
        return Identity(meta["node"], meta["epoch"], meta["counters_epoch"]) if "node" in meta else None

    def set_node(self, identity: Identity) -> None:
        """Say whose journal it is."""
        self._set_meta(node=identity.name, epoch=identity.epoch, counters_epoch=identity.counters_epoch)

    def close(self) -> None:
        """Close the file and let another router in. May be called twice."""
        with self._mutex:
            if self._lock_fd >= 0:
                self._db.close()
                os.close(self._lock_fd)
                self._lock_fd = -1

    def withdraw(self) -> None:
        """Close, and remove what opening it made: the start it was for came to nothing."""
        with self._mutex:
            if self._lock_fd >= 0:
                self._db.close()  # which takes the -wal and -shm files away
                self._unmake()
                os.close(self._lock_fd)
                self._lock_fd = -1

    def _unmake(self) -> None:
        """Remove files and directory that were not there before, while the lock still keeps others out."""
        for made in self._made:
            with suppress(OSError):
                made.rmdir() if made == self._path.parent else made.unlink()

    def _open(self) -> sqlite3.Connection:
        """Open the file, owner-only before SQLite writes a byte (the -wal and -shm files take over its mode)."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._path.chmod(0o600)
        except OSError as error:
            raise Refusal(Kind.STATE, f"cannot open journal {self._path}: {error.strerror}") from None
        with self._usable():
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Create the schema in a new file; refuse a file that is not one of ours, or not whole."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not (version or application or tables):
            db.executescript(_SCHEMA)
        elif application != _APPLICATION_ID:
            raise Refusal(
                Kind.STATE, f"{self._path} is an SQLite file, but no Podwire journal: use another state directory"
            )
        elif version > _VERSION:
            raise Refusal(
                Kind.STATE,
                f"journal {self._path} has schema {version}, written by a newer Podwire; this one knows {_VERSION}: "
                "upgrade Podwire, or use another state directory",
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(str(verdict).split()))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            if self._lock_fd < 0:
                raise Refusal(Kind.UNAVAILABLE, f"journal {self._path} is closed: the router is stopping")
            with self._usable():
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    # SQLite has rolled back by itself after some errors (a full disk, say).
                    with suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                    raise

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn what SQLite says of the file into words for people; its words about our statements are bugs, and stay."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise Refusal(
                Kind.UNAVAILABLE,
                f"journal {self._path} cannot be used ({error}): check the space and the rights of its directory",
            ) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            raise self._corrupt(error) from error

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn rows that make no sense into words for people."""
        try:
            yield
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt(error) from error

    def _corrupt(self, error: Exception) -> Refusal:
        return Refusal(
            Kind.STATE,
            f"journal {self._path} is corrupt ({error}): stop the router, move {self._path}* away, start it, and "
            "attach the node's Pods anew",
        )

    def _set_intent(self, key: AttachmentKey, intent: Intent) -> None:
        with self._transaction() as db:
            sql = "UPDATE attachment SET intent = ? WHERE sandbox_id = ? AND if_name = ?"
            if not db.execute(sql, (intent, *_columns(key))).rowcount:
                raise Refusal(Kind.NOT_FOUND, f"attachment {key} is not in the journal")

    def _holder(self, address: object) -> AttachmentKey:
        return AttachmentKey(
            *self._db.execute("SELECT sandbox_id, if_name FROM lease WHERE address = ?", (str(address),)).fetchone()
        )

    def _set_meta(self, **values: str) -> None:
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _meta(self) -> dict[str, str]:
        with self._transaction() as db:
            return dict(db.execute("SELECT name, value FROM meta"))


def _columns(key: AttachmentKey) -> tuple[str, str]:
    return key.sandbox_id, key.if_name


def _own_directory(path: Path) -> int:
    """Make the directory if need be and lock it; return the lock's fd. The kernel frees it when the process dies."""
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            # Never chmod what somebody else made: it may be /tmp.
            raise Refusal(
                Kind.STATE,
                f"state directory {directory} may be written by others (mode {status.st_mode & 0o7777:o}, "
                f"owner {status.st_uid}): use one of the router's own, mode 700",
            )
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refusal(Kind.STATE, f"cannot use state directory {directory}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise Refusal(
            Kind.STATE,
            f"state directory {directory} is in use by another router (pid {pid}): stop it, or use another --state-dir",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
