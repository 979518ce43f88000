"""The table as a file: what is written is read, what is wrong is named, and a change is seen however it is made."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from router.errors import Kind, Refusal
from router.model import Endpoint, Node
from router.subnets.file import FileSource, format_table, parse_table
from router.subnets.source import Lease, SourceState

PATH = Path("/etc/podwire/subnets.toml")
TEXT = """\
# the cluster
[[node]]
name = "a"
endpoint = "192.0.2.1"
subnets = ["10.32.1.0/24", "fd00:32:0:1::/64"]

[[ node ]]
name = "b"
endpoint = "[2001:db8::2]:7000"
subnets = ["10.32.2.0/24"]
offload = false
epoch = 7
"""
NODES = (
    Node("a", Endpoint(ip_address("192.0.2.1")), (ip_network("10.32.1.0/24"), ip_network("fd00:32:0:1::/64"))),
    Node("b", Endpoint(ip_address("2001:db8::2"), 7000), (ip_network("10.32.2.0/24"),), offload=False, epoch=7),
)
DEADLINE_S = 20.0


def table(*names: str) -> tuple[Node, ...]:
    return tuple(
        Node(name, Endpoint(ip_address(f"192.0.2.{index}")), (ip_network(f"10.32.{index}.0/24"),))
        for index, name in enumerate(names, 1)
    )


def test_read_and_write() -> None:
    assert parse_table(TEXT, PATH) == NODES
    assert parse_table(format_table(NODES), PATH) == NODES
    assert parse_table(format_table(table("x")), PATH) == table("x")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"a"', "a", "/etc/podwire/subnets.toml is not TOML: Invalid value (at line 3, column 8)"),
        ('"[2001:db8::2]:7000"', '"host"', "subnets.toml:7: [[node]] number 2 (b): 'host' is no IPv4 or IPv6 address"),
        ("epoch = 7", "epoch = true", "number 2 (b): epoch must be a whole number from 0 to 9223372036854775807"),
        ("epoch = 7", "epoch = -1", "number 2 (b): epoch must be a whole number"),
        (
            "10.32.2.0/24",
            "10.32.2.1/24",
            "[[node]] number 2 (b): '10.32.2.1/24' has bits set behind the prefix: did you",
        ),
        (
            "endpoint =",
            "endpiont =",
            "subnets.toml:2: [[node]] number 1 (a): unknown key 'endpiont'; did you mean endp",
        ),
        ('name = "a"\n', "", "subnets.toml:2: [[node]] number 1: name is missing"),
        ('"a"', "7", "number 1: name and endpoint must be text in quotes"),
        ('"a"', '"a b"', "number 1 (a b): node name 'a b' must be"),
        ('["10.32.2.0/24"]', '"10.32.2.0/24"', "number 2 (b): subnets must be a list of texts"),
        ("false", "0", "number 2 (b): offload must be true or false"),
        ("# the cluster", "version = 1", "unknown key 'version': a table is made of [[node]] entries"),
    ],
)
def test_errors_name_the_place(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(Refusal) as refused:
        parse_table(TEXT.replace(old, new, 1), PATH)
    assert refused.value.kind is Kind.INVALID
    assert words in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no [[node]] entry"),
        ("[node]\nname = 'a'", "write each node as [[node]], in double brackets"),
        ("node = 3", "in double brackets"),
        ("node = [3]", "in double brackets"),
        ("node = [{name = 'a'}]", "subnets.toml: [[node]] number 1 (a): endpoint is missing"),
    ],
)
def test_what_is_no_table(text: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_table(text, PATH)
    assert words in refused.value.message


class Watch:
    """A FileSource that runs once it was read, and what it told."""

    def __init__(self, path: Path, between: Callable[[], object] = lambda: None) -> None:
        self.tables: list[tuple[Node, ...]] = []
        self.errors: list[str] = []
        self.refuse = ""
        self.source = FileSource(path)
        self.first = self.source.read()
        between()
        self.source.start(self)

    def table_refused(self, message: str) -> None:
        self.errors.append(message)

    def connection_changed(self, state: SourceState) -> None:
        pytest.fail("a file is always there, or refused")

    def lease_changed(self, lease: Lease) -> None:
        pytest.fail("a file leases nothing")

    def table_changed(self, nodes: tuple[Node, ...]) -> None:
        self.tables.append(nodes)
        if self.refuse == "bug":
            raise RuntimeError("a bug")
        if self.refuse:
            raise Refusal(Kind.INVALID, self.refuse)

    def until(self, fulfilled: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not fulfilled():
            assert time.monotonic() < deadline_s, f"told: {self.tables} {self.errors}"
            time.sleep(0.01)

    def until_table(self, nodes: tuple[Node, ...]) -> None:
        self.until(lambda: bool(self.tables) and self.tables[-1] == nodes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "subnets.toml"
    file.write_text(format_table(table("a")))
    return file


@pytest.fixture
def watch(path: Path) -> Iterator[Watch]:
    watch = Watch(path)
    yield watch
    watch.source.stop()


def test_written_in_place(watch: Watch, path: Path) -> None:
    assert watch.first == table("a")
    path.write_text(format_table(table("a", "b")))
    watch.until_table(table("a", "b"))
    path.write_text(format_table(table("a", "c")))  # as long as before
    watch.until_table(table("a", "c"))
    assert len(watch.tables) == 2
    assert watch.errors == []


def test_renamed_over(watch: Watch, path: Path) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(format_table(table("a", "b")))
    fresh.replace(path)
    watch.until_table(table("a", "b"))
    assert watch.errors == []


def test_moved_away_and_written_anew(watch: Watch, path: Path) -> None:
    path.rename(path.with_suffix(".bak"))
    path.write_text(format_table(table("a", "b")))
    watch.until_table(table("a", "b"))
    assert watch.errors == []


def test_symlinks_swapped_as_a_configmap_does(tmp_path: Path) -> None:
    for version, names in (("v1", "a"), ("v2", "ab")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "subnets.toml").write_text(format_table(table(*names)))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "subnets.toml").symlink_to("..data/subnets.toml")
    watch = Watch(tmp_path / "subnets.toml")
    (tmp_path / "..new").symlink_to("v2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    watch.until_table(table("a", "b"))
    watch.source.stop()
    assert watch.errors == []


def test_written_slowly_is_seen_once_and_whole(path: Path) -> None:
    whole = format_table(table("a", "b", "c")).encode()
    for _ in range(10):
        path.write_text(format_table(table("a")))
        watch = Watch(path)
        longest_s = 0.0
        with path.open("wb", buffering=0) as file:
            last_s = time.monotonic()
            for begin in range(0, len(whole), 10):
                file.write(whole[begin : begin + 10])
                time.sleep(0.02)
                last_s, longest_s = time.monotonic(), max(longest_s, time.monotonic() - last_s)
        watch.until_table(table("a", "b", "c"))
        watch.source.stop()
        if longest_s < 0.1:  # else the machine was busy, and the file stood still for longer than it takes to settle
            assert watch.tables == [table("a", "b", "c")]
            assert watch.errors == []
            return
    pytest.fail("this machine was never free for a second")


def test_changed_between_read_and_start(path: Path) -> None:
    watch = Watch(path, lambda: path.write_text(format_table(table("b"))))
    assert watch.first == table("a")
    watch.until(lambda: bool(watch.tables))
    watch.source.stop()
    assert watch.tables == [table("b")]
    assert watch.errors == []


def test_a_bad_table_is_told_once_and_the_good_one_again(watch: Watch, path: Path) -> None:
    good = path.read_text()
    path.write_text("nonsense")
    watch.until(lambda: len(watch.errors) == 1)
    assert f"{path} is not TOML" in watch.errors[0]
    path.touch()
    path.write_text(good)
    watch.until_table(table("a"))
    assert len(watch.errors) == 1


def test_a_refused_table_is_an_error_and_the_watch_goes_on(watch: Watch, path: Path) -> None:
    watch.refuse = "subnets overlap"
    path.write_text(format_table(table("b")))
    watch.until(lambda: watch.errors == ["subnets overlap"])
    watch.refuse = "bug"
    path.write_text(format_table(table("c")))
    watch.until(lambda: len(watch.errors) == 2)
    assert "could not be put into force: RuntimeError('a bug')" in watch.errors[1]
    watch.refuse = ""
    path.write_text(format_table(table("d")))
    watch.until_table(table("d"))


def test_gone_for_long_is_told_once(watch: Watch, path: Path) -> None:
    good = path.read_text()
    path.unlink()
    watch.until(lambda: len(watch.errors) == 1)
    assert not watch.source.state().connected
    assert watch.source.state().error == watch.errors[0]
    assert watch.errors == [f"cannot read subnet table {path}: No such file or directory"]
    path.write_text(good)
    watch.until_table(table("a"))
    assert watch.source.state().connected
    assert len(watch.errors) == 1


def test_missing_or_binary_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot read subnet table .*none\.toml: No such file or directory"):
        FileSource(tmp_path / "none.toml").read()
    with pytest.raises(Refusal, match="Is a directory"):
        FileSource(tmp_path).read()
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(Refusal, match="is not UTF-8 text: byte 0"):
        FileSource(tmp_path / "binary.toml").read()


def test_stop_is_quick_and_final(path: Path) -> None:
    watch = Watch(path)
    with pytest.raises(RuntimeError, match="already started"):
        watch.source.start(watch)
    started_s = time.monotonic()
    watch.source.stop()
    watch.source.stop()
    assert time.monotonic() - started_s < 5
    path.write_text(format_table(table("b")))
    again = Watch(path)
    again.source.stop()
    assert watch.tables == []


def test_idle_uses_no_cpu_and_leaks_no_descriptor(watch: Watch, path: Path) -> None:
    watch.until(lambda: watch.source._thread is not None)
    fds = len(list(Path("/proc/self/fd").iterdir()))
    before = resource.getrusage(resource.RUSAGE_SELF)
    started_s = time.monotonic()
    os.utime(path)
    while time.monotonic() - started_s < 2:  # what is measured is that time
        time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used_s < 0.5
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    assert watch.tables == []
