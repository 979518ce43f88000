"""What Pods leave behind on a node, if anything: looked for wherever something of theirs is kept."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from shim.lab import netns
from shim.lab.node import LabNode

WITHIN_S = 30.0
"""The router looks for vanished namespaces and tombstones every second; a kernel takes namespaces down in its own time."""


class Census:
    """What there was on some nodes before any Pod, to be compared with what there is after all of them."""

    def __init__(self, nodes: Iterable[LabNode]) -> None:
        self._nodes = list(nodes)
        self._namespaces = _namespaces()
        self._before = {node.name: _take(node) for node in self._nodes}

    def new(self) -> dict[str, list[str]]:
        """Return all that is more than there was, by node and sort."""
        found = {}
        for node in self._nodes:
            for sort, things in _take(node).items():
                if more := sorted(things - self._before[node.name][sort]):
                    found[f"{node.name} {sort}"] = more
        # Those of other programs on this machine hold processes, or are gone again by the next look.
        fresh = [name for name in _namespaces() - self._namespaces if not netns.pids_inside([name])]
        if fresh:
            found["namespaces"] = sorted(fresh)
        return found

    def assert_nothing_left(self, within_s: float = WITHIN_S) -> None:
        """Fail with all that is still there after a while."""
        deadline_s = time.monotonic() + within_s
        while (left := self.new()) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert not left, f"left behind: {json.dumps(left, indent=1)}"


def _take(node: LabNode) -> dict[str, set[str]]:
    looks: dict[str, Callable[[LabNode], Iterable[str]]] = {
        "attachments": _attachments,
        "journal rows": _journal_rows,
        "devices": _devices,
        "nftables rules": _rules,
        "tombstones": _tombstones,
    }
    return {sort: set(look(node)) for sort, look in looks.items()}


def _attachments(node: LabNode) -> Iterable[str]:
    with node.client() as client:
        return [f"{each.key} {' '.join(each.addresses)}" for each in client.attachments()]


def _journal_rows(node: LabNode) -> Iterable[str]:
    """Attachments, and addresses held. One that was released rests for a minute, by intent."""
    with closing(sqlite3.connect(f"file:{node.state_dir}/router.db?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT sandbox_id, if_name FROM attachment").fetchall()
        leases = db.execute("SELECT address, sandbox_id, if_name FROM lease WHERE released_at_s IS NULL").fetchall()
    return [f"attachment {row}" for row in rows] + [f"lease {row}" for row in leases]


def _devices(node: LabNode) -> Iterable[str]:
    return [link["ifname"] for link in json.loads(node.run(["ip", "-json", "link"], check=True).stdout)]


def _rules(node: LabNode) -> Iterable[str]:
    # Without counters (-s); a rule's text may stand twice, so its place is part of it.
    lines = node.run(["nft", "-s", "list", "ruleset"], check=True).stdout.splitlines()
    path: list[str] = []
    rules = []
    for line in map(str.strip, lines):
        if line == "}":
            path.pop()
        elif line:
            rules.append(" / ".join([*path, line]))
            if line.endswith("{"):
                path.append(line.removesuffix("{").strip())
    return rules


def _tombstones(node: LabNode) -> Iterable[str]:
    return [path.name for path in (Path(node.socket).parent / "tombstones").glob("*")]


def _namespaces() -> set[str]:
    """Return those that containerd, podman and our shim have made, by their names."""
    return {path.name for sort in ("cni-*", "netns-*", "podwire-*") for path in netns.DIRECTORY.glob(sort)}
