"""What a node holds to while its table and its lease say different things, and when a successor was let down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from router.cluster import Cluster
from router.config import Settings
from router.events import EventLog
from router.journal import Journal
from router.model import Endpoint, Node
from router.subnets.source import Lease
from tests.engine_rig import Rig

OURS, OTHERS = ip_network("10.1.1.0/24"), ip_network("10.1.2.0/24")
WHERE = Endpoint(ip_address("192.0.2.1"))


class Held:
    """A cluster over a real journal and engine, and what it last said of giving out addresses."""

    def __init__(self, stack: ExitStack, directory: Path, settings: Settings) -> None:
        self.why = ""
        journal = Journal(directory / "state" / "router.db")
        stack.callback(journal.close)
        self.cluster = Cluster(settings, journal, EventLog(), "identity", lambda *_: None, self._hold)
        stack.callback(self.cluster.stop)
        self.cluster.first()
        self.cluster._engine = stack.enter_context(Rig("python")).engine

    def _hold(self, why: str) -> None:
        self.why = why


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with ExitStack() as stack:
        yield Held(stack, tmp_path, Settings("n1", (ip_network("10.1.0.0/16"),), WHERE))


def test_addresses_are_given_out_only_of_the_subnets_that_are_leased(held: Held) -> None:
    cluster = held.cluster
    row = Node("n1", WHERE, (OURS,))
    cluster.tables.replace((row,), None)
    lease = Lease((OURS,), 1, held=True)
    cluster.lease_changed(lease)
    assert held.why == ""
    cluster.lease_changed(replace(lease, held=False, why="etcd is away"))
    assert "etcd is away" in held.why
    cluster.lease_changed(replace(lease, subnets=(OTHERS,), epoch=2))
    assert "other subnets" in held.why, "the table still says the old ones"
    cluster.tables.replace((replace(row, subnets=(OTHERS,), epoch=2),), None)
    assert held.why == ""


class Source:
    """Counts how often it is begun and ended."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def read(self) -> None:
        self._log.append("read")

    def start(self, _listener: object) -> None:
        self._log.append("start")

    def stop(self) -> None:
        self._log.append("stop")

    def state(self) -> object:
        from router.subnets.source import SourceState

        return SourceState("etcd", "", True, 0.0)


def test_a_source_that_was_never_paused_is_not_begun_twice(held: Held) -> None:
    log: list[str] = []
    cluster = held.cluster
    cluster._open_source = lambda: Source(log)  # type: ignore[assignment, return-value]
    cluster._source = Source(log)  # type: ignore[assignment]
    cluster.resume(threading.Event())
    assert log == ["stop", "read", "start"]
