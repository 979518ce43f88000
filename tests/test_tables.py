"""The table in force: what is kept of it, when, and what a router that starts again makes of it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from router.config import Etcd, Kubernetes, Settings
from router.errors import Kind, Refusal
from router.journal import Journal
from router.model import Endpoint, Node, SubnetTable
from router.subnets.tables import Tables

NETWORKS = (ip_network("10.32.0.0/12"),)
SELF = Endpoint(ip_address("192.0.2.1"))
GRPC = Settings("a", NETWORKS, SELF)
ETCD = replace(GRPC, etcd=Etcd(("http://192.0.2.9:2379",)))


def node(number: int, host: int = 0, epoch: int = 0) -> Node:
    name = "a" if number == 1 else f"n{number}"
    return Node(name, Endpoint(ip_address(f"192.0.2.{host or number}")), (ip_network(f"10.32.{number}.0/24"),), epoch=epoch)  # fmt: skip


A, B, C = node(1, epoch=3), node(2, epoch=5), node(3)


class Following:
    """Tables and whom they tell."""

    def __init__(self, settings: Settings, journal: Journal, remember_every_s: float = 5.0) -> None:
        self.applied: list[SubnetTable] = []
        self.announced: list[SubnetTable] = []
        self.refusal: Refusal | None = None
        self.tables = Tables(settings, journal, self._apply, self.announced.append, remember_every_s)

    def _apply(self, table: SubnetTable) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.applied.append(table)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


def test_a_table_nobody_else_keeps_is_on_disk_before_it_is_in_force(journal: Journal) -> None:
    following = Following(GRPC, journal)
    tables = following.tables
    tables.replace((A, B), None)
    assert journal.load_table() == tables.current == SubnetTable(1, (A, B))
    assert following.applied == following.announced == [tables.current]
    following.refusal = Refusal(Kind.STATE, "not now")
    with pytest.raises(Refusal, match="not now"):
        tables.upsert(C)
    assert journal.load_table() == tables.current == SubnetTable(1, (A, B))
    following.refusal = None
    assert tables.upsert(C).nodes == (A, B, C)
    assert tables.remove("n2").nodes == (A, C)
    assert tables.own_subnets() == A.subnets
    tables.close()
    again = Following(GRPC, journal).tables
    assert again.confirm() == tables.current == SubnetTable(3, (A, C))


def test_a_row_in_conflict_is_refused_and_changes_nothing(journal: Journal) -> None:
    following = Following(GRPC, journal)
    base = tuple(node(number) for number in range(1, 21))
    following.tables.replace(base, None)
    with pytest.raises(Refusal, match="nodes n7 and n30 both have endpoint"):
        following.tables.upsert(node(30, host=7))
    assert following.tables.current == SubnetTable(1, base)
    assert len(following.applied) == 1
    moved = following.tables.upsert(node(7, host=30))
    assert following.tables.upsert(node(30, host=7)).version == moved.version + 1 == 3


def test_equal_rows_are_no_new_version_and_the_newest_objects_are_kept(journal: Journal) -> None:
    following = Following(ETCD, journal, math.inf)
    following.tables.adopt((A, B))
    following.tables.adopt((again := replace(A), B))
    assert len(following.applied) == 1
    assert following.tables.current.version == 1
    assert following.tables.current.nodes[0] is again


def test_a_store_is_remembered_behind_and_once_for_many_changes(journal: Journal) -> None:
    saved: list[SubnetTable | None] = []
    written = threading.Condition()
    save = journal.save_table

    def save_table(table: SubnetTable | None) -> None:
        save(table)
        with written:
            saved.append(table)
            written.notify()

    journal.save_table = save_table  # type: ignore[method-assign]
    period_s = 0.3
    began_s = time.monotonic()
    tables = Following(ETCD, journal, period_s).tables
    tables.prepare((A, B))
    for epoch in range(50):
        tables.adopt((A, replace(B, epoch=epoch)))
    with written:
        assert written.wait_for(lambda: saved[-1:] == [tables.current], 30)
        assert len(saved) <= (time.monotonic() - began_s) / period_s
    tables.adopt((A, C))
    tables.close()
    assert saved[-1] == tables.current == journal.load_table()
    tables.close()
    tables.adopt((A,))
    assert journal.load_table() == SubnetTable(tables.current.version - 1, (A, C)), "closed is closed"


def test_versions_grow_over_a_crash_that_the_journal_was_behind_at(journal: Journal) -> None:
    tables = Following(ETCD, journal, math.inf).tables
    assert tables.current == SubnetTable(0)
    tables.adopt((A, B))
    tables.close()
    for epoch in range(100):
        tables.adopt((A, replace(B, epoch=epoch)))
    assert journal.load_table() == SubnetTable(1, (A, B))
    again = Following(ETCD, journal, math.inf).tables
    assert again.confirm().nodes == (A, B)
    assert again.current.version > tables.current.version


def test_a_full_disk_does_not_hold_up_a_store(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    tables = Following(ETCD, journal, math.inf).tables
    tables.adopt((A, B))
    journal.close()
    tables.close()
    assert "could not be remembered" in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            replace(GRPC, subnets_file=Path("/etc/t.toml")),
            "comes from /etc/t.toml: change it there, or run .* --subnets",
        ),
        (ETCD, "comes from etcd at http://192.0.2.9:2379: nodes take .*, or run the router without --etcd"),
        (
            replace(GRPC, kubernetes=Kubernetes("in-cluster")),
            "comes from the Nodes of Kubernetes: change them there, or run the router without --kubernetes",
        ),
    ],
)
def test_a_table_is_changed_where_it_comes_from(journal: Journal, settings: Settings, words: str) -> None:
    tables = Following(settings, journal, math.inf).tables
    for change in (lambda: tables.replace((A,), None), lambda: tables.upsert(A), lambda: tables.remove("a")):
        with pytest.raises(Refusal, match=words) as refused:
            change()
        assert refused.value.kind is Kind.STATE


def test_a_table_of_before_epochs_is_read(journal: Journal) -> None:
    row = ["a", "192.0.2.1", 6081, ["10.32.1.0/24"], True]
    journal._set_meta(table=json.dumps([4, [row]]))
    assert journal.load_table() == SubnetTable(4, (replace(A, epoch=0),))
    journal.save_table(SubnetTable(5, (A, B)))
    assert journal.load_table() == SubnetTable(5, (A, B))


def test_settings_that_changed_refuse_the_last_table(journal: Journal) -> None:
    Following(GRPC, journal).tables.replace((A, B), None)
    moved = Following(replace(GRPC, underlay=Endpoint(ip_address("192.0.2.7"))), journal).tables
    with pytest.raises(
        Refusal, match=r"says that a is at 192\.0\.2\.1:6081, but its router's underlay is 192\.0\.2\.7"
    ):
        moved.confirm()
