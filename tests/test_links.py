"""Links of the lab: cut and impaired. The relay's core under a clock and dice of the test, and the whole of it under routers."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import click
import pytest

from shim.lab import Lab, netns, quantities
from shim.lab.errors import LabError
from shim.lab.links import LinkState
from shim.lab.pod import LabPod
from shim.lab.relay.ask import ask
from shim.lab.relay.faults import Faults
from shim.lab.relay.inner import inner_ends
from shim.lab.relay.line import MIN_QUEUE_BYTES, MOST_HELD_BYTES, QUEUE_S, Line
from shim.lab.relay.port import _program
from shim.lab.relay.switch import LinePlan, PodLinePlan, Switch
from tests.accounts import assert_balanced, eventually
from tests.conftest import LabMaker, unique_name

ROOT = Path(__file__).parents[1]
SIZE = 1000
MAC_A, MAC_B, MAC_C, GROUP = (
    bytes.fromhex(text) for text in ("02000000000a", "02000000000b", "02000000000c", "01005e000001")
)


def line(seed: int = 1, **faults: float) -> Line:
    return Line("n1 n2", Faults(**faults), seed)  # type: ignore[arg-type]


# One line, under the test's clock


def test_a_line_without_faults_passes_all_at_once() -> None:
    made = line()
    assert [made.fates(SIZE, now_s) for now_s in (1.0, 2.0, 2.0)] == [[1.0], [2.0], [2.0]]
    assert made.counts.frames == 3
    assert made.counts.delayed == 0


def test_as_many_are_lost_as_asked() -> None:
    made = line(loss=0.2)
    arrived = sum(len(made.fates(SIZE, 0.0)) for _ in range(20_000))
    assert made.counts.lost == 20_000 - arrived
    assert made.counts.lost == pytest.approx(4000, abs=200)  # 3.5 standard deviations, and the dice are always the same
    nothing = line(loss=1.0)
    assert [nothing.fates(SIZE, 0.0) for _ in range(100)] == [[]] * 100


def test_delays_are_spread_evenly_around_the_mean() -> None:
    made = line(delay_s=0.020, jitter_s=0.005)
    delays = [made.fates(1, 7.0)[0] - 7.0 for _ in range(10_000)]
    assert 0.015 <= min(delays) < 0.0151
    assert 0.0249 < max(delays) <= 0.025
    for tenth in range(10):
        low_s = 0.015 + tenth * 0.001
        assert sum(low_s <= delay < low_s + 0.001 for delay in delays) == pytest.approx(1000, abs=120)
    assert made.counts.delayed == 10_000


def test_a_fixed_delay_is_exact() -> None:
    made = line(delay_s=0.02)
    assert made.fates(SIZE, 5.0) == [5.02]


def test_some_overtake_those_that_are_delayed() -> None:
    made = line(delay_s=0.02, reorder=0.1)
    due = [made.fates(SIZE, 1.0)[0] for _ in range(10_000)]
    assert set(due) == {1.0, 1.02}
    assert due.count(1.0) == made.counts.reordered == pytest.approx(1000, abs=100)


def test_some_arrive_twice_each_with_a_delay_of_its_own() -> None:
    made = line(duplicate=0.1, delay_s=0.02, jitter_s=0.01)
    fates = [made.fates(1, 0.0) for _ in range(10_000)]
    twice = [fate for fate in fates if len(fate) == 2]
    assert len(twice) == made.counts.duplicated == pytest.approx(1000, abs=100)
    assert {len(fate) for fate in fates} == {1, 2}
    assert all(first != second for first, second in twice)


def test_a_rate_spaces_frames_and_a_full_queue_drops_the_last() -> None:
    """8 Mbit/s: a frame of 1000 bytes takes 1 ms. 100 ms of it wait at most."""
    made = line(rate_bits_per_s=8_000_000)
    fates = [made.fates(SIZE, 10.0) for _ in range(300)]
    due = [due_s for fate in fates for due_s in fate]
    assert due == pytest.approx([10.0 + n * 0.001 for n in range(1, len(due) + 1)])
    assert fates[len(due) :] == [[]] * (300 - len(due))
    assert len(due) == pytest.approx(QUEUE_S * 1000, abs=1)
    assert made.counts.overflowed == 300 - len(due)
    # One more finds room as soon as one is through, and after a rest nothing is saved up.
    assert len(made.fates(SIZE, 10.0011)) == 1
    assert made.fates(SIZE, 60.0) == pytest.approx([60.001])


def test_a_slow_link_has_room_for_some_frames() -> None:
    made = line(rate_bits_per_s=10_000)
    passed = sum(bool(made.fates(1514, 0.0)) for _ in range(100))
    assert passed == pytest.approx(MIN_QUEUE_BYTES / 1514, abs=1)
    assert line(rate_bits_per_s=10_000).fates(65_000, 0.0) == [52.0]  # alone it passes, however large


def test_a_hole_swallows_what_is_larger_and_nothing_else() -> None:
    made = line(mtu_hole_bytes=1400)
    assert [bool(made.fates(14 + size, 0.0)) for size in (68, 1399, 1400, 1401, 1500, 60_000)] == [True] * 3 + [
        False
    ] * 3
    assert (made.counts.frames, made.counts.swallowed, made.counts.lost) == (6, 3, 0)


def test_what_is_under_way_is_bounded() -> None:
    made = line(delay_s=60)
    while made.fates(65_000, 0.0):
        pass
    held = made.counts.frames - 1
    assert held == MOST_HELD_BYTES // 65_000
    assert made.counts.overflowed == 1
    made.passed(65_000)
    assert made.fates(65_000, 1.0) == [61.0]


def test_the_same_seed_draws_the_same_fates() -> None:
    def drawn(made: Line) -> list[list[float]]:
        return [made.fates(SIZE, 0.0) for _ in range(200)]

    faults = Faults(loss=0.3, delay_s=0.01, jitter_s=0.01, duplicate=0.2)
    same, again, other, back = (
        Line(name, faults, seed) for name, seed in (("a b", 1), ("a b", 1), ("a b", 2), ("b a", 1))
    )
    first = drawn(same)
    assert drawn(again) == first
    assert drawn(other) != first
    assert drawn(back) != first, "both directions draw differently"
    again.change(faults, 1)
    assert drawn(again) == drawn(same), "the dice go on"
    again.change(faults, 3)
    again.change(faults, 1)
    assert drawn(again) == first, "the dice begin anew"


@pytest.mark.parametrize("seed", range(20))
def test_every_frame_is_accounted_for(seed: int) -> None:
    dice = random.Random(seed)
    faults = Faults(
        loss=dice.choice((0, 0.1, 1)),
        delay_s=0.01,
        jitter_s=dice.choice((0, 0.01)),
        reorder=dice.choice((0, 0.5)),
        duplicate=dice.choice((0, 0.3, 1)),
        rate_bits_per_s=dice.choice((0, 1_000_000)),
        mtu_hole_bytes=dice.choice((0, 1000)),
    )
    switch = Switch()
    switch.set_lines([LinePlan("n1", "n2", MAC_B, faults, seed)])
    now_s, taken = 0.0, 0
    for number in range(2000):
        now_s += dice.expovariate(2000)
        switch.receive("n1", MAC_B, str(number).encode(), dice.randint(60, 1514), now_s)
        for found, target, size_bytes, _ in switch.take(now_s):
            taken += 1
            assert target == "n2"
            (found.refused if dice.random() < 0.1 else found.passed)(size_bytes)
    for found, _, size_bytes, _ in switch.take(now_s + 100):
        taken += 1
        found.passed(size_bytes)
    counts = switch.lines["n1", "n2"].counts
    assert counts.frames == 2000
    assert (
        counts.frames + counts.duplicated
        == counts.passed + counts.lost + counts.swallowed + counts.overflowed + counts.refused
    )
    assert taken == counts.passed + counts.refused
    assert switch.due_s is None


@pytest.mark.parametrize(
    ("faults", "word"),
    [
        ({"loss": 1.1}, "loss"),
        ({"loss": -0.1}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"duplicate": 2}, "duplicate"),
        ({"delay_s": -1}, "delay"),
        ({"delay_s": 61}, "delay"),
        ({"delay_s": float("nan")}, "delay"),
        ({"jitter_s": 0.01}, "jitter"),
        ({"delay_s": 0.01, "jitter_s": 0.02}, "jitter"),
        ({"reorder": 0.1}, "reorder needs a delay"),
        ({"rate_bits_per_s": -1}, "rate"),
        ({"mtu_hole_bytes": 67}, "MTU hole"),
        ({"mtu_hole_bytes": 65536}, "MTU hole"),
    ],
)
def test_faults_that_make_no_sense_are_refused(faults: dict[str, float], word: str) -> None:
    with pytest.raises(LabError, match=word):
        Faults(**faults)  # type: ignore[arg-type]


def test_faults_are_said_and_kept() -> None:
    faults = Faults(
        0.05, 0.02, jitter_s=0.0005, reorder=0.001, duplicate=1.0, rate_bits_per_s=2_500_000, mtu_hole_bytes=1400
    )
    assert str(faults) == "loss 5% reorder 0.1% duplicate 100% delay 20±0.5 ms rate 2.5mbit MTU hole above 1400"
    assert Faults.from_json(json.loads(json.dumps(faults.to_json()))) == faults
    assert (str(Faults()), Faults().to_json(), bool(Faults()), bool(faults)) == ("none", {}, False, True)


def test_amounts_as_they_are_typed() -> None:
    assert [quantities.fraction(text) for text in ("5%", "0.05", "100%", "0")] == [0.05, 0.05, 1.0, 0.0]
    assert [quantities.seconds(text) for text in ("20ms", "1.5 s", "300us")] == pytest.approx([0.02, 1.5, 0.0003])
    assert [quantities.bits_per_s(text) for text in ("50mbit", "1.5Gbit", "64kbit")] == [5e7, 1.5e9, 64e3]
    assert quantities.whole_bytes("1400") == 1400
    for read, text in (
        (quantities.whole_bytes, "1 kb"),
        (quantities.fraction, "5x"),
        (quantities.seconds, "20"),
        (quantities.seconds, "-1s"),
        (quantities.bits_per_s, "50mb"),
        (quantities.bits_per_s, ""),
    ):
        with pytest.raises(click.BadParameter, match="say for example"):
            read(text)


# Many lines


def plans(*pairs: tuple[str, str, bytes], **faults: float) -> list[LinePlan]:
    return [LinePlan(source, target, mac, Faults(**faults)) for source, target, mac in pairs]  # type: ignore[arg-type]


def taken(switch: Switch, now_s: float) -> list[tuple[str, bytes]]:
    return [(target, frame) for _, target, _, frame in switch.take(now_s)]


def test_a_frame_takes_the_line_of_its_destination_and_a_group_all() -> None:
    switch = Switch()
    switch.set_lines(plans(("n1", "n2", MAC_B), ("n1", "n3", MAC_C), ("n2", "n1", MAC_A)))
    assert switch.ports == {"n1", "n2", "n3"}
    assert [switch.macs(port) for port in ("n1", "n2", "n3")] == [[MAC_B, MAC_C], [MAC_A], []]
    for port, destination, frame in (
        ("n1", MAC_B, b"to b"),
        ("n1", MAC_A, b"to itself"),
        ("n2", MAC_C, b"not impaired"),
        ("n1", GROUP, b"to all"),
        ("n2", b"\xff" * 6, b"who has"),
        ("n3", GROUP, b"from one without lines"),
    ):
        switch.receive(port, destination, frame, len(frame), 1.0)
    assert taken(switch, 1.0) == [("n2", b"to b"), ("n2", b"to all"), ("n3", b"to all"), ("n1", b"who has")]


def test_frames_keep_their_order_and_wait_for_their_time() -> None:
    switch = Switch()
    switch.set_lines(plans(("n1", "n2", MAC_B), delay_s=0.02, rate_bits_per_s=8_000_000))
    dice, now_s, numbers = random.Random(1), 0.0, []
    for number in range(500):
        now_s += dice.choice((0, 0, 0.0005, 0.004))
        switch.receive("n1", MAC_B, number.to_bytes(2), SIZE, now_s)
        numbers += [int.from_bytes(frame) for _, frame in taken(switch, now_s)]
    assert 0 < len(numbers) < 500
    due_s = switch.due_s
    assert due_s is not None
    assert due_s > now_s
    assert taken(switch, due_s - 1e-9) == []
    assert len(taken(switch, due_s)) == 1
    numbers += [numbers[-1] + 1, *(int.from_bytes(frame) for _, frame in taken(switch, now_s + 1))]
    assert all(earlier < later for earlier, later in pairwise(numbers))


def test_a_line_that_ends_lets_go_or_loses_what_is_under_way() -> None:
    switch = Switch()
    kept, healed, cut = (("n1", "n2", MAC_B), ("n1", "n3", MAC_C), ("n2", "n1", MAC_A))
    switch.set_lines(plans(kept, healed, cut, delay_s=1))
    for number in range(3):
        for source, _, mac in (kept, healed, cut):
            switch.receive(source, mac, bytes([number]), 1, number / 10)
    ended = switch.set_lines(plans(kept, delay_s=0.5), cut={("n2", "n1")})
    assert ended == [(("n1", "n3"), bytes([number])) for number in range(3)]
    assert switch.lines["n1", "n2"].counts.frames == 3, "a line that stays keeps its counts"
    assert taken(switch, 9.0) == [("n2", bytes([number])) for number in range(3)]
    switch.receive("n1", MAC_B, b"x", 1, 10.0)
    assert switch.due_s == 10.5


# Two Pods


def geneve(outer: int, src: str, dst: str, *, port: int = 6081, control: bool = False) -> bytes:
    """Return an Ethernet frame with a Geneve datagram of 12 bytes of options, and a bare inner header."""
    ends = ip_address(src).packed + ip_address(dst).packed
    inner = b"\x45" + bytes(11) + ends if len(ends) == 8 else b"\x60" + bytes(7) + ends
    kind = b"\x08\x00" if len(ends) == 8 else b"\x86\xdd"
    udp = b"\x30\x00" + port.to_bytes(2) + bytes(4)
    body = udp + b"\x03" + (b"\x80" if control else b"\x40") + kind + bytes(4) + bytes(12) + inner
    head = b"\x46" + bytes(8) + b"\x11" + bytes(14) if outer == 4 else b"\x60" + bytes(5) + b"\x11" + bytes(33)
    return MAC_B + MAC_A + (b"\x08\x00" if outer == 4 else b"\x86\xdd") + head + body


ENDS = {4: ("10.42.1.2", "10.42.2.2"), 6: ("fd42:0:0:1::2", "fd42:0:0:2::2")}


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("family", [4, 6])
def test_whose_packet_a_datagram_carries_is_seen_inside(outer: int, family: int) -> None:
    wanted = b"".join(ip_address(end).packed for end in ENDS[family])
    frame = geneve(outer, *ENDS[family])
    assert inner_ends(frame) == wanted
    assert inner_ends(b"0123456789" + frame, 10) == wanted
    assert inner_ends(geneve(outer, *ENDS[family], port=53)) is None
    assert inner_ends(geneve(outer, *ENDS[family], control=True)) is None
    for size in range(len(frame)):
        assert inner_ends(frame[:size]) is None
    dice = random.Random(outer * 10 + family)
    for _ in range(3000):
        wrong = bytearray(frame)
        for _ in range(dice.randrange(1, 4)):
            wrong[dice.randrange(len(wrong))] = dice.randrange(256)
        found = inner_ends(bytes(wrong))
        assert found is None or len(found) in (8, 32)
    if outer == 4:
        assert inner_ends(frame[:21] + b"\x01" + frame[22:]) is None, "a later fragment"


def test_two_pods_have_a_line_of_their_own_before_that_of_their_nodes() -> None:
    switch = Switch()
    ends = frozenset(b"".join(ip_address(end).packed for end in ENDS[family]) for family in (4, 6))
    way = plans(("n1", "n2", MAC_B), delay_s=1.0)
    pods = [PodLinePlan("n1p1", "n2p1", ("n1", "n2"), ends, Faults(delay_s=0.5, duplicate=1.0))]
    switch.set_lines(way, pods=pods)
    theirs, others = geneve(4, *ENDS[4]), geneve(4, ENDS[4][0], "10.42.2.3")
    for frame in (theirs, others, b"no packet"):
        switch.receive("n1", MAC_B, frame, len(frame), 0.0)
    assert taken(switch, 0.5) == []
    assert taken(switch, 1.0) == [("n2", others), ("n2", b"no packet")]
    assert taken(switch, 1.5) == [("n2", theirs)] * 2
    assert (switch.lines["n1p1", "n2p1"].counts.frames, switch.lines["n1p1", "n2p1"].counts.passed) == (1, 2)
    assert switch.lines["n1", "n2"].counts.frames == 4, "and both copies go over the link"
    switch.receive("n1", MAC_B, theirs, len(theirs), 2.0)
    assert switch.set_lines(way) == [(("n1", "n2"), theirs)] * 2, "what was on a line that ends goes on at once"
    with pytest.raises(LabError, match="not there"):
        switch.set_lines([], pods=pods)


def test_the_kernel_filter_takes_the_right_frames() -> None:
    """Run the program as net/core/filter.c does: a reading beyond the frame ends it with 0."""

    def verdict(program: Sequence[tuple[int, int, int, int]], frame: bytes) -> int:
        value, at = 0, 0
        while True:
            code, if_true, if_false, k = program[at]
            at += 1
            if code == 0x06:
                return k
            if code in (0x30, 0x28, 0x20):
                size = {0x30: 1, 0x28: 2, 0x20: 4}[code]
                if len(frame) < k + size:
                    return 0
                value = int.from_bytes(frame[k : k + size])
            else:
                assert code in (0x15, 0x45)
                at += if_true if (value == k if code == 0x15 else value & k) else if_false

    macs = [bytes([2, 0x70, 0x77, 0, 0, host]) for host in range(1, 64)]
    many, none = _program(macs), _program([])
    assert len(many) <= 4096  # BPF_MAXINSNS
    rest = b"\2\0\0\0\0\1\x08\0" + bytes(50)
    for destination in (*macs, GROUP, b"\xff" * 6):
        assert verdict(many, destination + rest) == 0xFFFFFFFF
        assert verdict(none, destination + rest) == 0
    for destination in (b"\2\x70\x77\0\0\x40", b"\2\x70\x77\0\1\1", b"\2\x70\x78\0\0\1", bytes(6)):
        assert verdict(many, destination + rest) == 0
    assert verdict(many, b"") == 0


# With routers


@pytest.fixture(scope="module")
def whole_lab() -> Iterator[Lab]:
    with Lab(nodes=3, pods=1, outside=True, name=unique_name()) as made:
        yield made


@pytest.fixture
def lab(whole_lab: Lab) -> Iterator[Lab]:
    yield whole_lab
    whole_lab.heal()
    assert whole_lab.links().links == ()
    assert whole_lab.links().relay_pid is None
    assert_balanced(whole_lab)


def pings(source: LabPod, target: LabPod, family: int = 4, *options: str) -> bool:
    address = str(target.addresses[family == 6])
    return source.run(["ping", "-n", "-c", "1", "-W", "1", *options, address]).returncode == 0


def cut_off(source: LabPod, target: LabPod, family: int = 4) -> bool:
    return not pings(source, target, family, "-W", "0.3")


def until_pings(source: LabPod, target: LabPod, family: int = 4) -> None:
    """Wait until a Pod reaches another one: probes find a peer again that was away."""
    eventually(lambda: pings(source, target, family), what=f"{source.name} pings {target.name}")


def podwire(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router", "lab", arguments[0], "--name", lab.name, *arguments[1:]]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)


def state(lab: Lab, source: str, target: str) -> LinkState:
    return next(found for found in lab.links().links if found.link.pair == (source, target))


@pytest.mark.netns
def test_a_partition_cuts_the_two_and_nobody_else_until_it_is_healed(lab: Lab) -> None:
    first, second, third = lab.pods
    lab.partition("n1", "n2")
    for family in (4, 6):
        assert cut_off(first, second, family)
        assert cut_off(second, first, family)
        assert pings(first, third, family)
        assert pings(third, second, family)
    assert {found.link.pair for found in lab.links().links} == {("n1", "n2"), ("n2", "n1")}
    assert state(lab, "n1", "n2").cut_frames > 0
    lab.heal("n3")
    assert cut_off(first, second), "what was healed is another link"
    lab.heal("n2", "n1")
    for family in (4, 6):
        until_pings(first, second, family)


@pytest.mark.netns
def test_groups_and_one_way(lab: Lab) -> None:
    lab.partition(["n1", "n2"], "rest", one_way=True)
    assert [found.link.pair for found in lab.links().links] == [
        ("n1", "n3"), ("n1", "outside"), ("n2", "n3"), ("n2", "outside"),
    ]  # fmt: skip
    nodes = [lab.node(name) for name in ("n1", "n3")]
    with ExitStack() as stack:
        ends = []
        for node in nodes:
            end = stack.enter_context(netns.open_socket(node.netns_path, socket.AF_PACKET, socket.SOCK_RAW))
            end.bind(("eth0", 0x88B5))  # an EtherType for experiments (IEEE 802)
            end.settimeout(5)
            ends.append(end)
        macs = [bytes.fromhex(f"02707700000{host}") for host in (1, 3)]
        for sender, mac in ((0, macs[1]), (1, macs[0])):
            ends[sender].send(mac + macs[sender] + b"\x88\xb5" + bytes(50))
        assert ends[0].recv(100)[6:12] == macs[1], "the other way is open"
        ends[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            ends[1].recv(100)
    for left, right, said in (
        ("n1", "n9", "n9"),
        ("n1,n2", "n2", "n2 cannot be at both ends"),
        ("store", "n1", "nobody 'store'"),
    ):
        with pytest.raises(LabError, match=said):
            lab.partition(left, right)
    assert len(lab.links().links) == 4


@pytest.mark.netns
def test_loss_and_delay_are_felt_and_counted(lab: Lab) -> None:
    first, second, third = lab.pods
    lab.link("n1", "n2", loss=0.25, delay_s=0.02, seed=4)
    done = first.run(["ping", "-n", "-c", "80", "-i", "0.01", "-W", "2", "-q", str(second.addresses[0])])
    assert 10 < int(done.stdout.split(" received")[0].split()[-1]) < 75, done.stdout
    assert float(done.stdout.rpartition("= ")[2].split("/")[0]) >= 40, done.stdout
    assert pings(first, third)
    for pair in (("n1", "n2"), ("n2", "n1")):
        counts = state(lab, *pair).counts
        assert counts is not None
        assert counts.frames >= 20
        assert 0 < counts.lost < counts.frames
        assert counts.delayed >= counts.passed > 0
    assert set(lab.links().missed) == {"n1", "n2"}
    # Another program sees the same, and what it changes is seen here.
    said = json.loads(podwire(lab, "links", "--json").stdout)
    assert [(link["source"], link["target"], link["faults"]) for link in said["links"]] == [
        ("n1", "n2", {"loss": 0.25, "delay_s": 0.02}),
        ("n2", "n1", {"loss": 0.25, "delay_s": 0.02}),
    ]
    assert "loss 25% delay 20 ms" in podwire(lab, "links").stdout
    assert podwire(lab, "heal", "n1", "n2").stdout == "healed: n1 ↔ n2\n"
    assert lab.links().links == ()
    assert podwire(lab, "heal").stdout == "nothing was wrong\n"


@pytest.mark.netns
def test_what_crosses_a_bad_link_arrives_whole_and_in_packets_of_its_size(lab: Lab) -> None:
    """TCP over loss, reordering and duplicates, of super-packets that the sender's kernel has to cut."""
    first, second, _ = lab.pods
    lab.link("n1", "n2", loss=0.01, delay_s=0.002, jitter_s=0.001, reorder=0.02, duplicate=0.02)
    assert pings(first, second, 4, "-M", "do", "-s", str(1452 - 28))
    assert pings(first, second, 6, "-M", "do", "-s", str(1452 - 48))
    content = random.Random(1).randbytes(2_000_000)
    for family, version in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        assert _through_tcp(first, second, str(second.addresses[family == 6]), version, content) == content
    for pair in (("n1", "n2"), ("n2", "n1")):
        counts = state(lab, *pair).counts
        assert counts is not None
        assert counts.passed_bytes <= 1514 * counts.passed, "no super-frame crossed it"
        assert counts.refused == 0
        assert min(counts.lost, counts.reordered, counts.duplicated) > 0
    with lab.node("n1").client() as client:
        status = client.status()
    assert (status.offloads.udp_segment, status.notes) == (True, ()), "the router went on sending trains"
    assert " gso_max_segs 1 " in _eth0(lab, "n1")
    assert " gso_max_segs 65535 " in _eth0(lab, "n3")
    lab.heal()
    assert " gso_max_segs 65535 " in _eth0(lab, "n1")


@pytest.mark.netns
def test_no_frame_goes_both_ways_and_none_overtakes_when_links_change(lab: Lab) -> None:
    """By the bridge, by the relay, by the bridge again, cut and healed, while numbers go from one node to another."""
    first, second = lab.node("n1"), lab.node("n2")
    address = str(second.plan.underlay[0].ip)
    with ExitStack() as stack:
        receiver = stack.enter_context(netns.open_socket(second.netns_path, socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind((address, 7099))
        receiver.settimeout(10)
        receiver.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: nobody reads until all is sent
        sender = stack.enter_context(netns.open_socket(first.netns_path, socket.AF_INET, socket.SOCK_DGRAM))
        sender.connect((address, 7099))
        stopping = threading.Event()
        sent = []

        def send() -> None:
            for number in range(1 << 30):
                sender.send(number.to_bytes(4))
                sent.append(number)
                if stopping.wait(0.0005):
                    break

        sending = threading.Thread(target=send)
        sending.start()
        for change in (
            lambda: lab.link("n1", "n2", delay_s=0.01),
            lab.heal,
            lambda: lab.partition("n1", "n2"),
            lambda: lab.link("n1", "n2", delay_s=0.002),
            lambda: lab.heal(only_partitions=True),
            lab.heal,
        ):
            time.sleep(0.05)  # traffic between two changes
            change()
        stopping.set()
        sending.join()
        sender.send(b"\xff" * 4)
        numbers = []
        while (number := int.from_bytes(receiver.recv(4))) != 0xFFFFFFFF:
            numbers.append(number)
    assert all(earlier < later for earlier, later in pairwise(numbers))
    assert 100 < len(numbers) < len(sent)


@pytest.mark.netns
def test_a_hole_swallows_large_datagrams_until_it_is_healed(lab: Lab) -> None:
    """Between two nodes no router looks for another path, so it is seen as it is."""
    first, second = lab.node("n1"), lab.node("n2")
    said = podwire(lab, "link", "n1", "n2", "--mtu-hole", "1300")
    assert said.stdout == "MTU hole above 1300: n1 ↔ n2\n", said.stderr
    for family, address in ((4, second.plan.underlay[0].ip), (6, second.plan.underlay[1].ip)):
        headers = 28 if family == 4 else 48
        for size, passes in ((1300, True), (1301, False), (1500, False)):
            command = [
                "ping",
                "-n",
                "-c1",
                "-W1" if passes else "-W0.3",
                "-M",
                "do",
                "-s",
                str(size - headers),
                str(address),
            ]
            assert (first.run(command).returncode == 0) == passes, (family, size)
    counts = state(lab, "n1", "n2").counts
    assert counts is not None
    assert counts.swallowed >= 4
    said = podwire(lab, "status")
    assert "MTU hole above 1300: n1 ↔ n2" in said.stdout
    shown = json.loads(podwire(lab, "status", "--json").stdout)[0]["links"]
    assert [link["faults"] for link in shown] == [{"mtu_hole_bytes": 1300}] * 2
    lab.heal()
    assert (
        first.run(["ping", "-n", "-c1", "-W1", "-M", "do", "-s", "1472", str(second.plan.underlay[0].ip)]).returncode
        == 0
    )
    assert "MTU hole" not in podwire(lab, "status").stdout


@pytest.mark.netns
@pytest.mark.parametrize("underlay", [4, 6])
def test_faults_of_two_pods_are_felt_by_nobody_else(make_lab: LabMaker, underlay: int) -> None:
    lab = make_lab(nodes=2, pods=2, underlay_family=underlay)
    first, beside, second, other = lab.pods
    lab.partition(first.name, second.name)
    for family in (4, 6):
        assert cut_off(first, second, family)
        assert cut_off(second, first, family)
        for source, target in ((first, other), (beside, second), (first, beside), (other, first)):
            assert pings(source, target, family), (source.name, target.name)
    cut = state(lab, first.name, second.name)
    assert (cut.link.cut, cut.cut_frames > 0) == (True, True)
    said = podwire(lab, "status")
    assert f"cut: {first.name} ↔ {second.name}" in said.stdout
    if underlay == 6:  # what follows does not depend on it
        lab.heal()
        return
    said = podwire(lab, "link", first.name, f"{second.name},{other.name}", "--delay", "30ms", "--one-way")
    assert said.stdout == f"delay 30 ms: {first.name} → {second.name}, {first.name} → {other.name}\n", said.stderr
    lab.heal(first.name, second.name)
    lab.link("n1", "n2", delay_s=0.02, one_way=True)
    assert _rtt_ms(first, second) >= 20
    assert _rtt_ms(first, other) >= 50, "both that of the Pods and that of their nodes"
    assert _rtt_ms(beside, other) >= 20
    lab.partition("n1", "n2")
    assert cut_off(first, other)
    lab.heal("n1", "n2")
    assert _rtt_ms(first, other) >= 30, "a node's link and those of its Pods are healed one by one"
    again = lab.add_pod(lab.node("n2"))
    lab.link(again.name, "rest", loss=1.0)
    assert cut_off(again, first)
    assert cut_off(beside, again)
    assert pings(again, second), "no link lies between them"
    lab.attach_again(again)
    assert cut_off(again, first, 6), "it is known by its new addresses"
    lab.remove_pod(again)
    assert {name for found in lab.links().links for name in found.link.pair} == {first.name, other.name}
    for left, right, why in (
        (first.name, beside.name, "both on n1"),
        (first.name, "n2", "n2 is no Pod"),
        (first.name, "n9p9", "nobody 'n9p9'"),
        (first.name, first.name, "both ends"),
    ):
        with pytest.raises(LabError, match=why):
            lab.link(left, right, loss=1.0)
    lab.heal(first.name)
    assert lab.links().links == ()
    assert lab.links().relay_pid is None
    assert pings(first, other)


def _rtt_ms(source: LabPod, target: LabPod) -> float:
    until_pings(source, target)
    done = source.run(["ping", "-n", "-q", "-c3", "-i0.05", "-W2", str(target.addresses[0])])
    return float(done.stdout.rpartition("= ")[2].split("/")[0])


@pytest.mark.netns
def test_a_rate_limit_holds_tcp_back(lab: Lab) -> None:
    first, second, _ = lab.pods
    lab.link("n1", "n2", rate_bits_per_s=8_000_000, one_way=True)
    began_s = time.monotonic()
    content = bytes(600_000)
    assert _through_tcp(first, second, str(second.addresses[0]), socket.AF_INET, content) == content
    assert time.monotonic() - began_s >= 0.5, "600 kB at 1 MB/s"
    assert [found.link.pair for found in lab.links().links] == [("n1", "n2")]


@pytest.mark.netns
def test_faults_outlast_a_partition_or_end_with_it(lab: Lab) -> None:
    first, second, _ = lab.pods
    lab.link("n1", "n2", delay_s=0.01)
    lab.partition("n1", "n2,n3")
    assert cut_off(first, second)
    assert lab.links().relay_pid is None, "it has nothing to carry"
    assert "cut (delay 10 ms)" in podwire(lab, "links").stdout
    lab.heal(only_partitions=True)
    assert [str(found.link.faults) for found in lab.links().links] == ["delay 10 ms"] * 2
    until_pings(first, second)
    assert podwire(lab, "partition", "n2", "n1", "--one-way").stdout == "cut: n2 → n1\n"
    assert state(lab, "n1", "n2").counts is not None
    assert cut_off(first, second)
    lab.heal()
    until_pings(first, second)
    assert "as good as new" in podwire(lab, "links").stdout


@pytest.mark.netns
def test_a_relay_that_died_is_said_so_and_started_again(lab: Lab) -> None:
    first, second, _ = lab.pods
    lab.link("n1", "n2", delay_s=0.001)
    until_pings(first, second)
    lab._links.kill9()
    assert lab.links().relay_pid is None
    assert cut_off(first, second)
    assert "relay is dead" in podwire(lab, "links").stdout
    lab.link("n1", "n2", delay_s=0.002)
    until_pings(first, second)


@pytest.mark.netns
def test_the_relay_refuses_what_it_does_not_understand_and_goes_on(lab: Lab) -> None:
    lab.link("n1", "n2", delay_s=0.001)
    path = lab._links._socket
    plan = {"source": "n1", "target": "n2", "mac": MAC_B.hex(), "faults": {}, "seed": 0}
    for request in (
        {"lines": 5},
        {"lines": [{}], "cut": []},
        {"lines": [plan | {"mac": "zz"}], "cut": []},
        {"lines": [plan | {"faults": {"loss": 7}}], "cut": []},
        {"lines": [plan | {"faults": {"wind": 7}}], "cut": []},
        {"lines": [plan | {"target": "nobody"}], "cut": []},
        {"lines": [plan], "cut": [5]},
    ):
        with pytest.raises(LabError):
            ask(path, request)
    for half in (b"", b'{"lines": [', b"\xff\xfe\n"):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(path))
            asking.sendall(half)
    first, second, _ = lab.pods
    until_pings(first, second)
    assert state(lab, "n1", "n2").counts is not None


def _eth0(lab: Lab, node: str) -> str:
    return str(lab.node(node).run(["ip", "-d", "link", "show", "eth0"]).stdout)


def _through_tcp(source: LabPod, target: LabPod, address: str, family: int, content: bytes) -> bytes:
    """Send bytes from a Pod to another one, and return what arrived."""
    with netns.open_socket(target.netns_path, family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        listener.settimeout(60)
        with netns.open_socket(source.netns_path, family, socket.SOCK_STREAM) as sender:
            sender.settimeout(60)
            sender.connect(listener.getsockname()[:2])

            def send() -> None:
                sender.sendall(content)
                sender.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send)
            sending.start()
            receiver, _ = listener.accept()
            with receiver, receiver.makefile("rb") as stream:
                receiver.settimeout(60)
                found = stream.read()
            sending.join()
    return found
