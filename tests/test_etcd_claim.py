"""Which subnets a node tries for: pure choices, held against a plain model."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.subnets.etcd.claim import (
    DIRECT_TRIES,
    Slots,
    direct_tries,
    first_slot,
    given_up,
    may_take,
    never_owned,
)
from router.subnets.etcd.layout import Config, Owner, subnet_word

WIDE = Config((ip_network("10.32.0.0/12"), ip_network("fd00:32::/48")), 24, 64, 1)
SPLIT = Config((ip_network("10.1.0.0/22"), ip_network("10.9.0.0/23"), ip_network("fd00:32::/56")), 24, 64, 1)
HUGE = Config((ip_network("fd00::/8"),), 24, 120, 1)
NAMES = st.text("abcdefgh0123456789-", min_size=1, max_size=12)


def words(*subnets: str) -> list[str]:
    return [subnet.replace("/", "-") for subnet in subnets]


def test_a_slot_is_a_subnet_of_each_version_with_the_same_number() -> None:
    slots = Slots(WIDE)
    assert slots.count == 4096
    assert list(map(str, slots[0])) == ["10.32.0.0/24", "fd00:32::/64"]
    assert list(map(str, slots[4095])) == ["10.47.255.0/24", "fd00:32:0:fff::/64"]


def test_a_range_of_several_prefixes_is_cut_one_after_the_other() -> None:
    slots = Slots(SPLIT)
    assert slots.count == 6
    assert [str(slots[slot][0]) for slot in range(6)] == [
        *("10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24", "10.9.0.0/24", "10.9.1.0/24"),
    ]
    with pytest.raises(IndexError):
        slots[6]


@pytest.mark.parametrize("config", [WIDE, SPLIT, HUGE])
@given(data=st.data())
def test_slot_and_subnets_are_inverse(config: Config, data: st.DataObject) -> None:
    slots = Slots(config)
    slot = data.draw(st.integers(0, slots.count - 1))
    subnets = slots[slot]
    assert slots.fits(subnets)
    assert {slots.slot_of(subnet) for subnet in subnets} == {slot}
    assert all(
        any(subnet.subnet_of(network) for network in config.networks if network.version == subnet.version)
        for subnet in subnets
    )  # type: ignore[arg-type]


def test_every_slot_is_there_once() -> None:
    slots = Slots(SPLIT)
    assert len({subnets[0] for subnets in map(slots.__getitem__, range(slots.count))}) == slots.count


@pytest.mark.parametrize(
    "subnets",
    [
        ("10.32.1.0/24",),
        ("fd00:32:0:1::/64", "10.32.1.0/24"),
        ("10.32.1.0/24", "10.32.2.0/24"),
        ("10.32.1.0/25", "fd00:32:0:1::/64"),
        ("10.48.0.0/24", "fd00:32:0:1::/64"),
        ("10.31.255.0/24", "fd00:32:0:1::/64"),
        ("10.32.1.0/24", "fd00:33::/64"),
        (),
    ],
)
def test_what_does_not_fit(subnets: tuple[str, ...]) -> None:
    assert not Slots(WIDE).fits(tuple(map(ip_network, subnets)))


def test_nodes_begin_far_from_each_other() -> None:
    slots = Slots(WIDE)
    first = [first_slot(slots, f"node-{number}") for number in range(1000)]
    assert len(set(first)) > 850  # 1000 balls in 4096 bins fill 887
    assert first[7] == first_slot(slots, "node-7")


@given(NAMES)
def test_direct_tries_are_few_and_distinct(name: str) -> None:
    tries = list(direct_tries(Slots(SPLIT), name))
    assert 1 <= len(tries) <= DIRECT_TRIES
    assert len(set(tries)) == len(tries)
    assert all(map(Slots(SPLIT).fits, tries))


@given(name=NAMES, leased=st.sets(st.integers(0, 5)), owned=st.sets(st.integers(0, 5)), data=st.data())
def test_never_owned_is_all_that_nobody_has_or_had(
    name: str, leased: set[int], owned: set[int], data: st.DataObject
) -> None:
    slots = Slots(SPLIT)
    # Either subnet of a slot is enough to take the whole.
    taken = [subnet_word(slots[slot][data.draw(st.integers(0, 1))]) for slot in leased | owned]
    found = list(never_owned(slots, name, taken))
    assert set(found) == {slots[slot] for slot in range(6) if slot not in leased | owned}
    assert len(set(found)) == len(found)


@given(st.sets(st.integers(0, 200), max_size=60))
def test_never_owned_is_found_in_a_range_that_cannot_be_counted_through(taken: set[int]) -> None:
    slots = Slots(HUGE)
    assert slots.count == 2**112
    start = first_slot(slots, "n")
    used = [subnet_word(slots[(start + offset) % slots.count][0]) for offset in taken]
    found = list(islice(never_owned(slots, "n", used), 3))
    assert len(found) == 3
    assert not {subnet_word(subnet) for subnets in found for subnet in subnets} & set(used)


@given(
    name=st.sampled_from("abc"),
    leased=st.sets(st.integers(0, 5)),
    owners=st.dictionaries(
        st.integers(0, 5),
        st.tuples(
            st.integers(1, 99),
            st.one_of(st.none(), st.builds(Owner, st.sampled_from("abc"), st.just(1), st.booleans())),
        ),
    ),
)
def test_given_up_is_what_may_be_taken_longest_ago_first(
    name: str, leased: set[int], owners: dict[int, tuple[int, Owner | None]]
) -> None:
    slots = Slots(SPLIT)
    found = list(
        given_up(
            slots,
            name,
            [subnet_word(slots[slot][0]) for slot in leased],
            {subnet_word(slots[slot][1]): owner for slot, owner in owners.items()},
        )
    )
    revisions = [owners[slots.slot_of(subnets[0])][0] for subnets in found]  # type: ignore[index]
    assert revisions == sorted(revisions)
    assert {slots.slot_of(subnets[0]) for subnets in found} == {
        slot for slot, (_, owner) in owners.items() if slot not in leased and may_take(name, owner)
    }


def test_one_reserved_subnet_keeps_the_other_of_its_slot() -> None:
    slots = Slots(SPLIT)
    four, six = map(subnet_word, slots[2])
    owners = {four: (5, Owner("a", 1, reserved=False)), six: (9, Owner("b", 1, reserved=True))}
    assert list(given_up(slots, "c", [], owners)) == []
    assert list(given_up(slots, "b", [], owners)) == [slots[2]]


def test_words_that_are_no_subnets_of_ours_are_let_be() -> None:
    slots = Slots(SPLIT)
    nonsense = [
        "",
        "-",
        "x",
        "10.1.0.0",
        "10.1.0.1-24",
        "10.1.0.0-33",
        "10.1.0.0-255.255.255.0",
        "10.1.0.0-25",
        "172.16.0.0-24",
    ]
    assert len(list(never_owned(slots, "a", nonsense))) == 6
    assert len(list(never_owned(slots, "a", [*nonsense, *words("10.1.0.0/24")]))) == 5


def test_who_may_take() -> None:
    assert may_take("a", Owner("b", 1, reserved=False))
    assert not may_take("a", Owner("b", 1, reserved=True))
    assert may_take("b", Owner("b", 1, reserved=True))
    assert not may_take("a", None)
