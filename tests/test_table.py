"""Longest-prefix match against a scan of every prefix: slow, and too simple to be wrong."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.model import Prefix
from router.table import ForwardingTable

BITS = {4: 32, 6: 128}
Entries = Sequence[tuple[Prefix, str]]


def scan(entries: Entries, packed: bytes) -> str | None:
    """Look at every prefix and keep the longest that holds the address."""
    best: tuple[int, str] | None = None
    address = int.from_bytes(packed, "big")
    for prefix, value in entries:
        if len(packed) * 8 != BITS[prefix.version]:
            continue
        shift = BITS[prefix.version] - prefix.prefixlen
        if address >> shift == int(prefix.network_address) >> shift and (best is None or prefix.prefixlen > best[0]):
            best = prefix.prefixlen, value
    return best and best[1]


def prefix_of(version: int, address: int, length: int) -> Prefix:
    shift = BITS[version] - length
    network = address >> shift << shift
    return IPv4Network((network, length)) if version == 4 else IPv6Network((network, length))


def probes(entries: Entries, random_: random.Random) -> Iterable[bytes]:
    """Yield the edges of every prefix, what lies just beside them, and random addresses."""
    for prefix, _ in entries:
        size = BITS[prefix.version] // 8
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        for address in (first - 1, first, first + 1, last - 1, last, last + 1, random_.randint(first, last)):
            if 0 <= address < 1 << size * 8:
                yield address.to_bytes(size, "big")
    for size in (4, 16):
        for _ in range(20):
            yield random_.randbytes(size)
        yield bytes(size)
        yield b"\xff" * size


def check(entries: Entries) -> None:
    table = ForwardingTable(entries)
    for packed in probes(entries, random.Random(len(entries))):
        expected = scan(entries, packed)
        assert table.lookup(packed) == expected, packed.hex()
        assert table.values[table.index(packed)] == expected
        assert (table.index(packed) == 0) == (expected is None)
    assert list(table.items()) == list(entries)
    assert len(table) == len(entries)


def named(prefixes: Iterable[Prefix]) -> list[tuple[Prefix, str]]:
    return [(prefix, f"{index}:{prefix}") for index, prefix in enumerate(dict.fromkeys(prefixes))]


def prefixes_of(version: int) -> st.SearchStrategy[Prefix]:
    """Make prefixes that overlap often: few high bits differ, every length may come."""
    bits = BITS[version]
    near = st.builds(lambda high, low: high << bits - 4 | low << bits // 2, st.integers(0, 15), st.integers(0, 7))
    address = near | st.integers(0, (1 << bits) - 1)
    return st.builds(lambda where, length: prefix_of(version, where, length), address, st.integers(0, bits))


@settings(deadline=None, max_examples=150)
@given(st.lists(prefixes_of(4) | prefixes_of(6), max_size=24))
def test_any_table_agrees_with_a_scan(prefixes: list[Prefix]) -> None:
    check(named(prefixes))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["dense", "sparse", "mixed", "nested"])
def test_seeded_tables_agree_with_a_scan(version: int, seed: int, kind: str) -> None:
    random_ = random.Random(f"{version}{seed}{kind}")
    bits = BITS[version]
    base = random_.getrandbits(bits)
    found: list[Prefix] = []
    for _ in range(120):
        if kind == "dense":  # neighbours: a flat level
            length = bits // 2
            found.append(prefix_of(version, (base >> 1) + (random_.randrange(200) << bits - length), length))
        elif kind == "sparse":  # far apart: a dict level
            found.append(prefix_of(version, random_.getrandbits(bits), bits - 4))
        elif kind == "mixed":
            found.append(prefix_of(version, random_.getrandbits(bits), random_.choice((0, 8, 12, 24, bits))))
        else:  # one inside the other
            found.append(prefix_of(version, base ^ random_.getrandbits(6), random_.randint(0, bits)))
    check(named(found))


def test_default_routes_take_the_rest_of_their_family() -> None:
    table = ForwardingTable([(ip_network("0.0.0.0/0"), 4), (ip_network("::/0"), 6), (ip_network("10.0.0.0/8"), 10)])
    assert [table.lookup(ip_address(text).packed) for text in ("0.0.0.0", "255.255.255.255", "10.1.2.3", "::", "ff::1")] == [
        4, 4, 10, 6, 6,
    ]  # fmt: skip


def test_families_never_answer_for_each_other() -> None:
    table = ForwardingTable([(ip_network("::/0"), 6)])
    assert table.lookup(bytes(4)) is None
    assert ForwardingTable([(ip_network("0.0.0.0/0"), 4)]).lookup(bytes(16)) is None


def test_an_empty_table_knows_nothing() -> None:
    table: ForwardingTable[str] = ForwardingTable()
    assert table.lookup(bytes(4)) is None
    assert table.lookup(bytes(16)) is None
    assert list(table.items()) == []
    assert len(table) == 0


@pytest.mark.parametrize("text", ["10.42.0.0/16", "fd42::/64", "0.0.0.0/0", "::1/128"])
def test_a_prefix_twice_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"{ip_network(text)} is in the table twice"):
        ForwardingTable([(ip_network(text), 1), (ip_network("192.0.2.0/24"), 2), (ip_network(text), 1)])


def test_the_same_bits_at_other_lengths_are_other_prefixes() -> None:
    lengths = [(ip_network(f"10.0.0.0/{length}"), length) for length in range(7, 33)]
    table = ForwardingTable(lengths)
    assert table.lookup(ip_address("10.0.0.0").packed) == 32
    assert table.lookup(ip_address("10.128.0.0").packed) == 8
    assert table.lookup(ip_address("11.0.0.0").packed) == 7


def test_what_it_was_built_from_may_change_afterwards() -> None:
    entries = [(ip_network("10.0.0.0/8"), "a")]
    table = ForwardingTable(entries)
    entries.append((ip_network("11.0.0.0/8"), "b"))
    assert table.lookup(ip_address("11.0.0.1").packed) is None
    assert len(table) == 1
    with pytest.raises(AttributeError):
        table.anything = 1  # type: ignore[attr-defined]


def test_every_subnet_of_a_large_cluster_is_found() -> None:
    wide = ip_network("10.0.0.0/8")
    subnets = list(wide.subnets(new_prefix=24))[:20_000]
    table = ForwardingTable([(wide, -1), *((subnet, index) for index, subnet in enumerate(subnets))])
    for index in range(0, len(subnets), 37):
        assert table.lookup(subnets[index][99].packed) == index
    assert table.lookup(ip_address("10.255.0.1").packed) == -1


def tell_apart(table: ForwardingTable[str], entries: Entries, seed: int) -> None:
    """Compare a table that was changed with one built afresh, and both with a scan."""
    fresh = ForwardingTable(entries)
    for packed in probes(entries, random.Random(seed)):
        assert table.lookup(packed) == fresh.lookup(packed) == scan(entries, packed), packed.hex()
        assert table.values[table.index(packed)] == scan(entries, packed)
    assert dict(table.items()) == dict(entries)
    assert len(list(table.items())) == len(table) == len(entries)
    places = [(prefix.version, BITS[prefix.version] - prefix.prefixlen) for prefix, _ in entries]
    levels = {(version, level[0]): level[3] for version, held in ((4, table._v4), (6, table._v6)) for level in held}
    assert levels.keys() == set(places), "no level outlives its last prefix"
    for where, slots in levels.items():
        count = places.count(where)
        assert len(slots) <= (16 * count if isinstance(slots, array) else 2 * count + 100), "as small as promised"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(prefixes_of(4) | prefixes_of(6), max_size=8), min_size=2, max_size=6), st.randoms())
def test_any_changes_agree_with_a_table_built_afresh(steps: list[list[Prefix]], random_: random.Random) -> None:
    """Each step brings new prefixes, gives some a new value and takes some out; what went before stays as it was."""
    held: dict[Prefix, str] = {}
    table: ForwardingTable[str] = ForwardingTable()
    history: list[tuple[ForwardingTable[str], dict[Prefix, str]]] = []
    for number, step in enumerate(steps):
        leaving = [prefix for prefix in held if random_.random() < 0.3]
        entering = dict.fromkeys((*step, *(prefix for prefix in leaving if random_.random() < 0.5)), f"step {number}")
        leaving += [prefix for prefix in entering if prefix in held and prefix not in leaving]
        table = table.changed(leaving, entering.items())
        held = {prefix: value for prefix, value in held.items() if prefix not in leaving} | entering
        history.append((table, held))
    for number, (then, what) in enumerate(history):
        tell_apart(then, list(what.items()), number)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("version", "keys"), [(4, 300), (4, 3000), (6, 1500), (6, 1 << 50)])
def test_levels_change_their_form_as_they_fill_and_empty(version: int, keys: int, seed: int) -> None:
    """From nothing to 150 prefixes of one length and back, one by one: flat, scattered, and in between."""
    random_ = random.Random(f"{version}{keys}{seed}")
    bits = BITS[version]
    length = bits // 2 + 8
    base = random_.getrandbits(bits - 1)
    table: ForwardingTable[str] = ForwardingTable()
    held: dict[Prefix, str] = {}
    forms = set()
    for turn in range(500):
        growing = turn < 300
        if held and random_.random() < (0.25 if growing else 0.9):
            prefix = random_.choice(list(held))
            del held[prefix]
            table = table.changed([prefix], [])
        else:
            prefix = prefix_of(version, base + (random_.randrange(keys) << bits - length), length)
            table = table.changed([prefix] if prefix in held else [], [(prefix, f"turn {turn}")])
            held[prefix] = f"turn {turn}"
        forms |= {type(level[3]).__name__ for level in (*table._v4, *table._v6)}
        if turn % 125 == 124:
            tell_apart(table, list(held.items()), turn)
    table = table.changed(list(held), [])
    assert len(table) == 0
    assert list(table.items()) == []
    assert table.lookup(bytes(bits // 8)) is None
    assert forms == {"array", "_Sparse"}


def test_a_change_leaves_the_old_table_alone_and_shares_with_it() -> None:
    prefixes = list(ip_network("10.0.0.0/16").subnets(new_prefix=24))
    old = ForwardingTable([(prefix, index) for index, prefix in enumerate(prefixes)])
    new = old.changed([prefixes[3], prefixes[5]], [(prefixes[3], -1), (ip_network("fd00::/64"), 6)])
    assert [old.lookup(prefixes[n][1].packed) for n in (3, 5)] == [3, 5]
    assert [new.lookup(prefixes[n][1].packed) for n in (3, 5)] == [-1, None]
    assert old.lookup(ip_address("fd00::1").packed) is None
    assert new.lookup(ip_address("fd00::1").packed) == 6
    flipped = new.changed([prefixes[0]], [(prefixes[0], 7)])
    assert flipped._v4 == new._v4
    assert flipped._v4[0] is new._v4[0]


@pytest.mark.parametrize("text", ["10.42.0.0/16", "fd42::/64"])
def test_a_change_that_cannot_be_is_refused_by_name(text: str) -> None:
    prefix = ip_network(text)
    table = ForwardingTable([(prefix, 1)])
    with pytest.raises(ValueError, match=f"{prefix} is in the table twice"):
        table.changed([], [(prefix, 2)])
    with pytest.raises(ValueError, match=f"{prefix} is in the table twice"):
        table.changed([prefix], [(prefix, 2), (prefix, 3)])
    with pytest.raises(ValueError, match=r"192\.0\.2\.0/24 is in the table twice"):
        table.changed([], [(ip_network("192.0.2.0/24"), 2), (ip_network("192.0.2.0/24"), 3)])
    with pytest.raises(KeyError, match=str(prefix)):
        table.changed([prefix, prefix], [])
    with pytest.raises(KeyError, match=r"192\.0\.2\.0/24"):
        table.changed([ip_network("192.0.2.0/24")], [])


def test_a_table_that_shrank_is_tidied_up() -> None:
    prefixes = list(ip_network("10.0.0.0/16").subnets(new_prefix=26))
    table = ForwardingTable([(prefix, str(prefix)) for prefix in prefixes])
    for prefix in prefixes[10:]:
        table = table.changed([prefix], [])
    assert len(table.values) < 150
    assert [value for _, value in sorted(table.items())] == [str(prefix) for prefix in prefixes[:10]]


def test_a_scattered_level_does_not_grow_with_what_was_in_it() -> None:
    ends = [ip_network("fd00::/64"), ip_network("fdff::/64")]
    table = ForwardingTable([(prefix, str(prefix)) for prefix in ends])
    last: list[Prefix] = []
    for index in range(1, 400):
        new = [prefix_of(6, int(ends[0].network_address) + (index << 80), 64)]
        table, last = table.changed(last, [(prefix, str(prefix)) for prefix in new]), new
    tell_apart(table, [(prefix, str(prefix)) for prefix in (*ends, *last)], 1)
