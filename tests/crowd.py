"""Many bare namespaces to attach, and everything a router could leak of them."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from shim.client import Client
from shim.lab import netns, plan
from shim.lab.node import LabNode


@contextmanager
def namespaces(prefix: str, count: int) -> Iterator[list[str]]:
    """Make namespaces, named so that no other lab has them, and remove what is left of them afterwards."""
    names = [f"{prefix}{index}" for index in range(count)]
    try:
        for name in names:
            netns.create(name, plan.POD_SYSCTLS)
        yield names
    finally:
        for name in names:
            netns.delete(name)


def path(name: str) -> str:
    return str(netns.path_of(name))


def interfaces(name: str) -> list[str]:
    """Return the interfaces of a namespace but its loopback."""
    listed = netns.run(netns.path_of(name), ["ip", "-o", "link"]).stdout.splitlines()
    return [found for line in listed if (found := line.split(": ")[1]) != "lo"]


@dataclass(frozen=True)
class Holdings:
    """What a router holds: equal before and after means that nothing leaked."""

    attached: frozenset[str]
    journal: frozenset[tuple[str, str]]
    leases: int
    """Addresses held, resting ones not among them."""
    free: tuple[tuple[str, int], ...]
    tuns: int
    fds: frozenset[tuple[str, int]]
    """Open files by kind, without sockets of clients that come and go."""


def holdings(node: LabNode, client: Client) -> Holdings:
    with closing(sqlite3.connect(f"file:{node.state_dir / 'router.db'}?mode=ro", uri=True)) as journal:
        rows = frozenset(journal.execute("SELECT sandbox_id, intent FROM attachment"))
        (leases,) = journal.execute("SELECT count(*) FROM lease WHERE released_at_s IS NULL").fetchone()
    kinds = Counter(open_files(node))
    return Holdings(
        attached=frozenset(each.key.sandbox_id for each in client.attachments()),
        journal=rows,
        leases=leases,
        free=tuple((each.subnet, each.free) for each in client.status().free_addresses),
        tuns=kinds["/dev/net/tun"],
        fds=frozenset((kind, count) for kind, count in kinds.items() if kind != "socket"),
    )


def open_files(node: LabNode) -> list[str]:
    """Return what the router's fds are: paths, or the kind of what has none."""
    found = []
    for entry in Path(f"/proc/{node.pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry).partition(":")[0])  # noqa: PTH115 - `socket:[1]` is no path
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def resident_bytes(node: LabNode) -> int:
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")
