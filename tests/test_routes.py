"""From the subnet table to what an engine looks up."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from router.model import Endpoint, NextHop, Node, SubnetTable, Zone
from router.routes import NEVER_CARRIED, snapshot

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
