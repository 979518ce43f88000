"""`podwire top`: rates between two looks, screens of any size, and the live view on a real terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from rich.console import Console

from shim.answers import (
    Attachment,
    AttachmentCounters,
    AttachmentKey,
    Counters,
    Endpoint,
    ListPeersResponse,
    Node,
    Offloads,
    Peer,
    PeerCounters,
    Status,
    Tally,
)
from shim.lab import Lab
from shim.lab.node import LabNode
from shim.observe.answers import Drop, FiveTuple, Flow, Party
from shim.observe.board import SORTS, Board, Look, board
from shim.observe.screen import screen

WEB, NODE = AttachmentKey("web", "eth0"), AttachmentKey("", "podwire0")
DB = AttachmentKey("db", "eth0")
THERE = Endpoint("192.0.2.2", 6081)
STATUS = Status(
    "here", "native", "0.1.0", 1.0, (), (), (), Endpoint("192.0.2.1", 6081), 1452, 1, Offloads(True, True, True, True, True, 64),
    (), 2, 1, 3, 1.0, (), 1, "", 1, ("there at 192.0.2.2:6081: it has not answered for 9 s",),
)  # fmt: skip
NAMED = Attachment(WEB, "/run/netns/web", ("10.1.1.2/24",), 1452, {"name": "[bold]web[/bold]", "namespace": "shop"})


def look(at_s: float, web: Tally, there: Tally | None = None, epoch: str = "e") -> Look:
    peer = there or Tally()
    state = Peer(Node("there", THERE, ()), "down", 9.0, 0.002, 0.001, 0.5, 1400, "it has not answered for 9 s", peer)
    counters = Counters(
        epoch,
        (AttachmentCounters(NODE, Tally(), 0), AttachmentCounters(DB, Tally(), 0), AttachmentCounters(WEB, web, 0)),
        (PeerCounters(THERE, "there", peer),),
        Tally(received_packets=int(at_s), received_frames=int(at_s), dropped={"unknown_peer": int(at_s)}),
        Tally(), 0, 0, 0,
    )  # fmt: skip
    drop = Drop(
        Party(WEB, None, "shop/web"),
        "no_route",
        FiveTuple("10.1.1.2", "10.9.0.1", 17, 5, 53),
        3,
        90.0,
        95.0,
        100,
        0,
        "…",
    )
    return Look(at_s, STATUS, (NAMED,), counters, ListPeersResponse(3, (state,)), (drop,))


def flow(port: int, packets: int, reason: str = "") -> Flow:
    five = FiveTuple("10.1.1.2", "10.1.2.2", 6, port, 80)
    target = None if reason else Party(None, THERE, "there")
    return Flow(
        five,
        Party(WEB, None, "shop/web"),
        target,
        "drop" if reason else "tunnel",
        reason,
        packets,
        packets * 1000,
        packets,
        1,
        2,
        0.001,
    )


def made(sort: str = "traffic") -> Board:
    before = look(10.0, Tally(100, 10_000, 90, sent_packets=7, sent_bytes=700))
    after = look(
        12.0,
        Tally(300, 30_000, 190, dropped={"no_route": 4}, sent_packets=9, sent_bytes=900),
        Tally(50, 5000, 40, sent_packets=10, sent_bytes=1000),
    )
    return board(before, after, [flow(1, 10), flow(2, 30), flow(3, 5, "no_route")], 2.0, 100.0, sort)


def test_rates_are_growth_a_second_of_each_side() -> None:
    found = made()
    web = next(row for row in found.pods if row.name == "shop/[bold]web[/bold]")
    assert (web.sends_bytes_per_s, web.sends_packets_per_s) == (10_000, 100)
    assert (web.receives_bytes_per_s, web.receives_packets_per_s) == (100, 1)
    assert (web.dropped_per_s, web.dropped) == (2, 4)
    (there,) = found.peers
    assert (there.from_bytes_per_s, there.to_packets_per_s, there.state) == (2500, 5, "down")
    assert {row.name for row in found.pods} == {"(here)", "db", "shop/[bold]web[/bold]"}
    assert found.carried_packets_per_s == 100 + 25 + 1
    assert found.dropped_per_s == 2 + 1
    busiest = found.flows[0]
    assert (busiest.flow, busiest.bytes_per_s, busiest.packets_per_s) == ("tcp 10.1.1.2:2 → 10.1.2.2:80", 15_000, 15)
    assert (found.drops[0].age_s, found.drops[0].reason) == (5.0, "no_route")
    assert found.notes == STATUS.unreachable


def test_a_router_that_began_anew_has_no_rates_and_none_is_negative() -> None:
    fresh = board(look(10.0, Tally(100, 10_000, 90)), look(12.0, Tally(3, 300, 3), epoch="f"), [], 2.0, 100.0)
    assert fresh.span_s == 0
    assert {row.sends_bytes_per_s for row in fresh.pods} == {0.0}
    anew = board(look(10.0, Tally(100, 10_000, 90)), look(12.0, Tally(4, 400, 4)), [], 2.0, 100.0)
    assert max(row.sends_packets_per_s for row in anew.pods) == 2.0
    assert min(row.sends_packets_per_s for row in anew.pods) == 0.0
    assert board(None, look(1.0, Tally()), [], 2.0, 100.0).carried_bytes_per_s == 0


def test_rows_can_be_sorted_four_ways() -> None:
    assert made("traffic").pods[0].name == "shop/[bold]web[/bold]"
    assert [row.name for row in made("name").pods] == ["(here)", "db", "shop/[bold]web[/bold]"]
    assert made("drops").flows[0].verdict == "no_route"
    assert [row.packets_per_s for row in made("packets").flows] == [15, 5, 2.5]


def test_the_rest_and_what_is_no_packet_have_words() -> None:
    rest = Flow(None, None, None, "unspecified", "", 5, 50, 5, 1, 2, None)
    datagram = replace(
        rest, source=Party(None, THERE, "a stranger (192.0.2.2:6081)"), verdict="drop", reason="unknown_peer"
    )
    found = board(None, look(1.0, Tally()), [rest, datagram], 1.0, 100.0).flows
    assert [(row.flow, row.source, row.verdict) for row in found] == [
        ("all others", "", ""),
        ("no packet of a Pod", "a stranger (192.0.2.2:6081)", "unknown_peer"),
    ]


def printed(found: Board, width: int, height: int, **options: bool) -> list[str]:
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=False, markup=False, emoji=False)
    out.print(screen(found, width, height, "traffic", **options))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [1, 12, 40, 80, 100, 200])
@pytest.mark.parametrize("height", [1, 3, 6, 10, 15, 24, 60])
def test_a_screen_fits_whatever_the_terminal_is(width: int, height: int) -> None:
    found = made()
    crowded = replace(
        found, pods=found.pods * 30, peers=found.peers * 30, flows=found.flows * 30, drops=found.drops * 50
    )
    for each in (found, crowded):
        lines = printed(each, width, height)
        assert len(lines) <= height, lines
        assert all(len(line) <= width for line in lines)


def test_what_is_shown_first_stays_longest() -> None:
    assert [word for word in ("PODS", "PEERS", "FLOWS", "DROPPED LATELY") if any(line.startswith(word) for line in printed(made(), 80, 12))] == [
        "PODS", "PEERS",
    ]  # fmt: skip
    whole = "\n".join(printed(made(), 130, 60))
    for text in (
        "shop/[bold]web[/bold]",
        "80.0 kbit/s",
        "there",
        "down",
        "2.00 ms",
        "no_route",
        "q quit",
        "it has not answered",
    ):
        assert text in whole


# Live


@contextmanager
def terminal(
    node: LabNode, *arguments: str, rows: int = 40, columns: int = 120
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run top on a pseudo-terminal: the process, our end, and its end."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "router", "top", "--socket", str(node.socket), "--interval", "0.5", *arguments]
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env={**os.environ, "TERM": "xterm-256color"}, start_new_session=True
    )
    try:
        yield process, ours, its
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)
        os.close(its)


def read_until(ours: int, pattern: str, timeout_s: float = 30.0) -> str:
    seen, deadline_s = "", time.monotonic() + timeout_s
    while not re.search(pattern, seen):
        assert time.monotonic() < deadline_s, f"no {pattern!r} in {seen[-2000:]!r}"
        if select.select([ours], [], [], 0.2)[0]:
            seen += os.read(ours, 65536).decode(errors="replace")
    return seen


@pytest.mark.netns
def test_live_view_sorts_resizes_and_leaves_the_terminal_as_it_was(lab: Lab) -> None:
    node = lab.nodes[0]
    with terminal(node) as (process, ours, its):
        before = termios.tcgetattr(its)
        first = read_until(ours, "by .*traffic")
        assert "\x1b[?1049h" in first, "it draws on the alternate screen"
        read_until(ours, lab.pods[0].name)
        os.write(ours, b"s")
        read_until(ours, f"by .*{SORTS[1]}")
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 30, 0, 0))
        os.killpg(process.pid, signal.SIGWINCH)
        os.write(ours, b"sss")
        read_until(ours, "PODS")
        os.write(ours, b"q")
        last = read_until(ours, r"\x1b\[\?1049l")
        assert process.wait(20) == 0
        assert "Traceback" not in first + last
        assert "\x1b[?25h" in last, "the cursor is back"
        assert termios.tcgetattr(its) == before


@pytest.mark.netns
def test_ctrl_c_ends_it_as_cleanly(lab: Lab) -> None:
    with terminal(lab.nodes[1]) as (process, ours, its):
        before = termios.tcgetattr(its)
        read_until(ours, "PODS")
        os.killpg(process.pid, signal.SIGINT)
        last = read_until(ours, r"\x1b\[\?1049l")
        assert process.wait(20) == 130
        assert "Traceback" not in last
        assert termios.tcgetattr(its) == before


@pytest.mark.netns
def test_once_and_json_are_for_machines(lab: Lab) -> None:
    node = lab.nodes[0]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "router", "top", "--socket", str(node.socket), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )

    done = run("--once", "--json", "--interval", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["node"] == node.name
    assert {peer["name"] for peer in found["peers"]} == {each.name for each in lab.nodes[1:]}
    assert len(found["pods"]) == 1 + sum(pod.node is node for pod in lab.pods)
    assert found["span_s"] >= 0.5
    done = run("--once", "--interval", "0.5")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "PODS" in done.stdout
    assert "DROPPED LATELY" in done.stdout
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "podwire: top draws on a terminal, and standard output is none: use --once or --json\n"
