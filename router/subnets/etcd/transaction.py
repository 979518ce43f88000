"""Transactions as plain values: conditions, what to do, and what came of it. Pure; `client` speaks them to etcd."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """A key with its value, as it was at some revision of the store."""

    key: str
    value: bytes
    mod_revision: int
    """The store's revision when it was last written."""
    lease: int = 0
    """Which lease it ends with; 0: none."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Condition: the key was last written at that revision; 0: it is not there."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class LeasedBy:
    """Condition: the key is there and ends with that lease."""

    key: str
    lease: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key."""

    key: str


@dataclass(frozen=True, slots=True)
class GetAll:
    """Read all keys that begin with something, at most so many (0: all), ordered by key."""

    prefix: str
    keys_only: bool = False
    limit: int = 0


Condition = Unchanged | LeasedBy
Step = Put | Delete | Get | GetAll


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction did."""

    succeeded: bool
    """Whether all conditions held."""
    revision: int
    """The store's, when it was done."""
    cluster: int
    """Which cluster of servers did it."""
    found: tuple[tuple[Stored, ...], ...]
    """What each step read; of a step that reads nothing, nothing."""

    def one(self, index: int) -> Stored | None:
        """Return what a `Get` found."""
        return self.found[index][0] if self.found[index] else None


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written or removed."""

    key: str
    stored: Stored | None
    """None: removed."""
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a watch saw at once; no changes at all: it is still watching."""

    revision: int
    changes: tuple[Change, ...] = ()
