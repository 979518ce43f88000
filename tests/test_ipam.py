"""Addresses: never two holders, rest before reuse, and answers that do not depend on the subnet's size."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import Kind, Refusal
from router.ipam import Ipam, Resting, node_address
from router.model import AttachmentKey, Interface


def key(number: int) -> AttachmentKey:
    return AttachmentKey(f"pod{number}", "eth0")


def ipam(*subnets: str, rest_s: float = 60.0) -> Ipam:
    return Ipam(tuple(ip_network(subnet) for subnet in subnets), rest_s)


def texts(granted: tuple[Interface, ...]) -> list[str]:
    return [str(interface) for interface in granted]


def test_one_address_of_each_family_with_the_subnets_length() -> None:
    addresses = ipam("10.1.0.0/24", "fd00:1::/64")
    assert texts(addresses.allocate(key(1), (), 0)) == ["10.1.0.2/24", "fd00:1::2/64"]
    assert texts(addresses.allocate(key(2), (), 0)) == ["10.1.0.3/24", "fd00:1::3/64"]
    assert addresses.free(0) == {ip_network("10.1.0.0/24"): 251, ip_network("fd00:1::/64"): 2**64 - 4}


def test_the_same_key_gets_the_same_answer() -> None:
    addresses = ipam("10.1.0.0/24")
    first = addresses.allocate(key(1), (), 0)
    assert addresses.allocate(key(1), (), 5) == first
    assert addresses.allocate(key(1), (first[0].ip,), 5) == first
    with pytest.raises(Refusal, match=r"already holds 10\.1\.0\.2, not 10\.1\.0\.9") as refused:
        addresses.allocate(key(1), (ip_address("10.1.0.9"),), 5)
    assert refused.value.kind is Kind.EXISTS


def test_requested_addresses_are_honoured_and_the_other_family_is_added() -> None:
    addresses = ipam("10.1.0.0/24", "fd00:1::/64")
    asked = (ip_address("10.1.0.77"), ip_address("10.1.0.78"))
    assert texts(addresses.allocate(key(1), asked, 0)) == ["10.1.0.77/24", "10.1.0.78/24", "fd00:1::2/64"]
    assert texts(addresses.allocate(key(2), (ip_address("fd00:1::1:1"),), 0)) == ["fd00:1::1:1/64", "10.1.0.2/24"]


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ("10.2.0.5", Kind.INVALID, "not in this node's subnets (10.1.0.0/24, fd00:1::/64)"),
        ("10.1.0.0", Kind.INVALID, "network or broadcast address"),
        ("10.1.0.1", Kind.INVALID, "the node's own"),
        ("10.1.0.255", Kind.INVALID, "network or broadcast address"),
        ("fd00:1::", Kind.INVALID, "network or broadcast address"),
        ("fd00:1::1", Kind.INVALID, "the node's own"),
        ("10.1.0.2", Kind.EXISTS, "held by pod1/eth0"),
        ("10.1.0.3", Kind.UNAVAILABLE, "rests after pod2/eth0 released it: ask again in 60 s"),
    ],
)
def test_what_cannot_be_requested_changes_nothing(asked: str, kind: Kind, words: str) -> None:
    addresses = ipam("10.1.0.0/24", "fd00:1::/64")
    addresses.allocate(key(1), (), 0)
    addresses.allocate(key(2), (), 0)
    addresses.release(key(2), 0)
    before = addresses.free(0), addresses.held()
    # A good address beside the bad one must not stay held.
    with pytest.raises(Refusal) as refused:
        addresses.allocate(key(3), (ip_address("10.1.0.200"), ip_address(asked)), 0)
    assert refused.value.kind is kind
    assert words in refused.value.message
    assert (addresses.free(0), addresses.held()) == before


def test_one_address_twice_is_refused() -> None:
    with pytest.raises(Refusal, match="one address twice"):
        ipam("10.1.0.0/24").allocate(key(1), (ip_address("10.1.0.9"),) * 2, 0)


def test_a_resting_address_comes_back_to_the_key_that_asks_for_its_own() -> None:
    addresses = ipam("10.1.0.0/24")
    (held,) = addresses.allocate(key(1), (), 0)
    addresses.release(key(1), 1)
    assert addresses.allocate(key(1), (held.ip,), 2) == (held,)
    assert addresses.resting(2) == ()


def test_released_addresses_rest_and_come_back_last() -> None:
    addresses = ipam("10.1.0.0/29", rest_s=60)  # Pods: .2 to .6
    for number in range(3):
        addresses.allocate(key(number), (), 0)
    addresses.release(key(1), 10)
    addresses.release(key(0), 20)
    assert texts(addresses.allocate(key(3), (), 100)) == ["10.1.0.5/29"]
    assert texts(addresses.allocate(key(4), (), 100)) == ["10.1.0.6/29"]
    assert texts(addresses.allocate(key(5), (), 100)) == ["10.1.0.3/29"], "freed first, back first"
    assert texts(addresses.allocate(key(6), (), 100)) == ["10.1.0.2/29"]


def test_exhaustion_says_how_many_are_held_and_when_the_next_is_free() -> None:
    addresses = ipam("10.1.0.0/29", "10.2.0.0/30", "fd00:1::/64")
    for number in range(6):
        addresses.allocate(key(number), (), 0)
    addresses.release(key(0), 30)
    addresses.release(key(1), 40)
    before = addresses.free(45), addresses.held()
    with pytest.raises(Refusal) as refused:
        addresses.allocate(key(9), (), 45)
    assert refused.value.kind is Kind.EXHAUSTED
    assert refused.value.message == (
        "no IPv4 address is free in 10.1.0.0/29, 10.2.0.0/30: 4 held, 2 resting after release "
        "(the next is free in 45 s); detach Pods, or give this node another subnet"
    )
    assert (addresses.free(45), addresses.held()) == before, "the IPv6 address is not held either"
    assert texts(addresses.allocate(key(9), (), 90)) == ["10.1.0.2/29", "fd00:1::8/64"]


def test_subnets_of_a_family_are_used_one_after_the_other() -> None:
    addresses = ipam("10.1.0.0/30", "10.2.0.0/30")
    assert texts(addresses.allocate(key(1), (), 0)) == ["10.1.0.2/30"]
    assert texts(addresses.allocate(key(2), (), 0)) == ["10.2.0.2/30"]


@pytest.mark.parametrize(
    ("subnet", "node", "pods"),
    [
        ("10.1.0.0/31", "10.1.0.0/31", ["10.1.0.1/31"]),
        ("10.1.0.0/30", "10.1.0.1/30", ["10.1.0.2/30"]),
        ("fd00::/127", "fd00::/127", ["fd00::1/127"]),
        ("fd00::/126", "fd00::1/126", ["fd00::2/126", "fd00::3/126"]),
    ],
)
def test_tiny_subnets(subnet: str, node: str, pods: list[str]) -> None:
    assert str(node_address(ip_network(subnet))) == node
    addresses = ipam(subnet)
    assert [str(addresses.allocate(key(number), (), 0)[0]) for number in range(len(pods))] == pods
    with pytest.raises(Refusal, match="0 held" if not pods else f"{len(pods)} held"):
        addresses.allocate(key(99), (), 0)


@pytest.mark.parametrize("subnet", ["10.1.0.1/32", "fd00::1/128"])
def test_a_single_address_is_no_subnet(subnet: str) -> None:
    with pytest.raises(Refusal, match="single address"):
        ipam(subnet)


def test_a_node_without_subnets_says_so() -> None:
    with pytest.raises(Refusal, match="no subnet yet"):
        ipam().allocate(key(1), (), 0)


def test_restore_takes_over_and_reports_strays() -> None:
    addresses = ipam("10.1.0.0/29", rest_s=60)
    stray = ip_interface("10.9.0.2/24")
    held = {key(1): (ip_interface("10.1.0.3/29"),), key(2): (stray,)}
    resting = [Resting(ip_address("10.1.0.5"), key(3), 50.0), Resting(ip_address("10.9.0.7"), key(3), 50.0)]
    assert addresses.restore(held, resting) == (stray,)
    assert addresses.allocate(key(1), (), 60) == held[key(1)]
    assert addresses.allocate(key(2), (), 60) == (stray,)
    assert texts(addresses.allocate(key(4), (), 60)) == ["10.1.0.6/29"], "behind the highest known"
    assert texts(addresses.allocate(key(5), (), 60)) == ["10.1.0.2/29"]
    assert texts(addresses.allocate(key(6), (), 60)) == ["10.1.0.4/29"]
    with pytest.raises(Refusal, match="4 held, 1 resting"):
        addresses.allocate(key(7), (), 60)
    assert texts(addresses.allocate(key(7), (), 110)) == ["10.1.0.5/29"]
    assert addresses.release(key(2), 120) == (stray,)


def test_restore_refuses_an_address_held_twice() -> None:
    held = {key(1): (ip_interface("10.1.0.3/29"),), key(2): (ip_interface("10.1.0.3/29"),)}
    with pytest.raises(Refusal, match="held by both pod1/eth0 and pod2/eth0"):
        ipam("10.1.0.0/29").restore(held, ())


def test_subnets_change_by_restoring_into_a_new_one() -> None:
    old = ipam("10.1.0.0/29")
    old.allocate(key(1), (), 0)
    old.allocate(key(2), (), 0)
    old.release(key(2), 1)
    new = ipam("10.1.0.0/29", "fd00::/64")
    assert new.restore(old.held(), old.resting(2)) == ()
    assert texts(new.allocate(key(1), (), 2)) == ["10.1.0.2/29"]
    assert texts(new.allocate(key(3), (), 2)) == ["10.1.0.4/29", "fd00::2/64"]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["allocate", "request", "release", "restart"]),
        st.integers(0, 9),
        st.integers(0, 17),
        st.integers(0, 40),
    ),
    max_size=120,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(subnets=st.sampled_from([("10.1.0.0/28",), ("10.1.0.0/30", "10.2.0.0/29"), ("fd00::/125",)]), script=OPERATIONS)
def test_against_a_naive_model(subnets: tuple[str, ...], script: list[tuple[str, int, int, int]]) -> None:
    """One dict from address to its holder, or to when and by whom it was released; every answer is checked with it."""
    rest_s = 60
    networks = [ip_network(subnet) for subnet in subnets]
    usable = {
        address
        for network in networks
        for address in network
        if address not in (network.network_address, node_address(network).ip)
        and (network.version == 6 or address != network.broadcast_address)
    }
    addresses = ipam(*subnets, rest_s=rest_s)
    holder: dict[object, AttachmentKey] = {}
    released: dict[object, tuple[int, AttachmentKey]] = {}
    kinds: set[Kind] = set()
    now_s = 0
    for operation, number, offset, pause_s in script:
        now_s += pause_s
        name = key(number)
        resting = {a for a, (at_s, _) in released.items() if now_s - at_s < rest_s}
        mine = {a for a, other in holder.items() if other == name}
        if operation == "release":
            gone = addresses.release(name, now_s)
            assert {interface.ip for interface in gone} == mine
            for address in mine:
                del holder[address]
                released[address] = (now_s, name)
        elif operation == "restart":
            state = addresses.held(), addresses.resting(now_s)
            addresses = ipam(*subnets, rest_s=rest_s)
            addresses.restore(*state)
        else:
            wanted = networks[-1].network_address + offset
            requested = (wanted,) if operation == "request" else ()
            try:
                granted = addresses.allocate(name, requested, now_s)
            except Refusal as refusal:
                if mine:
                    assert operation == "request"
                    assert wanted not in mine
                elif operation == "request":
                    own_rest = wanted in resting and released[wanted][1] == name
                    assert wanted not in usable or wanted in holder or (wanted in resting and not own_rest)
                else:
                    kinds.add(refusal.kind)
                    assert usable == set(holder) | resting
            else:
                got = {interface.ip for interface in granted}
                assert len(got) == 1
                if mine:
                    assert got == mine
                else:
                    (address,) = got
                    assert address in usable
                    assert address not in holder
                    assert address not in resting or (address in requested and released[address][1] == name)
                    assert not requested or got == set(requested)
                    holder[address] = name
                    released.pop(address, None)
        resting = {a for a, (at_s, _) in released.items() if now_s - at_s < rest_s}
        assert sum(addresses.free(now_s).values()) == len(usable - set(holder) - resting)
    assert kinds <= {Kind.EXHAUSTED}


def test_an_almost_full_subnet_is_not_scanned() -> None:
    addresses = ipam("10.0.0.0/16", rest_s=0)
    for number in range(65533):
        addresses.allocate(key(number), (), 0)
    started_s = time.perf_counter()
    for number in range(2000):
        addresses.release(key(number), number)
        addresses.allocate(key(number), (), number)
    # A scan of 65,533 for each would take more than 5 s; this takes 0.02 s.
    assert time.perf_counter() - started_s < 2


def test_a_subnet_forgets_only_what_it_meets_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.ipam._REMEMBERED", 5)
    addresses = ipam("10.1.0.0/27", rest_s=0)  # 29 addresses for Pods
    for lap in range(3):
        seen = set()
        for number in range(29):
            seen.update(addresses.allocate(key(number), (), lap))
            assert sum(addresses.free(lap).values()) == 28 - number
        assert len(seen) == 29
        with pytest.raises(Refusal, match="29 held"):
            addresses.allocate(key(99), (), lap)
        for number in range(29):
            addresses.release(key(number), lap)


def test_withdrawn_addresses_are_free_at_once() -> None:
    addresses = ipam("10.1.0.0/30", "fd00::/64")
    for _ in range(3):
        assert str(addresses.allocate(key(1), (), 0)[0]) == "10.1.0.2/30"
        addresses.withdraw(key(1))
        assert addresses.held() == {}
        assert addresses.resting(0) == ()


def test_a_clock_set_back_does_not_keep_addresses_from_waking() -> None:
    addresses = ipam("10.1.0.0/29", rest_s=60)
    for number in range(5):
        addresses.allocate(key(number), (), 10_000)
    addresses.release(key(0), 10_000)
    addresses.release(key(1), 10_010)
    assert addresses.free(100) == {ip_network("10.1.0.0/29"): 0}
    assert addresses.free(159) == {ip_network("10.1.0.0/29"): 0}
    assert addresses.free(160) == {ip_network("10.1.0.0/29"): 2}
