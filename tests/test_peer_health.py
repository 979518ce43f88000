"""What probes tell of a peer: time is a number here, and the path is played."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest

from router.peers.health import DOWN_AFTER_S, HURRY_S, PERIOD_S, WINDOW, Health, PeerState
from router.peers.path_mtu import MTU_STEP_BYTES

MOST, LEAST = 1452, 1280
SMALL = 0


@dataclass
class Path:
    """A peer at the end of a path that answers, or not."""

    carries: Callable[[int, float], bool]
    """Of an inner packet's size (0: a small probe) and the time."""
    rtt_s: float = 0.001
    limit_bytes: int = 1 << 16
    """What the kernel takes: it refuses to send larger packets."""

    def run(self, health: Health, until_s: float, heard: bool = False) -> list[tuple[float, PeerState]]:
        """Ask when it is due, answer, and return when the state changed."""
        sequence, states = 1, [(health.due_s, health.state)]
        answers: list[tuple[float, int]] = []
        while True:
            next_s = min([health.due_s, *(at_s for at_s, _ in answers)])
            if next_s > until_s:
                return states
            if answers and answers[0][0] <= health.due_s:
                at_s, number = answers.pop(0)
                assert health.answered(number, at_s)
                now_s = at_s
            else:
                now_s = health.due_s
                health.judge(now_s, heard)
                probes = health.ask(sequence, now_s)
                for number, mtu_bytes in probes:
                    if mtu_bytes > self.limit_bytes:
                        health.not_sent(number, "Message too long", self.limit_bytes)
                    elif self.carries(mtu_bytes, now_s):
                        answers.append((now_s + self.rtt_s, number))
                sequence += len(probes)
                assert health.due_s > now_s
            if health.state is not states[-1][1]:
                states.append((now_s, health.state))


def health(now_s: float = 100.0) -> Health:
    return Health(MOST, LEAST, now_s)


def test_a_peer_that_answers_is_up_with_its_round_trip_and_full_size() -> None:
    peer = health()
    states = Path(lambda *_: True, rtt_s=0.02).run(peer, 110)
    assert states == [(100.0, PeerState.UNKNOWN), (100.02, PeerState.UP)]
    assert peer.rtt_s == pytest.approx(0.02)
    assert peer.rtt_min_s == pytest.approx(0.02)
    assert (peer.loss, peer.mtu_bytes) == (0.0, MOST)


def test_a_peer_that_falls_silent_is_down_within_three_seconds_and_back_with_its_next_answer() -> None:
    peer = health()
    path = Path(lambda _, now_s: not 105.5 <= now_s < 120.0)
    states = path.run(peer, 130)
    assert [state for _, state in states] == [PeerState.UNKNOWN, PeerState.UP, PeerState.DOWN, PeerState.UP]
    down_s, up_s = states[2][0], states[3][0]
    assert 105.5 + DOWN_AFTER_S - PERIOD_S <= down_s <= 105.5 + 3.0
    assert 120.0 <= up_s <= 120.0 + PERIOD_S + 0.01
    assert peer.mtu_bytes == MOST


def test_a_peer_that_never_answered_is_down_too() -> None:
    states = Path(lambda *_: False).run(health(), 110)
    assert [state for _, state in states] == [PeerState.UNKNOWN, PeerState.DOWN]
    assert 100 + DOWN_AFTER_S <= states[1][0] <= 104


def test_a_restart_of_two_seconds_goes_unnoticed() -> None:
    states = Path(lambda _, now_s: not 105.01 <= now_s < 107.0).run(health(), 120)
    assert states[-1][1] is PeerState.UP
    assert len(states) == 2


def test_packets_from_a_peer_keep_it_up_while_probes_are_lost() -> None:
    states = Path(lambda _, now_s: now_s < 105).run(health(), 120, heard=True)
    assert [state for _, state in states] == [PeerState.UNKNOWN, PeerState.UP]


def test_loss_is_of_the_last_probes() -> None:
    peer = health()
    asked = 0

    def every_fourth_lost(mtu_bytes: int, now_s: float) -> bool:
        nonlocal asked
        asked += mtu_bytes == SMALL
        return bool(mtu_bytes) or asked % 4 != 0

    Path(every_fourth_lost).run(peer, 100 + 2 * WINDOW)
    assert peer.state is PeerState.UP
    assert peer.loss == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("path_mtu", [1280, 1281, 1333, 1400, 1448, 1451])
def test_a_smaller_path_is_found_to_a_few_bytes_within_seconds(path_mtu: int) -> None:
    peer = health()
    Path(lambda mtu_bytes, _: mtu_bytes <= path_mtu).run(peer, 112)
    assert path_mtu - MTU_STEP_BYTES <= peer.mtu_bytes <= path_mtu


def test_a_path_that_becomes_smaller_and_larger_again_is_followed() -> None:
    peer = health()
    Path(lambda mtu_bytes, now_s: mtu_bytes <= (1400 if 110 <= now_s < 130 else MOST)).run(peer, 125)
    assert 1400 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1400
    Path(lambda mtu_bytes, now_s: True).run(peer, 140)
    assert peer.mtu_bytes == MOST


def test_a_path_that_becomes_smaller_twice_is_followed() -> None:
    peer = health()
    Path(lambda mtu_bytes, now_s: mtu_bytes <= (1400 if now_s < 120 else 1300)).run(peer, 119)
    assert 1400 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1400
    Path(lambda mtu_bytes, _: mtu_bytes <= 1300).run(peer, 145)
    assert 1300 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1300


def test_lost_large_probes_do_not_make_a_path_small_while_nothing_comes_through() -> None:
    peer = health()
    Path(lambda _, now_s: now_s < 110).run(peer, 130)
    assert (peer.state, peer.mtu_bytes) == (PeerState.DOWN, MOST)


def test_what_the_kernel_says_of_a_path_is_believed() -> None:
    peer = health()
    [(number, _)] = peer.ask(1, 100.0)
    assert peer.answered(number, 100.001)
    probes = dict(peer.ask(3, peer.due_s))
    large = next(number for number, mtu_bytes in probes.items() if mtu_bytes)
    peer.not_sent(large, "Message too long", 1352)
    assert peer.mtu_bytes == 1352


def test_a_probe_that_cannot_be_sent_counts_as_missed_and_says_why() -> None:
    peer = health()
    now_s = 100.0
    while now_s < 104:
        peer.judge(now_s, heard=False)
        for number, _ in peer.ask(1, now_s):
            peer.not_sent(number, "Network is unreachable")
        now_s = peer.due_s
    assert (peer.state, peer.error, peer.loss) == (PeerState.DOWN, "Network is unreachable", 1.0)


def test_answers_to_nothing_are_no_news() -> None:
    peer = health()
    peer.ask(7, 100.0)
    assert not peer.answered(8, 100.1)
    assert not peer.answered(7, 99.0)
    assert peer.answered(7, 100.1)
    assert not peer.answered(7, 100.2)
    assert peer.rtt_s == pytest.approx(0.1)


def test_the_askers_own_sleep_is_not_the_peers_silence() -> None:
    peer = health()
    Path(lambda *_: True).run(peer, 110)
    peer.slept(60.0)
    assert peer.judge(peer.due_s + 60.0, heard=False) is PeerState.UP
    assert peer.silence_s(peer.due_s + 60.0) < 2 * PERIOD_S


def test_a_large_cluster_is_asked_slowly_and_given_longer() -> None:
    peer = health()
    peer.period_s = 10.0
    states = Path(lambda _, now_s: now_s < 150).run(peer, 220)
    assert states[-1][1] is PeerState.DOWN
    assert 150 + 10 * DOWN_AFTER_S - 20 <= states[-1][0] <= 150 + 10 * DOWN_AFTER_S + 10


def test_it_asks_faster_only_while_an_answer_is_overdue() -> None:
    peer = health()
    times = []
    Path(lambda _, now_s: bool(times.append(now_s)) or now_s < 103.5).run(peer, 105.4)
    gaps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    assert min(gaps[-3:]) == pytest.approx(HURRY_S)
    assert gaps[1] >= HURRY_S


@pytest.mark.parametrize("late_s", [0.0, 0.4, 0.9, 1.3, 1.7, 1.999])
@pytest.mark.parametrize("path_mtu", [1280, 1300, 1447])
def test_a_hole_that_opens_in_mid_life_is_in_force_within_five_seconds_whenever_it_opens(
    late_s: float, path_mtu: int
) -> None:
    peer, opens_s = health(), 120 + late_s
    path = Path(lambda mtu_bytes, now_s: now_s < opens_s or mtu_bytes <= path_mtu)
    path.run(peer, opens_s)
    assert peer.mtu_bytes == MOST
    path.run(peer, opens_s + 3.1)
    assert path_mtu - MTU_STEP_BYTES <= peer.mtu_bytes <= path_mtu


def test_a_hole_on_a_jumbo_path_with_long_round_trips_is_in_force_within_five_seconds() -> None:
    peer = Health(8952, LEAST, 100.0)
    path = Path(lambda mtu_bytes, now_s: now_s < 120 or mtu_bytes <= 1452, rtt_s=0.2)
    path.run(peer, 120)
    assert peer.mtu_bytes == 8952
    path.run(peer, 125)
    assert LEAST <= peer.mtu_bytes <= 1452
    path.run(peer, 130)
    assert 1452 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1452


def test_a_path_that_grows_half_way_is_followed_and_one_that_shrinks_again_within_five_seconds() -> None:
    peer = health()
    limit = [1300]
    path = Path(lambda mtu_bytes, _: mtu_bytes <= limit[0])
    path.run(peer, 110)
    limit[0] = 1400
    path.run(peer, 125)
    assert 1400 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1400
    limit[0] = 1350
    path.run(peer, 130)
    assert 1350 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1350


@pytest.mark.parametrize("opens_s", [0.0, 110.1])
@pytest.mark.parametrize("limit_bytes", [1400, MOST - 1])
def test_a_hole_below_what_the_kernel_takes_is_found_too(opens_s: float, limit_bytes: int) -> None:
    peer = health()
    path = Path(lambda mtu_bytes, now_s: now_s < opens_s or mtu_bytes <= 1300, limit_bytes=limit_bytes)
    if opens_s:
        path.run(peer, opens_s)
        assert peer.mtu_bytes == limit_bytes
    path.run(peer, max(opens_s, 100.0) + 5)
    assert 1300 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1300
    path.limit_bytes = 1 << 16
    path.run(peer, 150)
    assert 1300 - MTU_STEP_BYTES <= peer.mtu_bytes <= 1300, "and it stays so when the kernel takes more"


def test_what_our_own_socket_had_no_room_for_tells_nothing_of_a_path() -> None:
    peer = health()
    Path(lambda *_: True).run(peer, 110)
    now_s = peer.due_s
    for _ in range(30):
        for number, mtu_bytes in peer.ask(1000 + int(now_s * 1000), now_s):
            if mtu_bytes:
                peer.no_room(number)
            else:
                assert peer.answered(number, now_s + 0.001)
        now_s = max(peer.due_s, now_s + 0.01)
    assert peer.mtu_bytes == MOST


def test_chance_does_not_make_a_path_small_for_long() -> None:
    """One packet in ten is lost, whatever its size: the path is known to be whole nearly all the time."""
    dice = random.Random(6)
    peer = health()
    path = Path(lambda *_: dice.random() > 0.1)
    whole = 0
    for second in range(1000):
        path.run(peer, 101.0 + second)
        whole += peer.mtu_bytes == MOST
    assert whole > 950


def test_a_healthy_peer_is_asked_no_more_often_for_its_path() -> None:
    peer, asked = health(), [0, 0]

    def count(mtu_bytes: int, _: float) -> bool:
        asked[mtu_bytes > 0] += 1
        return True

    Path(count).run(peer, 160)
    assert asked[0] <= 63
    assert asked[1] <= 32
