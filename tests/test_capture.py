"""Taps and captures: who sees what, what follows a Pod, what ends, and what a slow or lost reader costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest

from router.control.server import serve
from router.engine.interface import Engine, Side, Sighting, Source, Tap
from router.errors import Kind, Refusal
from router.events import EventKind, EventLog
from router.model import DropReason, Verdict, VerdictKind
from router.observe import capture, taps
from router.observe.taps import Stream, Taps
from router.wire import bpf
from shim.client import ClientError
from shim.lab import Lab
from shim.lab.node import LabNode
from shim.observe import filter as filters
from shim.observe.client import ObserverClient
from shim.observe.filter import FilterError, compile_filter
from shim.observe.pcapng import Capture
from tests.accounts import assert_balanced, eventually
from tests.capture import decode
from tests.control_daemon import THERE, MemoryDaemon
from tests.engine_rig import VNI, Rig, key, underlay, until
from tests.packets import TCP, UDP, finished, ip, tcp, udp
from tests.peer import HandMade, geneve
from tests.test_engine_peers import rig

__all__ = ["rig"]
"""The fixture: node 1 with Pod .2, under every engine."""

ROOT = Path(__file__).resolve().parent.parent
A, B = key("a"), key("b")
WAIT_S = 20.0


def packet(src: str = "10.42.1.2", dst: str = "10.42.1.3", payload: bytes = b"x") -> bytes:
    return finished(ip(src, dst, UDP, udp(payload)), UDP)


def collect(stream: Stream, count: int, rig: Rig | None = None) -> list[Sighting]:
    """Read until there are so many, and see that no more come."""
    found: list[Sighting] = []
    deadline_s = time.monotonic() + WAIT_S
    while len(found) < count:
        assert time.monotonic() < deadline_s, f"only {found}"
        if rig is not None:
            rig.pump()
        found += stream.read(0.05)
    found += stream.read(0.1)
    assert len(found) == count, found
    return found


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("taps", "captures"))]


def test_streams_see_their_own_parties_on_both_sides(rig: Rig) -> None:
    pod_b = rig.pod("b", 3)
    rig.pod("c", 4)
    looking = Taps(rig.engine)
    with looking.open() as every, looking.open(party=A) as of_a, looking.open(party=key("c")) as of_c:
        rig.taps[A].send_packet(packet())
        pod_b.packets(1)
        for stream in (every, of_a):
            seen = collect(stream, 2)
            assert [(each.side, each.source, each.target) for each in seen] == [
                (Side.BEFORE, A, B),
                (Side.AFTER, A, B),
            ]
            assert {each.tap for each in seen} == {stream.tap.number}
            assert {each.verdict for each in seen} == {VerdictKind.LOCAL}
        assert of_c.read(0.1) == []
    until(lambda: not reader_threads(), "the threads ended with the last stream")
    with looking.open(party=A, sides=frozenset((Side.BEFORE,)), snap_bytes=20) as again:
        rig.taps[A].send_packet(packet())
        pod_b.packets(1)
        (seen_once,) = collect(again, 1)
        assert len(seen_once.packet) == 20
        assert seen_once.packet_bytes == len(packet())
    looking.close()


def test_a_stream_follows_its_pod_and_ends_when_that_stays_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    pod_b = rig.pod("b", 3)
    events = EventLog()
    looking = Taps(rig.engine, events)
    with looking.open(party=A) as stream:
        rig.know((), egress=False)  # a new snapshot changes nothing
        events.record(EventKind.TABLE_CHANGED)
        rig.taps[A].send_packet(packet())
        collect(stream, 2, rig)
        rig.detach(A)
        events.record(EventKind.DETACHED, key=A)
        until(lambda: stream._left == "was detached", "the stream noticed")
        rig.pod("a", 9)
        events.record(EventKind.ATTACHED, key=A)
        until(lambda: stream._left == "", "the stream noticed")
        rig.taps[A].send_packet(packet("10.42.1.9"))
        seen = collect(stream, 2, rig)
        assert seen[0].packet == packet("10.42.1.9")
        assert stream.ended == ""
        monkeypatch.setattr(taps, "AWAY_S", 0.2)
        rig.taps[A].send_packet(packet("10.42.1.9"))
        pod_b.packets(3)
        rig.detach(A)
        events.record(EventKind.RELEASED, key=A)
        seen = collect(stream, 2)  # what was seen is still read
        deadline_s = time.monotonic() + WAIT_S
        while not stream.ended:
            assert stream.read(1.0) == []
            assert time.monotonic() < deadline_s
        assert stream.ended == "a/eth0 was released"
    looking.close()


def test_a_slot_taken_by_another_is_not_seen(rig: Rig) -> None:
    events = EventLog()
    looking = Taps(rig.engine, events)
    pod_b = rig.pod("b", 3)
    with looking.open(party=A) as stream:
        rig.detach(A)
        events.record(EventKind.DETACHED, key=A)
        rig.pod("other", 2)
        events.record(EventKind.ATTACHED, key=key("other"))
        rig.taps[key("other")].send_packet(packet())
        pod_b.packets(1)
        assert stream.read(0.2) == []
    looking.close()


def test_a_stream_follows_a_peer_through_tables(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    events = EventLog()
    looking = Taps(rig.engine, events)
    with HandMade(rig) as peer, looking.open(party=peer.node.endpoint) as stream:
        rig.taps[A].send_packet(packet(dst="10.42.2.2"))
        peer.datagrams(1)
        assert [each.side for each in collect(stream, 2)] == [Side.BEFORE, Side.AFTER]
        rig.know(())
        events.record(EventKind.TABLE_CHANGED)
        until(lambda: stream._left != "", "the stream noticed")
        rig.know((peer.node,))
        events.record(EventKind.TABLE_CHANGED)
        until(lambda: stream._left == "", "the stream noticed")
        rig.taps[A].send_packet(packet(dst="10.42.2.2"))
        peer.datagrams(1)
        assert len(collect(stream, 2)) == 2
        monkeypatch.setattr(taps, "AWAY_S", 0.1)
        rig.know(())
        events.record(EventKind.TABLE_CHANGED)
        until(lambda: stream.read(0.05) == [] and stream.ended, "the end")
        assert stream.ended == f"{peer.node.endpoint} is not there any more"
    looking.close()


def test_only_what_a_program_takes_and_only_drops(rig: Rig) -> None:
    pod_b = rig.pod("b", 3)
    looking = Taps(rig.engine)
    program = tuple(map(tuple, compile_filter("udp dst port 50002")))
    assert bpf.check(cast(Any, program)) == ""
    with (
        looking.open(program=compile_filter("udp dst port 50002")) as chosen,  # type: ignore[arg-type]
        looking.open(dropped_only=True) as dropped,
    ):
        rig.taps[A].send_packet(packet())
        rig.taps[A].send_packet(finished(ip("10.42.1.2", "10.42.1.3", UDP, udp(b"y", (1, 50002))), UDP))
        rig.taps[A].send_packet(packet("10.42.1.77"))
        pod_b.packets(2)
        assert len(collect(chosen, 2)) == 2
        (lost,) = collect(dropped, 1)
        assert (lost.reason, lost.source, lost.target) == (DropReason.SPOOFED_SOURCE, A, None)
    looking.close()


def test_what_holds_no_packet_of_ours_is_seen_as_its_datagram(rig: Rig) -> None:
    """Recording puts an outer header before these, and before no other."""
    looking = Taps(rig.engine)
    stranger = underlay()
    inner = packet("10.42.2.2", "10.42.1.2")
    sent = [(b"no geneve", DropReason.BAD_ENCAPSULATION), (geneve(inner, vni=VNI + 1), DropReason.WRONG_NETWORK)]
    with stranger, HandMade(rig) as peer, looking.open(dropped_only=True) as stream:
        for datagram, reason in sent:
            peer.send(datagram)
            (seen,) = collect(stream, 1, rig)
            assert (seen.reason, seen.packet, seen.source) == (reason, datagram, peer.node.endpoint)
        stranger.sendto(geneve(inner), rig.socket.getsockname())
        (seen,) = collect(stream, 1, rig)
        assert (seen.reason, seen.packet) == (DropReason.UNKNOWN_PEER, geneve(inner))
        peer.send(geneve(packet("10.42.3.2", "10.42.1.2")))
        (seen,) = collect(stream, 1, rig)
        assert (seen.reason, seen.packet) == (DropReason.SPOOFED_SOURCE, packet("10.42.3.2", "10.42.1.2"))
    looking.close()


class Flood:
    """An engine that always sees the same: what a stream and those behind it make of it is the question here."""

    name = "flood"

    def __init__(self, packet_bytes: int = 1000, at_once: int = 100) -> None:
        self.watched: list[tuple[Tap, ...]] = []
        self.taps: tuple[Tap, ...] = ()
        self.there: set[Source] = {A, THERE.endpoint}
        self.failing = False
        self.silent = False
        self._woken = threading.Event()
        self._packet = bytes(packet_bytes)
        self._at_once = at_once

    def decide(self, _packet: bytes, source: Source) -> Verdict:
        if source not in self.there:
            raise KeyError(source)
        return Verdict(VerdictKind.DROP, None, DropReason.MALFORMED)

    def watch(self, watched: tuple[Tap, ...]) -> None:
        self.taps = watched
        self.watched.append(watched)
        self._woken.set()

    def sightings(self, timeout_s: float) -> tuple[tuple[Sighting, ...], Mapping[int, int]]:
        if self.failing:
            raise RuntimeError("asked for by a test")
        self._woken.wait(timeout_s if self.silent else 0.002)
        self._woken.clear()
        if self.silent:
            return (), {}
        seen = tuple(
            Sighting(tap.number, 1, Side.BEFORE, A, None, VerdictKind.DROP, DropReason.NO_ROUTE, 1, 1000, self._packet)
            for tap in self.taps
            for _ in range(self._at_once)
        )
        return seen, {tap.number: 1 for tap in self.taps}


def engine(flood: Flood) -> Engine:
    return cast(Engine, flood)


def test_without_a_stream_nothing_runs_and_nothing_is_watched() -> None:
    flood = Flood()
    looking = Taps(engine(flood), EventLog())
    assert flood.watched == []
    assert reader_threads() == []
    first, second = looking.open(), looking.open(party=A)
    assert [len(each) for each in flood.watched] == [1, 2]
    assert sorted(reader_threads()) == ["taps", "taps-follow"]
    first.close()
    first.close()
    assert [tap.party for tap in flood.taps] == [A]
    second.close()
    assert flood.taps == ()
    until(lambda: not reader_threads(), "the threads ended")
    assert second.read(0) == []
    assert second.ended == "closed"


def test_a_slow_reader_costs_no_memory_and_learns_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "STREAM_SIGHTINGS", 50)
    looking = Taps(engine(Flood()))
    with looking.open() as few:
        until(lambda: few.lost > 1000, "losses counted")
        assert len(few.read(0)) == 50
    monkeypatch.setattr(taps, "STREAM_SIGHTINGS", 16384)
    monkeypatch.setattr(taps, "STREAM_BYTES", 10_500)
    with looking.open() as small:
        until(lambda: small.lost > 1000, "losses counted")
        assert len(small.read(0, 3000)) == 3, "as many as asked for"
        assert small._waiting_bytes <= 10_500
        until(lambda: len(small._waiting) == 10, "filled up again")
        assert len(small.read(0)) == 10
    looking.close()


def test_a_stream_of_a_party_that_is_not_there_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "AWAY_S", 0.1)
    flood = Flood()
    flood.silent = True
    looking = Taps(engine(flood), EventLog())
    with looking.open(party=B) as stream:
        assert stream.read(WAIT_S) == []
        assert stream.ended == "b/eth0 is not there"
    looking.close()


def test_the_end_of_taps_ends_streams_and_an_engines_bug_too(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood()
    flood.silent = True
    looking = Taps(engine(flood), EventLog())
    stream = looking.open()
    threading.Timer(0.1, looking.close).start()
    began_s = time.monotonic()
    assert stream.read(WAIT_S) == []
    assert time.monotonic() - began_s < WAIT_S / 2
    assert stream.ended == "the router is stopping"
    until(lambda: not reader_threads(), "the threads ended")
    with pytest.raises(Refusal, match="stopping") as refused:
        looking.open()
    assert refused.value.kind is Kind.UNAVAILABLE

    looking = Taps(engine(flood))
    stream = looking.open()
    flood.failing = True
    stream.read(WAIT_S)
    assert stream.ended == "the engine failed: asked for by a test"
    assert flood.taps == ()
    flood.failing = flood.silent = False
    assert "a bug" in caplog.text
    with looking.open() as after:
        assert after.read(WAIT_S), "the next one works"
    looking.close()


def test_streams_are_bounded() -> None:
    flood = Flood()
    flood.silent = True
    looking = Taps(engine(flood))
    for _ in range(taps.MOST_STREAMS):
        looking.open()
    with pytest.raises(Refusal, match="already") as refused:
        looking.open()
    assert refused.value.kind is Kind.EXHAUSTED
    looking.close()
    assert flood.taps == ()


# The control edge


@pytest.fixture
def flood() -> Flood:
    return Flood(60_000, 10)


@pytest.fixture
def observer(flood: Flood, tmp_path: Path) -> Iterator[Callable[[], ObserverClient]]:
    daemon = MemoryDaemon(engine(flood))
    server = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    server.start()
    yield lambda: ObserverClient(str(tmp_path / "router.sock"))
    server.stop(0)
    until(lambda: not reader_threads(), "the threads ended")
    assert flood.taps == ()


def test_eight_captures_fit_and_a_place_comes_back(flood: Flood, observer: Callable[[], ObserverClient]) -> None:
    clients = [observer() for _ in range(capture.MOST_CAPTURES)]
    try:
        running = [client.capture(THERE.name) for client in clients]
        assert {tap.party for tap in flood.taps} == {THERE.endpoint}
        with observer() as one_more:
            with pytest.raises(ClientError, match="8 captures run") as refused:
                next(one_more.capture())
            assert refused.value.code == "RESOURCE_EXHAUSTED"
            clients[3].close()  # a client that is gone
            until(lambda: len(flood.taps) == 7, "its tap is gone")
            file = Capture()
            pieces = one_more.capture()
            for piece in pieces:
                list(file.take(piece.pcapng))
                if file.packets > 100:
                    break
            assert piece.packets >= file.packets
            assert piece.lost > 0
    finally:
        for client in clients:
            client.close()
    until(lambda: flood.taps == (), "every tap is gone")
    assert len(running) == capture.MOST_CAPTURES


def test_who_does_not_read_on_is_let_go(
    flood: Flood, observer: Callable[[], ObserverClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "STALLED_S", 0.5)
    with observer() as slow:
        pieces = slow.capture()
        next(pieces)
        until(sending, "the router waits for the reader")
        until(lambda: flood.taps == (), "its tap is gone")
        until(lambda: not sending(), "no thread waits for the reader")
        with pytest.raises(ClientError):
            drain(pieces)
    until(lambda: "captures" not in reader_threads(), "nobody is waited for")


def sending() -> int:
    """Count the threads in which gRPC's server waits for a client to take an answer."""
    names = []
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            names.append(at.f_code.co_name)
            at = at.f_back
    return names.count("_send_response")


def drain(pieces: Iterator[object]) -> None:
    for _ in pieces:
        pass


def test_a_captures_end_is_told(
    flood: Flood, observer: Callable[[], ObserverClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "AWAY_S", 0.1)
    flood.silent = True
    with observer() as client:
        flood.there.clear()
        pieces = client.capture("there")
        with pytest.raises(ClientError, match=r"the capture ended: \[2001:db8::2\]:7000 is not there") as ended:
            drain(pieces)
        assert ended.value.code == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("wish", "code", "why"),
    [
        ({"subject": "nobody"}, "NOT_FOUND", "no Pod or node 'nobody'"),
        ({"subject": "x" * 600}, "INVALID_ARGUMENT", "subject"),
        ({"subject": "a\nb"}, "INVALID_ARGUMENT", "printable"),
        ({"snap_bytes": 70_000}, "INVALID_ARGUMENT", "snap_bytes 70000"),
        ({"program": [(0x20, 0, 0, 0)]}, "INVALID_ARGUMENT", "does not return"),
        ({"program": [(5, 0, 0, 9), (6, 0, 0, 0)]}, "INVALID_ARGUMENT", "jumps past the end"),
        ({"program": [(0x15, 300, 0, 0), (6, 0, 0, 0)]}, "INVALID_ARGUMENT", "out of range"),
        ({"program": [(6, 0, 0, 1)] * 5000}, "INVALID_ARGUMENT", "at most 4096"),
    ],
)
def test_wishes_are_checked(
    flood: Flood, observer: Callable[[], ObserverClient], wish: Any, code: str, why: str
) -> None:
    with observer() as client, pytest.raises(ClientError, match=why) as refused:
        next(client.capture(**wish))
    assert refused.value.code == code
    assert flood.watched == []


# Filters


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("tcp port 80", (True, False, False)),
        ("udp", (False, True, True)),
        ("ip6", (False, False, True)),
        ("host 10.42.1.3", (True, True, False)),
        ("net fd42::/16 and udp", (False, False, True)),
        ("tcp[tcpflags] & tcp-syn != 0", (True, False, False)),
        ("greater 61", (False, False, True)),
        ("", (True, True, True)),
    ],
)
def test_filters_take_what_they_say(text: str, takes: tuple[bool, ...]) -> None:
    packets = (
        ip("10.42.1.2", "10.42.1.3", TCP, tcp(b"", flags=2, ports=(4000, 80))),
        packet(),
        packet("fd42:1::2", "fd42:1::3", b"x" * 20),
    )
    program = compile_filter(text)
    assert bpf.check(program) == ""
    assert tuple(bool(bpf.run(program, each)) for each in packets) == takes


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("foo bar", "syntax error; `man pcap-filter`"),
        ("ether host 1:2:3:4:5:6", "ethernet"),
        ("udp\0", "NUL"),
        ("udp or " * 4000 + "tcp", "more than 16384 bytes"),
    ],
)
def test_filters_that_are_none(text: str, why: str) -> None:
    with pytest.raises(FilterError, match=why):
        compile_filter(text)


def test_without_libpcap_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_LIBRARIES", ("libpcap-that-is-not-there.so",))
    with pytest.raises(FilterError, match=r"libpcap0\.8"):
        compile_filter("udp")


# The command, over a real lab: n1 with the Python engine, n2 with the one that is chosen by itself


@pytest.fixture(scope="module")
def captured_lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=1)
    first = made.nodes[0]
    first.router_args = (*first.router_args, "--engine", "python")
    first.restart()
    yield made
    assert_balanced(made)


NODES = pytest.mark.parametrize("number", [0, 1], ids=["python", "chosen"])


def start(node: LabNode, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """Start `podwire capture` at a node's router, and return when it sees packets."""
    command = [sys.executable, "-m", "router", "capture", *arguments, "--socket", str(node.socket)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert "capturing " in str(said), said + process.stderr.read()
    return process


@pytest.mark.netns
@NODES
def test_a_capture_shows_both_sides_and_fates_to_wireshark(captured_lab: Lab, tmp_path: Path, number: int) -> None:
    node, pod, other = captured_lab.nodes[number], captured_lab.pods[number], captured_lab.pods[1 - number]
    file = tmp_path / "pod.pcapng"
    with start(node, pod.sandbox_id, "-w", str(file)) as process:
        try:
            for address in other.addresses:
                pod.run(["ping", "-n", "-c2", "-i0.2", "-s1000", str(address)], check=True)
            pod.run(["ping", "-n", "-c1", "-t1", "-W1", str(other.addresses[0])])
            stream_bytes(other, pod, 2_000_000)
            eventually(lambda: settled(file), what="all of it written")
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            said = process.stderr.read().decode()
            assert process.wait(20) == 0, said
        finally:
            process.kill()
    fields = (
        "frame.interface_name",
        "frame.comment",
        "ip.src",
        "ipv6.src",
        "icmp.type",
        "icmpv6.type",
        "frame.len",
        "ip.ttl",
    )
    rows = decode(file, fields)
    assert said.startswith(f"{len(rows)} packets captured"), said
    name, peer = f"{captured_lab.name}/{pod.name}", captured_lab.nodes[1 - number].name
    names = {row["frame.interface_name"][0] for row in rows}
    assert names == {
        f"{name} before the router", f"{name} after the router", f"{peer} before the router", f"{peer} after the router"
    }  # fmt: skip
    echo = [row for row in rows if row["icmp.type"] == ["8"] and row["frame.len"] == ["1028"]]
    assert [",".join(row["frame.comment"]) for row in echo] == [
        f"tunnelled to {peer}", f"tunnelled to {peer}, from {name}",
    ] * 2  # fmt: skip
    assert [row["ip.ttl"] for row in echo] == [["64"], ["63"]] * 2, "before the router as it came, after it as it went"
    echo6 = [row for row in rows if row["icmpv6.type"] == ["129"]]
    assert [",".join(row["frame.comment"]) for row in echo6] == [
        f"delivered to {name}", f"delivered to {name}, from {peer}",
    ] * 2  # fmt: skip
    expired = [row for row in rows if "ttl_expired" in ",".join(row["frame.comment"])]
    assert len(expired) == 1
    assert expired[0]["frame.comment"][0].startswith("rejected: ttl_expired")
    made = [row for row in rows if "made by the router" in ",".join(row["frame.comment"])]
    assert [row["icmp.type"][0] for row in made] == ["11"]
    supers = [row for row in rows if "stands for" in ",".join(row["frame.comment"])]
    assert any(int(row["frame.len"][0]) > 9000 for row in supers), "super-packets are whole"
    said = subprocess.run(["capinfos", "-M", str(file)], capture_output=True, text=True, check=True).stdout
    assert said.count("Number of stat entries = 1") == 4


def stream_bytes(source: Any, target: Any, size: int) -> None:
    """Send bytes over TCP from Pod to Pod."""
    receive = (
        "import socket\nl=socket.create_server(('0.0.0.0',5201))\nprint(flush=True)\nc=l.accept()[0]\nn=0\n"
        "while b:=c.recv(1<<16): n+=len(b)\nprint(n)"
    )
    send = f"import socket\ns=socket.create_connection(('{target.addresses[0]}',5201))\ns.sendall(bytes({size}))"
    with target.popen(["/usr/bin/python3", "-c", receive], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "\n"
            source.run(["/usr/bin/python3", "-c", send], check=True, timeout=30)
            assert int(server.stdout.readline()) == size
        finally:
            server.kill()


def settled(file: Path) -> bool:
    """Tell whether a file has stopped growing."""
    before = file.stat().st_size
    time.sleep(0.3)
    return file.stat().st_size == before


@pytest.mark.netns
@NODES
def test_lines_filters_counts_and_pipes(captured_lab: Lab, number: int) -> None:
    node, pod, other = captured_lab.nodes[number], captured_lab.pods[number], captured_lab.pods[1 - number]
    peer, name = captured_lab.nodes[1 - number].name, f"{captured_lab.name}/{pod.name}"
    address, far = pod.addresses[0], other.addresses[0]
    pipe = start(node, "any", "udp", "port", "7", "-c", "6", "-w", "-", stdout=subprocess.PIPE)
    lines = start(node, peer, "icmp[icmptype] == icmp-echo", "-c", "2", stdout=subprocess.PIPE)
    rows = start(node, str(address), "--dropped", "-c", "1", "--json", "--snaplen", "28", stdout=subprocess.PIPE)
    try:
        send = (
            "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
            "for a,p in ((sys.argv[1],7),(sys.argv[1],8),(sys.argv[1],7),(sys.argv[2],9),(sys.argv[1],7)): s.sendto(b'x'*100,(a,p))"
        )
        pod.run(["/usr/bin/python3", "-c", send, str(far), "10.42.250.9"], check=True)
        pod.run(["ping", "-n", "-c1", "-W5", str(far)], check=True)
        file, said = pipe.communicate(timeout=30)
        assert said.decode().startswith("6 packets captured, 0 lost")
        whole = Capture()
        found = list(whole.take(file))
        sides = sorted(each.interface for each in found)
        assert sides == sorted([f"{name} before the router", f"{peer} after the router"] * 3)
        assert whole.end(0) == b"", "it has its end"
        text, said = lines.communicate(timeout=30)
        assert said.decode().startswith("2 packets captured")
        first, second = text.decode().splitlines()
        assert f"{name} before the router  icmp {address} → {far} type 8 code 0  84 bytes  tunnelled to {peer}" in first
        assert f"{peer} after the router" in second
        text, said = rows.communicate(timeout=30)
        row = json.loads(text)
        assert (row["packet_bytes"], row["captured_bytes"]) == (128, 28)
        assert row["flow"]["dst"] == "10.42.250.9"
        assert "rejected: no_route" in row["fate"]
        for process in (pipe, lines, rows):
            assert process.returncode == 0
    finally:
        for process in (pipe, lines, rows):
            process.kill()
            process.communicate()


@pytest.mark.netns
def test_a_pod_attached_anew_is_followed_and_one_that_is_gone_ends_the_capture(captured_lab: Lab) -> None:
    node = captured_lab.nodes[1]
    pod = captured_lab.add_pod(node)
    far = str(captured_lab.pods[0].addresses[0])
    addresses = [str(address) for address in pod.addresses]
    process = start(node, pod.sandbox_id, "icmp[icmptype] == icmp-echo", stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pod.run(["ping", "-n", "-c1", "-W5", far], check=True)
        assert "before the router" in process.stdout.readline()
        assert "after the router" in process.stdout.readline()
        with node.client() as client:
            client.detach(pod.sandbox_id, "eth0")
            client.attach(pod.sandbox_id, "eth0", str(pod.netns_path), addresses=addresses)
        pod.run(["ping", "-n", "-c1", "-W5", far], check=True)
        assert "before the router" in process.stdout.readline()
        assert "after the router" in process.stdout.readline()
        captured_lab.remove_pod(pod)
        said, complaint = process.communicate(timeout=60)
        assert said == ""
        assert process.returncode == 1
        assert "4 packets captured, 0 lost" in complaint
        assert f"the capture ended: {pod.sandbox_id}/eth0 was detached" in complaint
    finally:
        process.kill()
        process.communicate()
