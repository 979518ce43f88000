"""The long run's own parts: an oracle that cannot find a fault would prove nothing. The run itself is `make chaos`."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from shim.answers import AttachmentCounters, AttachmentKey, Counters, Endpoint, PeerCounters, Tally
from shim.lab import netns
from tests.accounts import eventually
from tests.chaos import excuses, icmp, payload
from tests.chaos.__main__ import parse
from tests.chaos.accounts import Accounts
from tests.chaos.excuses import Budget, Excuses, losses, unexplained
from tests.chaos.flows import SIZES, Datagrams
from tests.chaos.leaks import LONG_S, WARM_S, check_memory
from tests.chaos.log import Log
from tests.chaos.oracle import Size
from tests.chaos.payload import Who, WrongBytes, WrongPod
from tests.chaos.planted import BUGS, CAUGHT_BY
from tests.chaos.pod import UDP_PORT
from tests.chaos.rig import Rig
from tests.chaos.schedule import MOST_DOWN, ROOM_S, WEIGHTS, schedule
from tests.chaos.store import PREFIX, Witness
from tests.chaos.traffic import Traffic
from tests.conftest import unique_name

ONE = Who("n1p1.1", "n1p1", "n1", IPv4Address("10.42.0.2"), IPv6Address("fd42::2"))
TWO = Who("n2p1.2", "n2p1", "n2", IPv4Address("10.42.0.18"), IPv6Address("fd42::12"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "log", quiet=True)
    yield made
    made.close()


# What is done


def test_a_seed_is_a_schedule() -> None:
    made = schedule(7, 600, 6, 4)
    assert schedule(7, 600, 6, 4) == made
    assert schedule(8, 600, 6, 4) != made
    assert {action.name for action in made} == set(WEIGHTS), "ten minutes do everything"
    assert [action.at_s for action in made] == sorted(action.at_s for action in made)
    assert json.loads(json.dumps([action.arguments for action in made]))
    for action in made:
        assert callable(getattr(Rig, action.name))


@pytest.mark.parametrize("seed", range(5))
def test_no_node_is_disturbed_twice_at_once_and_never_too_many(seed: int) -> None:
    disturbing = ("kill_router", "restart_router", "move_subnets")
    made = [action for action in schedule(seed, 600, 6, 4) if action.name in disturbing]
    for index, action in enumerate(made):
        still = [
            other.arguments["node"] for other in made[:index] if other.at_s + ROOM_S[other.name] > action.at_s + 0.01
        ]
        assert action.arguments["node"] not in still
        assert len(still) < MOST_DOWN


def test_small_clusters_have_schedules_too() -> None:
    assert len(schedule(1, 60, 3, 2)) > 20
    assert schedule(1, 60, 2, 2)
    assert parse(["--plant", "swapped-peer"]).engine == "python"
    with pytest.raises(SystemExit):
        parse(["--nodes", "1"])


# What packets carry


def test_every_byte_of_a_datagram_is_checked() -> None:
    for family in (4, 6):
        for size in SIZES:
            made = payload.datagram(payload.DATAGRAM, 9, 3, ONE, TWO, family, size)
            assert len(made) == size
            found = payload.read(made)
            assert (found.src_uid, found.dst_uid, found.dst) == (ONE.uid, TWO.uid, TWO.address(family))
            payload.check_ends(found, TWO, str(ONE.address(family)))
    made = payload.datagram(payload.DATAGRAM, 9, 3, ONE, TWO, 4, 200)
    for at in range(payload.HEADER.size, 200):
        with pytest.raises(WrongBytes, match=f"byte {at} of"):
            payload.read(made[:at] + bytes([made[at] ^ 1]) + made[at + 1 :])
    for wrong in (
        made[:-1],
        made + b"x",
        made[:40],
        b"",
        b"x" + made[1:],
        made[: payload.HEADER.size] + made[-132:-1] + b"?",
    ):
        with pytest.raises(WrongBytes):
            payload.read(wrong)
    other = payload.datagram(payload.DATAGRAM, 9, 4, ONE, TWO, 4, 200)
    with pytest.raises(WrongBytes):
        payload.read(made[: payload.HEADER.size] + other[payload.HEADER.size :])


def test_who_receives_what_is_not_his_says_so() -> None:
    found = payload.read(payload.datagram(payload.DATAGRAM, 1, 1, ONE, TWO, 4, 100))
    payload.check_ends(found, TWO, "10.42.0.2")
    again = replace(TWO, uid="n2p1.9")
    for receiver, seen in ((again, "10.42.0.2"), (ONE, "10.42.0.2"), (TWO, "10.42.0.3")):
        with pytest.raises(WrongPod):
            payload.check_ends(found, receiver, seen)
    spoofed = payload.read(payload.datagram(payload.SPOOF, 1, 1, ONE, TWO, 4, 100))
    with pytest.raises(WrongPod, match="spoofed"):
        payload.check_ends(spoofed, TWO, "10.42.0.2")


def test_streams_differ_from_place_to_place() -> None:
    piece = payload.stream(5, 1000, 64)
    assert piece == payload.stream(5, 0, 2000)[1000:1064]
    assert piece not in (payload.stream(5, 1001, 64), payload.stream(6, 1000, 64))
    assert len(payload.stream(5, (1 << 20) - 3, 1000)) == 1000


# What may be lost


def flow(lost: tuple[int, ...] = (), kind: str = "udp") -> Datagrams:
    """Return a flow of a datagram a second, from 0 s to 99 s, without some."""
    made = Datagrams(1, kind, 4, ONE, TWO)
    for number in range(100):
        assert made.sent(float(number)) == number
        if number not in lost:
            made.received(number)
    return made


def test_losses_are_excused_by_their_time_and_place_only() -> None:
    lost = flow((10, 20, 30, 97))
    found = Excuses()
    found.begin("n2 killed", 10.0, ["n2"]).end(15.0, 2.0)
    found.begin("n3 killed", 20.0, ["n3"]).end(25.0, 2.0)
    found.begin("cut", 30.0, (), [("n2", "n1")]).end(31.0, 1.0)
    (loss,) = losses([lost], found, 95.0)
    assert (loss.sent, loss.lost, loss.outside_lost) == (100, 3, (20.0, 30.0)), "the other way was cut at 30 s"
    assert loss.outside_sent == 96 - 8
    (pinged,) = losses([flow((10, 20, 30), "ping")], found, 95.0)
    assert pinged.outside_lost == (20.0,), "an echo comes back the other way"
    ended = flow((98, 99))
    ended.ended = True
    assert losses([ended], Excuses(), 200.0)[0].outside_lost == (), "these were on their way when its Pod died"


def test_what_nothing_excuses_must_be_counted_there_and_then() -> None:
    found = losses([flow((20, 21, 60))], Excuses(), 95.0)

    def history(counted: dict[int, int], way: tuple[str, str] = ("n1", "n2")) -> list[Budget]:
        total, made = 0, []
        for at_s in range(100):
            total += counted.get(at_s, 0)
            made.append(Budget(float(at_s), frozenset({"n1", "n2"}), {way: total}))
        return made

    assert unexplained(found, history({21: 1, 22: 1, 61: 1})) == []
    for counted in ({}, {21: 1, 61: 1}, {21: 2, 40: 1}, {5: 100, 80: 100}):
        assert unexplained(found, history(counted)), counted
    assert unexplained(found, history({21: 2, 61: 1}, ("n2", "n1"))), "counted the other way"
    late = [replace(each, read=frozenset({"n1"})) if 60 < each.at_s < 70 else each for each in history({21: 2, 69: 1})]
    assert unexplained(found, late) == [], "n2 could not be read before"
    assert excuses.clusters([1.0, 2.0, 9.0, 9.5]) == [[1.0, 2.0], [9.0, 9.5]]


def test_what_comes_twice_and_what_was_never_sent() -> None:
    made = flow()
    assert made.received(3)
    assert made.duplicates == 1
    assert not made.received(100)


# What routers count


KEY = AttachmentKey("pod", "eth0")


def counters(
    epoch: str = "a",
    pod: Tally | None = None,
    peer: Tally | None = None,
    gone: Tally | None = None,
    rings: int = 0,
    sockets: int = 0,
) -> Counters:
    return Counters(
        epoch,
        () if pod is None else (AttachmentCounters(KEY, pod, rings),),
        () if peer is None else (PeerCounters(Endpoint("192.168.64.2", 6081), "n2", peer),),
        Tally(),
        gone or Tally(),
        0,
        sockets,
        0,
    )


def test_counters_are_added_up_over_the_lives_of_a_router() -> None:
    accounts = Accounts()
    dropped = Tally(received_packets=5, dropped={"peer_down": 3, "spoofed_source": 2})
    assert accounts.observe("n1", counters(pod=dropped, rings=4)) == []
    assert accounts.budget("n1", "n2") == 3 + 4, "a liar's packets explain nothing"
    assert accounts.observe("n1", counters(gone=dropped)) == [], "detached, and so among what is gone"
    assert accounts.budget("n1", "n2") == 7
    assert (
        accounts.observe("n1", counters("b", pod=Tally(received_packets=1, dropped={"too_big": 1}), rings=1, sockets=2))
        == []
    )
    assert accounts.budget("n1", "n3") == 3 + 4 + 1 + 1
    assert accounts.budget("n2", "n1") == 1 + 3 + 5 + 2, "what comes in may be lost at its rings and its socket"
    assert accounts.observe("n2", counters(peer=Tally(received_packets=1, dropped={"wrong_node": 1}))) == []
    assert accounts.strayed("n2") == 1
    assert accounts.everything() == 3 + 1 + 5 + 2 + 1
    assert accounts.by_reason() == Counter(peer_down=3, spoofed_source=2, too_big=1, wrong_node=1)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (counters(pod=Tally(received_packets=9, balance=1)), "balance of 1"),
        (counters(pod=Tally(received_packets=7, delivered_packets=7)), "received_packets went from 8 back to 7"),
        (counters(pod=Tally(received_packets=8, delivered_packets=8), gone=Tally(balance=-1)), "gone has a balance"),
        (replace(counters(pod=Tally(received_packets=8, delivered_packets=8)), engine_restarts=1), "met a bug"),
        (counters(pod=Tally(received_packets=8, delivered_packets=8), sockets=1), "socket_drops went"),
    ],
)
def test_counters_that_cannot_be_are_found(found: Counters, word: str) -> None:
    accounts = Accounts()
    assert accounts.observe("n1", counters(pod=Tally(received_packets=8, delivered_packets=8), sockets=2)) == []
    assert any(word in wrong for wrong in accounts.observe("n1", found)), word


# What is in the store


def row(*subnets: str, endpoint: str) -> bytes:
    return json.dumps({"subnets": subnets, "endpoint": endpoint}).encode()


def test_two_rows_with_one_subnet_are_found_at_their_revision() -> None:
    witness = Witness()
    subnet, lock = "10.42.0.0/28", f"{PREFIX}/leases/10.42.0.0-28"
    first = [(f"{PREFIX}/members/n1", row(subnet, endpoint="a:1"), 5), (lock, b"n1", 5)]
    assert witness.take(2, first) == []
    assert witness.take(3, [(f"{PREFIX}/members/n2", row("10.42.0.16/28", endpoint="b:1"), 6)]) != [], "without a lock"
    assert witness.take(4, [(f"{PREFIX}/leases/10.42.0.16-28", b"n2", 6)]) == []
    assert "a:1 is held by n1 and n3" in str(witness.take(5, [(f"{PREFIX}/members/n3", row(endpoint="a:1"), 7)]))
    assert witness.take(6, [(f"{PREFIX}/members/n3", None, 0)]) == []
    assert f"{subnet} is held by n1 and n2" in str(
        witness.take(7, [(f"{PREFIX}/members/n2", row(subnet, endpoint="b:1"), 6)])
    )
    witness.take(8, [(f"{PREFIX}/members/n1", None, 0), (lock, b"n2", 6)])
    assert witness.passed_on == 1


# What is left


def test_memory_that_grows_is_found(log: Log) -> None:
    def sizes(slope_bytes_per_s: float, jump_bytes: int = 0) -> list[Size]:
        return [
            Size(at_s, int(60e6 + slope_bytes_per_s * at_s + (jump_bytes if at_s > 300 else 0)), 20, 4)
            for at_s in range(int(2 * LONG_S + WARM_S))
        ]

    check_memory({("n1", 1): sizes(0), ("n2", 2): sizes(1000)}, log)
    assert log.violations == []
    check_memory({("n1", 1): sizes(40_000)}, log)
    assert "MB a minute" in log.violations[0].text
    before = len(log.violations)
    check_memory({("n1", 1): sizes(0, 30 << 20)}, log)
    assert "grew by" in log.violations[before].text


def test_each_planted_bug_has_an_invariant_that_it_breaks() -> None:
    assert BUGS.keys() == CAUGHT_BY.keys()


# Traffic between two namespaces


@pytest.mark.netns
def test_traffic_finds_every_lie_on_a_wire_that_tells_them(log: Log) -> None:
    """Two Pods on a wire without a router: what is right passes, and what is wrong is found."""
    names = [unique_name() for _ in range(2)]
    traffic = Traffic(1, log.complain)
    try:
        for name in names:
            netns.create(name)
        wire(names)
        traffic.start()
        for name, who in zip(names, (ONE, TWO), strict=True):
            traffic.add(who, netns.path_of(name))
        eventually(lambda: traffic.counts["exchanges"] > 3 and traffic.counts["stream bytes"] > 3000, what="TCP")
        eventually(lambda: traffic.counts["datagrams"] > 20 and traffic.counts["pings"] > 2, what="UDP and pings")
        both = [(ONE.uid, TWO.uid, 4), (TWO.uid, ONE.uid, 6)]
        traffic.send_reach(3, both)
        eventually(lambda: traffic.reached(3) == set(both), what="every way")
        assert log.violations == []
        liar = replace(ONE, v4=IPv4Address("10.42.0.77"))
        traffic.spoof(ONE.uid, liar, TWO, 4, 1)
        eventually(lambda: log.broken["no packet to the wrong Pod"] == 1, what="a spoofed packet found")
        stranger = replace(TWO, v6=IPv6Address("fd42::99"))
        traffic.spoof(ONE.uid, ONE, stranger, 6, 1)  # the wire leads it to the Pod
        eventually(lambda: log.broken["no packet to the wrong Pod"] == 2, what="a stray found")
        with netns.open_socket(netns.path_of(names[0]), socket.AF_INET, socket.SOCK_DGRAM) as wrong:
            wrong.bind((str(ONE.v4), 0))
            data = bytearray(payload.datagram(payload.DATAGRAM, 1, 0, ONE, TWO, 4, 300))
            data[200] ^= 1
            wrong.sendto(data, (str(TWO.v4), UDP_PORT))
            eventually(lambda: log.broken["no wrong byte"] == 1, what="a wrong byte found")
        made = next(made for made in traffic.connections.values() if made.opened_s)
        for side in traffic._sides[made.number][:1]:
            side.writer.sock.shutdown(socket.SHUT_RDWR)
        eventually(lambda: log.broken["TCP survives"] >= 1, what="a dead connection found")
        traffic.hold()
        alive = [made for made in traffic.connections.values() if not made.ended]
        eventually(lambda: all(made.in_order for made in alive), what="all that was sent")
        time.sleep(0.2)
        assert sum(loss.lost for loss in losses(traffic.datagrams.values(), Excuses(), time.monotonic() - 0.1)) == 0
        dead = log.broken["TCP survives"]
        traffic.remove(TWO.uid)
        assert log.broken["TCP survives"] == dead, "who dies with its Pod does not count"
        assert all(each.ended for each in (*traffic.connections.values(), *traffic.datagrams.values()))
    finally:
        traffic.stop()
        for name in names:
            netns.delete(name)


def wire(names: list[str]) -> None:
    """Lay a wire between two Pods' eth0, on which all addresses lead to the other."""
    one, two = map(netns.path_of, names)
    # As a TUN, it has no neighbours to ask for: whatever is sent arrives.
    mac = "address 02:00:00:00:00:01"
    netns.ip_batch(one, [f"link add eth0 {mac} type veth peer name eth0 {mac} netns {names[1]}"])
    for path, own in ((one, ONE), (two, TWO)):
        lines = ["link set eth0 arp off addrgenmode none", f"addr add {own.v4}/24 dev eth0"]
        netns.ip_batch(path, [*lines, f"addr add {own.v6}/64 dev eth0 nodad", "link set eth0 up"])


def test_echo_answers_are_told_from_everything_else() -> None:
    answer = b"\x81\0\0\0\0\7\0\1hello"
    assert icmp.echo_reply(6, answer, 7) == b"hello"
    assert icmp.echo_reply(6, answer, 8) is None
    assert icmp.echo_reply(6, b"\x80" + answer[1:], 7) is None
    assert icmp.echo_reply(4, b"\x45" + bytes(19) + b"\0" + answer[1:], 7) == b"hello"
    for size in range(28):
        assert icmp.echo_reply(4, (b"\x45" + bytes(27))[:size], 7) is None
