"""From the subnet table to what an engine looks up."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.engine.interface import Snapshot
from router.model import Endpoint, NextHop, Node, Prefix, SubnetTable, Zone
from router.routes import NEVER_CARRIED, Found, Routes, snapshot

NETWORKS = (ip_network("10.32.0.0/12"), ip_network("fd00:32::/32"))
A = Node("a", Endpoint(ip_address("192.0.2.1")), (ip_network("10.32.1.0/24"), ip_network("fd00:32:0:1::/64")))
B = Node("b", Endpoint(ip_address("192.0.2.2")), (ip_network("10.32.2.0/24"), ip_network("fd00:32:0:2::/64")), False)
C = Node("c", Endpoint(ip_address("192.0.2.3")), (ip_network("10.33.0.0/16"),))
HOP_B = NextHop("b", B.endpoint, offload=False)
HOP_C = NextHop("c", C.endpoint)


@pytest.mark.parametrize(
    ("address", "value"),
    [
        ("10.32.1.7", Zone.OWN_SUBNET),
        ("fd00:32:0:1::7", Zone.OWN_SUBNET),
        ("10.32.2.7", HOP_B),
        ("fd00:32:0:2::7", HOP_B),
        ("10.33.255.255", HOP_C),
        ("10.32.3.1", Zone.CLUSTER),
        ("fd00:32:ffff::1", Zone.CLUSTER),
        ("192.0.2.2", None),
        ("2001:db8::1", None),
        ("0.1.2.3", Zone.NEVER),
        ("127.0.0.1", Zone.NEVER),
        ("169.254.169.254", Zone.NEVER),
        ("224.0.0.251", Zone.NEVER),
        ("239.255.255.255", Zone.NEVER),
        ("240.0.0.1", None),
        ("255.255.255.255", Zone.NEVER),
        ("::", Zone.NEVER),
        ("::1", Zone.NEVER),
        ("::2", None),
        ("fe80::1", Zone.NEVER),
        ("febf::1", Zone.NEVER),
        ("fec0::1", None),
        ("ff02::fb", Zone.NEVER),
    ],
)
def test_where_addresses_lead(address: str, value: object) -> None:
    view = snapshot(SubnetTable(4, (B, A, C)), "a", NETWORKS, True)
    assert view.table.lookup(ip_address(address).packed) == value


def test_the_rest_of_the_snapshot() -> None:
    view = snapshot(SubnetTable(4, (B, A, C)), "a", NETWORKS, False)
    assert (view.version, view.peers, view.egress) == (4, (HOP_B, HOP_C), False)
    assert snapshot(SubnetTable(0), "a", NETWORKS, True).peers == ()


def test_a_node_that_is_not_in_the_table_sees_everybody_else() -> None:
    view = snapshot(SubnetTable(4, (B, C)), "a", NETWORKS, True)
    assert view.peers == (HOP_B, HOP_C)
    assert view.table.lookup(ip_address("10.32.1.7").packed) is Zone.CLUSTER


@pytest.mark.parametrize(("self_name", "value"), [("a", Zone.OWN_SUBNET), ("z", NextHop("a", A.endpoint))])
def test_a_subnet_may_be_the_whole_range(self_name: str, value: object) -> None:
    view = snapshot(SubnetTable(1, (A,)), self_name, A.subnets, True)
    assert view.table.lookup(ip_address("10.32.1.7").packed) == value
    assert view.table.lookup(ip_address("fd00:32:0:1::7").packed) == value
    assert len(view.table) == len(A.subnets) + len(NEVER_CARRIED)


def test_what_is_known_of_nodes_comes_along() -> None:
    own, other = replace(A, epoch=3), replace(B, epoch=7)
    view = snapshot(SubnetTable(4, (other, own, C)), "a", NETWORKS, True, {"b": Found(False, 1400), "a": Found(False)})
    assert view.epoch == 3
    assert view.node_addresses == (ip_address("10.32.1.1"), ip_address("fd00:32:0:1::1"))
    hop = replace(HOP_B, epoch=7, up=False, mtu_bytes=1400)
    assert view.peers == (hop, HOP_C)
    assert view.table.lookup(ip_address("10.32.2.7").packed) == hop
    assert (snapshot(SubnetTable(4, (B,)), "a", NETWORKS, True).epoch, HOP_C.up, HOP_C.mtu_bytes) == (0, True, 0)


def known(view: Snapshot) -> tuple[object, ...]:
    return view.version, dict(view.table.items()), view.peers, view.egress, view.node_addresses, view.epoch


# Of eight nodes, "n0" being the own one, some rows of a small pool; a subnet may be a whole range of the cluster.
_POOL = [
    *(ip_network((int(ip_address("10.32.0.0")) + (index << 8), 24)) for index in range(8)),
    *(ip_network(((0xFD000032 << 96) + (index << 64), 64)) for index in range(8)),
    *NETWORKS,
]
_ROW = st.tuples(
    st.integers(0, 7),
    st.integers(1, 3),
    st.lists(st.sampled_from(_POOL), min_size=1, max_size=3, unique=True),
    st.integers(0, 2),
)
_FOUND = st.dictionaries(
    st.sampled_from([f"n{index}" for index in range(9)]), st.tuples(st.booleans(), st.integers(0, 1) | st.just(1400))
)


def rows_of(drawn: list[tuple[int, int, list[Prefix], int]], known_as: dict[Node, Node]) -> tuple[Node, ...]:
    """Return rows whose subnets are their own, the same object for the same row most of the time."""
    taken: set[Prefix] = set()
    rows = []
    for number, host, subnets, epoch in drawn:
        own = tuple(subnet for subnet in subnets if subnet not in taken)
        taken |= set(own)
        row = Node(f"n{number}", Endpoint(ip_address(f"192.0.2.{host}"), 6000 + number), own, epoch=epoch)
        rows.append(known_as.setdefault(row, row) if epoch else row)
    return tuple(rows)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_changes_agree_with_a_snapshot_built_afresh(data: st.DataObject) -> None:
    routes = Routes("n0", NETWORKS, True)
    known_as: dict[Node, Node] = {}
    held: list[tuple[int, int, list[Prefix], int]] = []
    found: dict[str, tuple[bool, int]] = {}
    hops: dict[str, NextHop] = {}
    for version in range(data.draw(st.integers(2, 6))):
        match data.draw(st.sampled_from(("few", "few", "all", "none"))):
            case "all":
                held = data.draw(st.lists(_ROW, max_size=8, unique_by=lambda row: row[0]))
            case "few":
                row = data.draw(_ROW)
                places = [at for at, other in enumerate(held) if other[0] == row[0]]
                held = [other for other in held if other[0] != row[0]]
                if not places or data.draw(st.booleans()):
                    held.insert(data.draw(st.sampled_from((*places, 0, len(held)))), row)
        if data.draw(st.booleans()):
            found = data.draw(_FOUND)
        table = SubnetTable(version, rows_of(held, known_as))
        made = routes.snapshot(table, found)
        assert known(made) == known(snapshot(table, "n0", NETWORKS, True, found))
        now = {hop.node: hop for hop in made.peers}
        assert all(value is now[value.node] for _, value in made.table.items() if isinstance(value, NextHop))
        assert all(now[name] is hop for name, hop in hops.items() if now.get(name) == hop), "known by identity"
        hops = now


def test_one_change_in_a_large_table_touches_nothing_else() -> None:
    """Seen by identity, which costs what was not touched nothing."""
    first = int(ip_address("10.32.0.0"))
    nodes = tuple(
        Node(f"n{i}", Endpoint(ip_address(f"192.0.2.{i}")), (ip_network((first + (i << 8), 24)),)) for i in range(200)
    )
    routes = Routes("n3", NETWORKS, True)
    old = routes.snapshot(SubnetTable(1, nodes), {})
    nodes = (*nodes[:50], replace(nodes[50], epoch=2), *nodes[51:])
    moved = routes.snapshot(SubnetTable(2, nodes), {})
    down = routes.snapshot(SubnetTable(2, nodes), {"n60": (False, 0), "n61": (True, 0)})
    for one, two, at in ((old, moved, 50), (moved, down, 60)):
        changed = [(a.node, b.node) for a, b in zip(one.peers, two.peers, strict=True) if a is not b]
        assert changed == [(f"n{at}", f"n{at}")]
        assert one.table._v4[0] is two.table._v4[0]
        assert two.table.lookup(ip_address(f"10.32.{at}.9").packed) is two.peers[at - 1]


def test_a_failure_is_forgotten_with_the_next() -> None:
    """Two rows of one subnet, which no checked table has."""
    routes = Routes("a", NETWORKS, True)
    routes.snapshot(SubnetTable(1, (A, B, C, replace(C, name="d", subnets=(ip_network("10.34.0.0/24"),)))), {})
    with pytest.raises(ValueError, match="twice"):
        routes.snapshot(SubnetTable(2, (A, B, C, replace(C, name="d"))), {})
    good = SubnetTable(3, (A, B))
    assert known(routes.snapshot(good, {})) == known(snapshot(good, "a", NETWORKS, True))


@pytest.mark.parametrize("seed", range(3))
def test_a_long_walk_in_single_steps(seed: int) -> None:
    """Rows enter, leave, change and move, the own one most of all; each snapshot is made of the last."""
    random_ = random.Random(seed)
    first = int(ip_address("10.32.0.0"))
    pool = [
        Node(f"n{i}", Endpoint(ip_address(f"192.0.2.{i}")), (ip_network((first + (i << 8), 24)),)) for i in range(16)
    ]
    routes = Routes("n0", NETWORKS, True)
    held = list(pool)
    for version in range(150):
        node = pool[0] if random_.random() < 0.3 else random_.choice(pool)
        places = [at for at, other in enumerate(held) if other.name == node.name]
        if places and random_.random() < 0.5:
            held[places[0]] = replace(node, epoch=version)
        else:
            held = [other for other in held if other.name != node.name]
            if not places or random_.random() < 0.3:
                held.insert(random_.randint(0, len(held)), node)
        table = SubnetTable(version, tuple(held))
        assert known(routes.snapshot(table, {})) == known(snapshot(table, "n0", NETWORKS, True))
