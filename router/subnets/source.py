"""A source of subnets: where a router learns which node owns which Pod range. One module or package a source.

file.py     a TOML file, watched: the default, for one machine or a configuration tool
etcd/       leases in etcd v3: nodes take their subnets themselves
kubernetes  what Kubernetes allotted its Nodes
(none)      a controller replaces the table over gRPC

A source says what the table is; whether that table is sound, and in force, is `tables`' to say. It never forgets: while its
store is away the daemon keeps the last table, and `state` tells how old it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from router.model import Node, Prefix


@dataclass(frozen=True, slots=True)
class Lease:
    """The hold of this node on its subnets."""

    subnets: tuple[Prefix, ...]
    """What is held, or was last."""
    epoch: int
    """Which holding it is: grows by one each time the subnets are taken anew. 0 before the first."""
    held: bool
    """Whether it holds for sure now: the store said so less than a TTL ago."""
    expires_s: float = 0.0
    """When it ends unless it is renewed (CLOCK_MONOTONIC); 0 when it does not end."""
    reserved: bool = False
    """Whether the subnets stay this node's when the lease ends."""
    why: str = ""
    """Why it is not held."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """How a source stands."""

    kind: str
    """"file", "grpc", "etcd" or "kubernetes"."""
    where: str
    """A path or URLs; empty for grpc."""
    connected: bool
    """Whether changes of the store are seen as they happen."""
    confirmed_s: float
    """When the table was last known to be what the store says (CLOCK_MONOTONIC)."""
    error: str = ""
    """Why it is not connected, in one line; or what is wrong with what the store says."""
    lease: Lease | None = None
    """None for a source that hands out nothing."""


class Listener(Protocol):
    """Whom a source tells, one call at a time, from a thread of the source's own."""

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        """The table is this now, this node included. Raise Refusal when it cannot come into force; the last one stays."""

    def table_refused(self, message: str) -> None:
        """What the store says is no table, or `table_changed` refused it."""

    def connection_changed(self, state: SourceState) -> None:
        """The store went away, or is back."""

    def lease_changed(self, lease: Lease) -> None:
        """The lease of this node was taken, lost or moved. While it is not held no new address may be given out."""


class Source(Protocol):
    """Where the table comes from."""

    def read(self) -> tuple[Node, ...] | None:
        """Return the table now, or None when the store does not answer within seconds and the last table has to do.

        Called once, before `start`. Raise Refusal when a router must not start like this, with what is in its way.
        """

    def start(self, listener: Listener) -> None:
        """Tell of every change from now on, and of what changed since `read`."""

    def stop(self) -> None:
        """End; no call to the listener comes afterwards. What is leased stays so for a successor. May be called twice."""

    def state(self) -> SourceState:
        """Say how it stands. From any thread."""
