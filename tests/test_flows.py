"""Flows: estimates from samples, bounded tables, watches that come and go, and the stream to a client."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from router.engine.choose import available
from router.engine.interface import EngineCounters, Side, Sighting, Source
from router.errors import Kind, Refusal
from router.model import AttachmentKey, DropReason, Endpoint, Flow, Tally, VerdictKind
from router.observe.flows import MOST_FLOW_WATCHES, FlowRecord, Flows, FlowTable, _next_every
from router.observe.rates import LEAST_S, MOST_SPAN_S, SPAN_S, Rates
from router.observe.taps import Taps
from router.status import Counters
from shim.client import ClientError
from shim.lab import Lab
from shim.observe.client import ObserverClient
from tests.engine_rig import Rig, key, until
from tests.packets import PLAIN_VNET, ip, udp

ENGINES = pytest.mark.parametrize("engine", available())
PEER = Endpoint(ip_address("192.0.2.2"))
WEB = AttachmentKey("web", "eth0")


def sighting(
    packet: bytes,
    *,
    source: Source = WEB,
    target: Source | None = PEER,
    reason: DropReason | None = None,
    packets: int = 1,
    time_ns: int = 10,
) -> Sighting:
    verdict = VerdictKind.DROP if reason else VerdictKind.TUNNEL
    seen = None if reason else target
    return Sighting(1, time_ns, Side.BEFORE, source, seen, verdict, reason, packets, len(packet) * packets, packet[:60])


def packet(port: int, src: str = "10.42.1.2") -> bytes:
    return ip(src, "10.42.2.2", 17, udp(b"x" * 72, ports=(port, 53)))


def test_a_flow_is_what_shares_ends_verdict_and_reason() -> None:
    table = FlowTable(every=8)
    table.add([sighting(packet(1), time_ns=30), sighting(packet(1), packets=3, time_ns=20), sighting(packet(2))])
    table.add([sighting(packet(1), reason=DropReason.NO_ROUTE), sighting(packet(1), target=WEB)])
    first, *others = table.take()
    flow = Flow(ip_address("10.42.1.2"), ip_address("10.42.2.2"), 17, 1, 53)
    assert first == FlowRecord(flow, WEB, PEER, VerdictKind.TUNNEL, None, 4 * 8, 400 * 8, 2, 20, 30)
    assert [each.sampled for each in others] == [1, 1, 1]
    assert {each.reason for each in others} == {None, DropReason.NO_ROUTE}
    assert table.take() == []


def test_what_is_no_packet_has_no_flow() -> None:
    table = FlowTable(every=1)
    stranger = Endpoint(ip_address("198.51.100.7"), 9)
    table.add([sighting(packet(1), source=stranger, reason=DropReason.UNKNOWN_PEER), sighting(b"\x4f", packets=1)])
    assert {(each.flow, each.source) for each in table.take()} == {(None, stranger), (None, WEB)}


def test_a_full_table_tells_the_rest_as_one() -> None:
    table = FlowTable(every=2, most=10)
    table.add(sighting(packet(port)) for port in range(1, 31))
    table.add([sighting(packet(1))])
    records = table.take()
    rest = [each for each in records if each.verdict is None]
    assert len(records) == 11
    assert [(each.packets, each.sampled, each.flow, each.source) for each in rest] == [(40, 20, None, None)]
    assert sum(each.packets for each in records) == 62


def test_what_was_lost_is_made_up_for() -> None:
    table = FlowTable(every=4)
    table.add([sighting(packet(1))] * 30 + [sighting(packet(2))] * 10)
    heavy, light = table.take(lost=40)
    assert (heavy.packets, light.packets) == (30 * 4 * 2, 10 * 4 * 2)
    assert (heavy.sampled, light.sampled) == (30, 10)


def test_estimates_are_near_what_passed() -> None:
    """Seeded sampling of known traffic: within four standard errors, and without bias over many rounds."""
    rng = random.Random(11)
    total = 0
    for _ in range(20):
        table = FlowTable(every=16)
        table.add(sighting(packet(1)) for _ in range(4000) if rng.randrange(16) == 0)
        (record,) = table.take()
        assert abs(record.packets - 4000) < 4 * 4000 / record.sampled**0.5
        total += record.packets
    assert abs(total / 20 - 4000) < 4 * 4000 / (20 * 250) ** 0.5


def test_recent_looks_at_fewer_frames_the_more_there_are() -> None:
    flow = Flow(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 6)

    def after(sampled: int, every: int) -> int:
        return _next_every([FlowRecord(flow, WEB, PEER, VerdictKind.TUNNEL, None, 0, 0, sampled, 0, 0)], every, 10.0)

    assert _next_every([], 16, 2.0) == 1
    assert after(100, 1) == 1
    assert after(5000, 1) == 2
    assert after(50_000, 16) == 256
    assert after(10**9, 65536) == 65536


# Over an engine


@pytest.fixture
def rig(engine: str) -> Iterator[Rig]:
    with Rig(engine) as made:
        made.pod("web", 2)
        made.pod("db", 3)
        made.start()
        yield made


def send(rig: Rig, count: int) -> None:
    for _ in range(count):
        rig.taps[key("web")].send(PLAIN_VNET + ip("10.42.1.2", "10.42.1.3", 17, udp(b"x" * 72)))
    got = 0

    def all_came() -> bool:
        nonlocal got
        got += len(rig.taps[key("db")].frames())
        return got >= count

    until(all_came, f"{count} packets")


@ENGINES
def test_a_watch_sees_what_passes_and_leaves_nothing_behind(rig: Rig) -> None:
    taps = Taps(rig.engine)
    flows = Flows(taps, dict)
    with flows.watch(1, 0.3) as periods:
        send(rig, 20)
        records = next(found for found in periods if found)
    assert [(each.source, each.target, each.packets, each.bytes) for each in records] == [
        (key("web"), key("db"), 20, 2000)
    ]
    until(lambda: not any(thread.name.startswith("taps") for thread in threading.enumerate()), "no thread is left")
    with flows.watch(1, 60.0) as periods:
        taps.close()
        with pytest.raises(Refusal, match="no more flows come: the router is stopping"):
            list(periods)


@ENGINES
def test_an_engine_samples_without_bias(rig: Rig) -> None:
    """Of 3,000 packets one in 4: the estimate is within six standard errors of what passed."""
    taps = Taps(rig.engine)
    with Flows(taps, dict).watch(4, 0.5) as periods:
        for _ in range(30):
            send(rig, 100)
        records: list[FlowRecord] = []
        for found in periods:
            records += found
            if records and not found:
                break
    (whole,) = {record.flow for record in records}
    assert whole is not None
    estimate, sampled = sum(each.packets for each in records), sum(each.sampled for each in records)
    assert estimate == 4 * sampled
    assert abs(estimate - 3000) < 6 * (3000 * 3) ** 0.5
    taps.close()


@ENGINES
def test_no_more_than_some_watch_at_once(rig: Rig) -> None:
    taps = Taps(rig.engine)
    flows = Flows(taps, dict)
    opened = [flows.watch(64, 1.0) for _ in range(MOST_FLOW_WATCHES)]
    for each in opened:
        each.__enter__()
    with pytest.raises(Refusal) as refused, flows.watch(64, 1.0):
        pass
    assert refused.value.kind is Kind.EXHAUSTED
    opened.pop().__exit__(None, None, None)
    with flows.watch(64, 1.0):
        pass
    for each in opened:
        each.__exit__(None, None, None)
    taps.close()


@ENGINES
def test_recent_flows_are_there_while_somebody_asks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("_FIRST_RECENT_S", 0.2),
        ("_FIRST_EVERY", 1),
        ("RECENT_S", 0.2),
        ("IDLE_S", 0.5),
        ("_READ_S", 0.05),
    ):
        monkeypatch.setattr(f"router.observe.flows.{name}", value)
    taps = Taps(rig.engine)
    recent = Flows(taps, lambda: {PEER: 0.5}).recent
    assert recent.read() == ([], 0.0)
    send(rig, 5)
    until(lambda: any(record.source == key("web") for record in recent.read()[0]), "the flow")
    until(lambda: not recent.read()[0], "a period without it")
    until(lambda: recent._thread is None, "nobody asks, nobody looks")
    until(lambda: not any(thread.name.startswith("taps") for thread in threading.enumerate()), "no thread is left")
    taps.close()
    with pytest.raises(Refusal, match="stopping"):
        recent.read()


@pytest.mark.parametrize("engine", ["python"])
def test_latency_is_half_the_round_trip_to_the_next_router(rig: Rig) -> None:
    flows = Flows(Taps(rig.engine), lambda: {PEER: 0.5})
    flow = Flow(ip_address("10.0.0.1"), ip_address("10.0.0.2"), 6)
    records = [FlowRecord(flow, WEB, to, VerdictKind.TUNNEL, None, 1, 1, 1, 0, 0) for to in (PEER, WEB, None)]
    assert [each.latency_s for each in flows.with_latency(records)] == [0.25, None, None]


# Rates


def counters(packets: int, restarted: bool = False) -> Counters:
    tally = Tally(packets, packets * 100, packets, packets - 1, dropped={DropReason.NO_ROUTE: 1}, sent_packets=packets)
    engine = EngineCounters(
        {WEB: tally}, {PEER: tally}, Tally(received_packets=packets, received_frames=packets), Tally()
    )
    return Counters(engine, {}, "new" if restarted else "old")


def test_rates_are_growth_over_some_seconds() -> None:
    now, counts, reads = [100.0], [10], [0]

    def read() -> Counters:
        reads[0] += 1
        return counters(counts[0])

    rates = Rates(read, lambda: now[0])
    assert rates.now().rates == {}
    assert rates.now().span_s == 0
    now[0] += LEAST_S / 2
    counts[0] += 1000
    assert rates.now().rates == {}, "read at most once a second"
    assert reads == [1]
    now[0] = 102.0
    found = rates.now()
    assert found.rates[WEB].received_packets == 500
    assert found.rates[PEER].received_bytes == 50_000
    assert found.rates[WEB].dropped_packets == 0
    assert found.strangers.received_packets == 500
    for _ in range(20):
        now[0] += 1.0
        rates.now()
    quiet = rates.now()
    assert quiet.rates[WEB].received_packets == 0
    assert SPAN_S <= quiet.span_s <= SPAN_S + 2
    now[0] += MOST_SPAN_S + 1
    assert rates.now().span_s == 0, "what was then tells nothing of now"
    now[0] += 2
    counts[0] = 7
    assert rates.now().rates[WEB].received_packets == 3.5, "attached anew: it grew from 0"


# To a client


@pytest.mark.netns
def test_flows_reach_a_client_and_the_command_line(lab: Lab) -> None:
    near, far = lab.pods[0], lab.pods[2]
    assert near.node is not far.node
    pings = near.popen(["ping", "-n", "-i0.05", "-q", str(far.addresses[1])], stdout=subprocess.DEVNULL)
    try:
        with ObserverClient(str(near.node.socket)) as client:
            found = next(
                flow
                for flow in client.watch_flows(every=1, period_s=1)
                if flow.flow and flow.flow.src == str(near.addresses[1]) and flow.target
            )
        command = [sys.executable, "-m", "router", "flows", "--every", "1", "--period", "1", "-c", "2"]
        done = subprocess.run(
            [*command, "--socket", str(near.node.socket)], capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        pings.terminate()
        pings.wait(10)
    assert found.flow is not None
    assert found.flow.protocol == 58
    assert found.source is not None
    assert found.source.attachment is not None
    assert found.source.attachment.sandbox_id == near.sandbox_id
    assert found.target is not None
    assert found.target.name == far.node.name
    assert found.verdict == "tunnel"
    assert found.packets == found.sampled > 0
    assert found.bytes == found.packets * (40 + 8 + 56)
    assert found.last_s >= found.first_s > 1e9
    assert found.latency_s is not None
    assert 0 < found.latency_s < 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    assert {"flow", "source", "target", "verdict", "packets", "bytes"} <= lines[0].keys()


@pytest.mark.netns
@pytest.mark.parametrize(("every", "period_s", "word"), [(65537, 1, "every"), (1, 3601, "period_s")])
def test_a_wrong_wish_is_refused_by_name(lab: Lab, every: int, period_s: int, word: str) -> None:
    with ObserverClient(str(lab.nodes[0].socket)) as client, pytest.raises(ClientError) as refused:
        next(client.watch_flows(every, period_s))
    assert refused.value.code == "INVALID_ARGUMENT"
    assert word in refused.value.message
