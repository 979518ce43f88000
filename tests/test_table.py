"""Longest-prefix match against a scan of every prefix: slow, and too simple to be wrong."""

from __future__ import annotations

import random
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
