"""One router's SQLite file: opened owner-only in a directory nobody else uses, and every trouble with it in words for people.

Durability: WAL with synchronous=NORMAL. A killed process loses nothing, because a commit is in the page cache before
the call returns. A power cut may lose the last commits (never the file), and with them only Pods whose namespaces the
same power cut took. A commit of one attachment takes 0.05–0.09 ms with NORMAL and 0.25–0.30 ms with FULL (medians of 500,
ext4 on a virtio disk); FULL waits for the medium in every RPC, which is worse by far on an edge node's flash.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from router.errors import Kind, Refusal

_APPLICATION_ID = 0x706F6477
"""`podw`: tells our file from any other SQLite file."""


class StateFile:
    """The open file. Thread-safe; each transaction is committed when its block ends."""

    def __init__(self, path: Path, steps: Sequence[str], lock_fd: int = -1) -> None:
        """Open or create the file, and keep every other router out of its directory until `close`.

        `lock_fd` is a predecessor's lock, which goes on, and is ours to close; say `claim` once the predecessor has gone.
        `steps` are the SQL scripts that make schema 1 of nothing, 2 of 1, and so on; those still to do are done.
        """
        self._path = path
        self._steps = steps
        self._mutex = threading.Lock()
        self._made = [made for made in (path, path.parent / "lock", path.parent) if not os.path.lexists(made)]
        self._frozen = False
        self._lock_fd = _own_directory(path) if lock_fd < 0 else _adopt_lock(path, lock_fd)
        try:
            self._db = self._open()
        except BaseException:
            self._unmake()
            os.close(self._lock_fd)
            raise

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

    def claim(self) -> None:
        """Say in the lock that it is this process that has it."""
        _sign(self._lock_fd)

    def lend_lock(self) -> int:
        """Return the lock's fd for a successor; it stays ours to close, and the lock holds until both have."""
        return self._lock_fd

    def freeze(self, frozen: bool) -> None:
        """Write nothing any more once this returns, or write again: a successor works with the file."""
        with self._mutex:
            self._frozen = frozen

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
        """Bring the schema up to date; refuse a file that is not one of ours, of a newer Podwire, or not whole."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        new = not (version or application or tables)
        if not new and application != _APPLICATION_ID:
            raise Refusal(
                Kind.STATE, f"{self._path} is an SQLite file, but no Podwire journal: use another state directory"
            )
        if version > len(self._steps):
            raise Refusal(
                Kind.STATE,
                f"journal {self._path} has schema {version}, written by a newer Podwire; this one knows {len(self._steps)}: "
                "upgrade Podwire, or use another state directory",
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(str(verdict).split()))
        for number, step in enumerate(self._steps[version:], version + 1):
            # Each step whole or not at all.
            marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number};"
            db.executescript(f"BEGIN IMMEDIATE; {step} {marks} COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements that take effect together, at the end of the block, or not at all."""
        with self._mutex:
            if self._lock_fd < 0:
                raise Refusal(Kind.UNAVAILABLE, f"journal {self._path} is closed: the router is stopping")
            if self._frozen:
                raise Refusal(Kind.UNAVAILABLE, "a successor is taking over; try again")
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
    def understood(self) -> Iterator[None]:
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
    _sign(fd)
    return fd


def _sign(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid():7}\n".encode(), 0)


def _adopt_lock(path: Path, fd: int) -> int:
    """Check that an fd is this directory's lock, and that it locks."""
    try:
        if not os.path.samestat(os.fstat(fd), (path.parent / "lock").stat()):
            raise OSError(0, "it is another file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise Refusal(
            Kind.STATE, f"the lock of state directory {path.parent} was not handed over: {error.strerror}"
        ) from None
    return fd
