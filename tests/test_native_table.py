"""The native engine's table against the Python one, and both against a scan of every prefix."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from router.engine.choose import available
from router.model import Prefix
from router.table import ForwardingTable
from tests.test_table import BITS, named, prefix_of, probes, scan

pytestmark = pytest.mark.skipif("native" not in available(), reason="the native engine is not built")

KINDS = ("dense", "sparse", "mixed", "nested")
LARGE = 100_000


@pytest.fixture
def lookup_class() -> type:
    from router.engine.native._core import Lookup

    return Lookup


def random_prefixes(random_: random.Random, version: int, kind: str, count: int) -> Iterator[Prefix]:
    """Yield prefixes that lie close together, far apart, at a few lengths, or one inside the other."""
    bits = BITS[version]
    base = random_.getrandbits(bits)
    for _ in range(count):
        if kind == "dense":
            length = bits // 2
            yield prefix_of(version, (base >> 1) + (random_.randrange(2 * count) << bits - length), length)
        elif kind == "sparse":
            yield prefix_of(version, random_.getrandbits(bits), bits - 4)
        elif kind == "mixed":
            yield prefix_of(version, random_.getrandbits(bits), random_.choice((0, 1, 8, 12, 24, bits - 1, bits)))
        else:
            yield prefix_of(version, base ^ random_.getrandbits(8), random_.randint(0, bits))


def entries_of(prefixes: list[Prefix]) -> list[tuple[bytes, int, int]]:
    """Number prefixes from 1 on, as `replace_routes` hands them over."""
    return [(each.network_address.packed, each.prefixlen, number) for number, each in enumerate(prefixes, 1)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_three_agree(lookup_class: type, kind: str, seed: int) -> None:
    random_ = random.Random(f"{kind}{seed}")
    prefixes = list(dict.fromkeys(each for version in BITS for each in random_prefixes(random_, version, kind, 60)))
    random_.shuffle(prefixes)
    entries = named(prefixes)
    native, table = lookup_class(entries_of(prefixes)), ForwardingTable(entries)
    for packed in probes(entries, random_):
        found = table.index(packed)
        assert native.index(packed) == found, packed.hex()
        assert table.values[found] == scan(entries, packed)


def test_a_hundred_thousand_subnets(lookup_class: type) -> None:
    random_ = random.Random(LARGE)
    made = [each for kind in KINDS for version in BITS for each in random_prefixes(random_, version, kind, LARGE // 8)]
    while len(found := list(dict.fromkeys(made))) < LARGE:  # nested and mixed ones come twice
        made += random_prefixes(random_, random_.choice((4, 6)), "sparse", LARGE - len(found))
    native, table = lookup_class(entries_of(found)), ForwardingTable(named(found))
    assert len(table) == LARGE
    for each in random_.sample(found, 5000):
        first, last = int(each.network_address), int(each.broadcast_address)
        for address in {first, last, random_.randint(first, last), max(0, first - 1)}:
            packed = address.to_bytes(BITS[each.version] // 8, "big")
            assert native.index(packed) == table.index(packed), packed.hex()


def test_an_empty_table_knows_nothing(lookup_class: type) -> None:
    native = lookup_class([])
    assert native.index(bytes(4)) == native.index(bytes(16)) == 0


def test_families_never_answer_for_each_other(lookup_class: type) -> None:
    assert lookup_class([(bytes(16), 0, 1)]).index(bytes(4)) == 0
    assert lookup_class([(bytes(4), 0, 1)]).index(bytes(16)) == 0


@pytest.mark.parametrize(
    "entry", [(bytes(4), 33, 1), (bytes(16), 129, 1), (bytes(5), 8, 1), (b"", 0, 1), (bytes(4), 8, 0)]
)
def test_what_is_no_entry_is_refused(lookup_class: type, entry: tuple[bytes, int, int]) -> None:
    with pytest.raises(ValueError, match="address|prefix"):
        lookup_class([entry])
