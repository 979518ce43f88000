"""The journal: what was acknowledged is there, whatever happened to the process or the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from router.errors import Kind, Refusal
from router.ipam import Resting
from router.journal import _STEPS, Identity, Intent, Journal, Recorded, State
from router.model import Attachment, AttachmentKey, Endpoint, Limit, Limits, Node, PortMapping, Protocol, SubnetTable

LABELS = (("name", "wéb-0"), ("namespace", "default"))


def attachment(number: int, *addresses: str) -> Attachment:
    held = addresses or (f"10.1.{number // 250}.{number % 250 + 2}/16", f"fd00:1::{number + 2:x}/64")
    key = AttachmentKey(f"pod{number:06}", "eth0")
    return Attachment(key, f"/run/netns/pod{number}", tuple(map(ip_interface, held)), 1452, LABELS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def test_an_attachment_goes_through_its_life(path: Path) -> None:
    journal = Journal(path)
    pod = attachment(1)
    assert journal.load() == State()
    journal.begin_attach(pod)
    assert journal.load() == State((Recorded(pod, Intent.ATTACHING),))
    journal.commit_attach(pod.key)
    journal.close()
    journal = Journal(path)
    assert journal.load() == State((Recorded(pod, Intent.ATTACHED),))
    journal.begin_detach(pod.key)
    assert journal.load() == State((Recorded(pod, Intent.DETACHING),))
    journal.finish_detach(pod.key, 1000.5)
    resting = tuple(Resting(interface.ip, pod.key, 1000.5) for interface in pod.addresses)
    assert journal.load() == State((), resting)
    journal.finish_detach(pod.key, 2000.0)
    assert journal.load() == State((), resting), "a second time changes nothing"
    journal.forget_resting(1000.5)
    assert journal.load() == State((), resting)
    journal.forget_resting(1000.6)
    assert journal.load() == State()
    journal.close()


def test_no_two_hold_an_address(path: Path) -> None:
    journal = Journal(path)
    journal.begin_attach(attachment(1, "10.1.0.5/24"))
    with pytest.raises(Refusal, match=r"10\.1\.0\.5, wanted for pod000002/eth0, is held by pod000001/eth0") as refused:
        journal.begin_attach(attachment(2, "10.1.0.9/24", "10.1.0.5/24"))
    assert refused.value.kind is Kind.EXISTS
    assert [entry.attachment.key.sandbox_id for entry in journal.load().attachments] == ["pod000001"]
    journal.begin_attach(attachment(3, "10.1.0.9/24"))
    journal.close()


def test_a_resting_address_may_be_taken_over(path: Path) -> None:
    journal = Journal(path)
    journal.begin_attach(attachment(1, "10.1.0.5/24"))
    journal.finish_detach(attachment(1).key, 5.0)
    again = attachment(2, "10.1.0.5/24")
    journal.begin_attach(again)
    journal.finish_detach(attachment(1).key, 6.0)
    assert journal.load() == State((Recorded(again, Intent.ATTACHING),))
    journal.close()


def test_wishes_and_place_are_kept(path: Path) -> None:
    journal = Journal(path)
    ports = (PortMapping(8080, 80), PortMapping(53, 5353, Protocol.UDP, ip_address("2001:db8::1")))
    pod = replace(attachment(1), owner="cni:net", ports=ports, limits=Limits(Limit(1000, 2000), None))
    journal.begin_attach(pod, (4, 4026532201), 77)
    journal.close()
    journal = Journal(path)
    assert journal.load().attachments == (Recorded(pod, Intent.ATTACHING, (4, 4026532201), 77),)
    journal.close()


def test_detachments_are_remembered_for_a_while(path: Path) -> None:
    journal = Journal(path)
    key = attachment(1).key
    journal.finish_detach(key, 1.0)
    assert journal.load() == State(), "one without a time is not"
    journal.finish_detach(key, 1.0, 500)
    journal.finish_detach(key, 1.0, 700)
    assert journal.load().departed == ((key, 700),)
    journal.forget_departed(700, 700)
    assert journal.load().departed == ((key, 700),)
    journal.forget_departed(701, 900)
    assert journal.load() == State()
    journal.finish_detach(key, 1.0, 1000)
    journal.forget_departed(0, 900)
    assert journal.load() == State(), "a time to come is of an earlier boot"
    journal.close()


def test_the_schema_before_this_one_is_brought_up_to_date(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with sqlite3.connect(path) as old:
        old.executescript(f"{_STEPS[0]} PRAGMA application_id = {0x706F6477}; PRAGMA user_version = 1;")
        old.execute("INSERT INTO attachment VALUES ('pod', 'eth0', 'attached', '/run/netns/pod', 1452, '[]')")
        old.execute("INSERT INTO lease VALUES ('10.1.0.5', 24, 'pod', 'eth0', 0, NULL)")
    old.close()
    journal = Journal(path)
    kept = Attachment(AttachmentKey("pod", "eth0"), "/run/netns/pod", (ip_interface("10.1.0.5/24"),), 1452)
    assert journal.load() == State((Recorded(kept, Intent.ATTACHED),))
    journal.close()
    journal = Journal(path)
    journal.finish_detach(kept.key, 5.0, 6)
    assert journal.load().departed == ((kept.key, 6),)
    journal.close()


def test_unknown_and_known_keys_are_refused(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(Refusal, match="not in the journal") as refused:
        journal.commit_attach(AttachmentKey("nobody", "eth0"))
    assert refused.value.kind is Kind.NOT_FOUND
    with pytest.raises(Refusal, match="not in the journal"):
        journal.begin_detach(AttachmentKey("nobody", "eth0"))
    journal.begin_attach(attachment(1))
    with pytest.raises(Refusal, match="in the journal already") as refused:
        journal.begin_attach(attachment(1))
    assert refused.value.kind is Kind.EXISTS
    journal.close()
    with pytest.raises(Refusal, match="is closed"):
        journal.load()


def test_identity_and_table(path: Path) -> None:
    journal = Journal(path)
    assert journal.node() is None
    assert journal.load_table() is None
    table = SubnetTable(
        7,
        (
            Node("a", Endpoint(ip_address("192.0.2.1")), (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64"))),
            Node("b", Endpoint(ip_address("192.0.2.2"), 7000), (ip_network("10.2.0.0/24"),), offload=False),
        ),
    )
    journal.set_node(Identity("a", "epoch-1", "counters-1"))
    journal.set_node(Identity("a", "epoch-1", "counters-2"))
    journal.save_table(table)
    journal.close()
    journal = Journal(path)
    assert journal.node() == Identity("a", "epoch-1", "counters-2")
    assert journal.load_table() == table
    journal.save_table(None)
    assert journal.load_table() is None
    assert journal.node() is not None
    journal.close()


def test_only_the_owner_may_read(path: Path) -> None:
    before = os.umask(0)
    try:
        journal = Journal(path)
        journal.begin_attach(attachment(1))
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()}
        journal.close()
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert set(modes) >= {"journal.sqlite", "journal.sqlite-wal", "lock"}
    assert set(modes.values()) == {0o600}


def test_a_directory_that_others_may_write_is_refused_and_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(Refusal, match="may be written by others"):
        Journal(tmp_path / "journal.sqlite")
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def test_two_routers_never_share_a_directory(path: Path) -> None:
    first = Journal(path)
    with pytest.raises(Refusal, match=f"in use by another router \\(pid {os.getpid()}\\)") as refused:
        Journal(path)
    assert refused.value.kind is Kind.STATE
    first.begin_attach(attachment(1))
    first.close()
    first.close()
    Journal(path).close()


def test_a_newer_schema_is_refused(path: Path) -> None:
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for _ in range(2):  # the refusal lets go of the lock
        with pytest.raises(Refusal, match="schema 99, written by a newer Podwire"):
            Journal(path)


def test_a_strange_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    db.close()
    with pytest.raises(Refusal, match="no Podwire journal"):
        Journal(path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    db.close()


def test_a_corrupt_file_names_itself_and_the_remedy(path: Path) -> None:
    journal = Journal(path)
    for number in range(200):
        journal.begin_attach(attachment(number))
    journal.close()
    whole = path.read_bytes()
    for broken in (
        b"no database at all" * 100,
        whole[:4096] + bytes(range(256)) * 32 + whole[12288:],
        whole[: len(whole) // 2],
    ):
        path.write_bytes(broken)
        with pytest.raises(
            Refusal, match=r"journal\.sqlite is corrupt \(.*\): stop the router, move .*\* away"
        ) as refused:
            Journal(path)
        assert "\n" not in refused.value.message
    path.write_bytes(whole)
    journal = Journal(path)
    assert len(journal.load().attachments) == 200
    journal.close()


def test_rows_that_make_no_sense_are_corruption_too(path: Path) -> None:
    journal = Journal(path)
    journal.begin_attach(attachment(1))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE lease SET address = 'nonsense' WHERE position = 0")
    db.close()
    with pytest.raises(Refusal, match="is corrupt"):
        journal.load()
    journal.close()


def test_an_empty_file_is_a_new_journal(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch()
    journal = Journal(path)
    assert journal.load() == State()
    journal.close()


def test_a_full_disk_refuses_and_keeps_what_was_there(path: Path) -> None:
    journal = Journal(path)
    journal.begin_attach(attachment(0))
    (pages,) = journal._file._db.execute("PRAGMA page_count").fetchone()
    journal._file._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be out of space
    done = [0]

    def fill() -> None:
        for number in range(1, 1000):
            journal.begin_attach(attachment(number))
            done.append(number)

    with pytest.raises(Refusal, match=r"full.*check the space") as refused:
        fill()
    assert refused.value.kind is Kind.UNAVAILABLE
    assert len(journal.load().attachments) == len(done)
    journal.close()


def test_threads_share_one_journal(path: Path) -> None:
    journal = Journal(path)

    def live(first: int) -> None:
        for number in range(first, first + 25):
            pod = attachment(number)
            journal.begin_attach(pod)
            journal.commit_attach(pod.key)
            if number % 5 == 0:
                journal.begin_detach(pod.key)
                journal.finish_detach(pod.key, float(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(0, 200, 25)))
    state = journal.load()
    assert len(state.attachments) == 160
    assert {entry.intent for entry in state.attachments} == {Intent.ATTACHED}
    assert len(state.resting) == 80
    journal.close()


WRITER = """
import sys
from pathlib import Path
from tests.test_journal import attachment
from router.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(1_000_000):
    pod = attachment(number)
    journal.begin_attach(pod)
    journal.commit_attach(pod.key)
    print("attached", number, flush=True)
    if number % 3 == 0:
        journal.begin_detach(pod.key)
        journal.finish_detach(pod.key, float(number))
        print("detached", number, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 40, 333])
def test_kill_9_loses_nothing_acknowledged(path: Path, lines: int) -> None:
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        said += [line for line in writer.stdout if line.endswith("\n")]
    assert writer.returncode == -signal.SIGKILL
    attached = {int(line.split()[1]) for line in said if line.startswith("attached")}
    detached = {int(line.split()[1]) for line in said if line.startswith("detached")}
    assert attached
    journal = Journal(path)  # the dead writer's lock is gone
    state = journal.load()
    journal.close()
    present = {int(entry.attachment.key.sandbox_id[3:]): entry for entry in state.attachments}
    resting = {int(entry.key.sandbox_id[3:]) for entry in state.resting}
    under_way = max(attached)
    for number in attached - detached:
        if number % 3:
            assert present[number] == Recorded(attachment(number), Intent.ATTACHED)
        else:
            assert number == under_way, "a detachment was under way"
            assert number in present or number in resting
    assert detached <= resting
    assert detached.isdisjoint(present)
    assert set(present) <= attached | {under_way + 1}, "at most one more was under way"
