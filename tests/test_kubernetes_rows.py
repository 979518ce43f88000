"""Which row of the subnet table a Node object makes, and why one is left out."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import Endpoint, Node
from router.subnets.kubernetes.rows import Roster, name_of, row_of
from tests.kube_rig import node

NETWORKS = (ip_network("10.42.0.0/16"), ip_network("fd42::/48"))
SELF = Endpoint(ip_address("192.0.2.1"), 7000)
SELF6 = Endpoint(ip_address("2001:db8::1"))
BOTH = ["10.42.1.0/24", "fd42:0:0:1::/64"]


def test_a_row_is_name_pod_ranges_and_internal_address() -> None:
    item = node("alpha", BOTH, ["192.0.2.9", "2001:db8::9"])
    subnets = tuple(map(ip_network, BOTH))
    assert row_of(item, NETWORKS, SELF) == Node("alpha", Endpoint(ip_address("192.0.2.9"), 7000), subnets)
    assert row_of(item, NETWORKS, SELF6) == Node("alpha", Endpoint(ip_address("2001:db8::9")), subnets)


def test_an_old_node_has_one_pod_range_only() -> None:
    item = node("alpha", ["10.42.1.0/24"], ["192.0.2.9"])
    del item["spec"]["podCIDRs"]
    row = row_of(item, NETWORKS, SELF)
    assert isinstance(row, Node)
    assert row.subnets == (ip_network("10.42.1.0/24"),)


def test_ranges_of_an_ip_version_that_is_not_carried_are_let_be() -> None:
    row = row_of(node("alpha", BOTH, ["192.0.2.9"]), NETWORKS[:1], SELF)
    assert isinstance(row, Node)
    assert row.subnets == (ip_network("10.42.1.0/24"),)


@pytest.mark.parametrize(
    ("annotations", "endpoint", "offload"),
    [
        ({"podwire.dev/endpoint": "198.51.100.7"}, Endpoint(ip_address("198.51.100.7"), 7000), True),
        ({"podwire.dev/endpoint": "198.51.100.7:6082"}, Endpoint(ip_address("198.51.100.7"), 6082), True),
        ({"podwire.dev/offload": "false"}, Endpoint(ip_address("192.0.2.9"), 7000), False),
        ({"podwire.dev/offload": "true"}, Endpoint(ip_address("192.0.2.9"), 7000), True),
    ],
)
def test_annotations_override(annotations: dict[str, str], endpoint: Endpoint, offload: bool) -> None:
    row = row_of(node("alpha", BOTH, ["192.0.2.9"], annotations), NETWORKS, SELF)
    assert isinstance(row, Node)
    assert (row.endpoint, row.offload) == (endpoint, offload)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (node("alpha", None, ["192.0.2.9"]), "it has no podCIDR of IPv4 or IPv6"),
        (node("alpha", ["10.42.1.0/24"]), "it has no InternalIP of IPv4"),
        (node("alpha", BOTH, ["2001:db8::9"]), "it has no InternalIP of IPv4"),
        (
            node("alpha", ["10.43.1.0/24", BOTH[1]], ["192.0.2.9"]),
            "its podCIDR 10.43.1.0/24 is outside the cluster's networks (10.42.0.0/16, fd42::/48)",
        ),
        (node("alpha", ["10.0.0.0/8"], ["192.0.2.9"]), "its podCIDR 10.0.0.0/8 is outside the cluster's networks"),
        (node("alpha", ["10.42.1.1/24"], ["192.0.2.9"]), "its podCIDR '10.42.1.1/24' has bits set behind the prefix"),
        (node("alpha", ["none"], ["192.0.2.9"]), "its podCIDR 'none' is no IPv4 or IPv6 address"),
        (node("alpha", BOTH, ["192.0.2"]), "its InternalIP '192.0.2' is no IPv4 or IPv6 address"),
        (
            node("alpha", BOTH, ["192.0.2.9"], {"podwire.dev/endpoint": "alpha.example"}),
            "its annotation podwire.dev/endpoint: 'alpha.example' is no IPv4 or IPv6 address",
        ),
        (
            node("alpha", BOTH, ["192.0.2.9"], {"podwire.dev/endpoint": "2001:db8::9"}),
            "its annotation podwire.dev/endpoint is [2001:db8::9]:7000, but the underlay here is IPv4",
        ),
        (
            node("alpha", BOTH, ["192.0.2.9"], {"podwire.dev/offload": "no"}),
            'its annotation podwire.dev/offload must be "true" or "false", not \'no\'',
        ),
    ],
)
def test_a_node_that_makes_no_row_says_why(item: dict[str, Any], words: str) -> None:
    row = row_of(item, NETWORKS, SELF)
    assert isinstance(row, str)
    assert row.startswith(words)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["10.42.1.0/24", "InternalIP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_KEYS = ("name", "annotations", "podCIDR", "podCIDRs", "addresses", "type", "address", "podwire.dev/endpoint")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            part: _JSON | st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=4)
            for part in ("metadata", "spec", "status")
        },
    )
    | _JSON
)
def test_whatever_an_object_is_made_of_it_gives_a_row_or_words(item: object) -> None:
    try:
        name = name_of(item)
    except ValueError:
        return
    row = row_of(item, NETWORKS, SELF)
    assert isinstance(row, str) or row.name == name


def row(name: str, number: int) -> Node:
    return Node(name, Endpoint(ip_address(f"192.0.2.{number}")), (ip_network(f"10.42.{number}.0/24"),))


def test_rows_that_stay_are_the_same_objects_in_the_same_places() -> None:
    roster = Roster("a")
    roster.replace({"a": row("a", 1), "b": row("b", 2), "c": "it has no podCIDR"})
    first, second = roster.nodes
    roster.put("a", row("a", 1))
    roster.replace({"a": row("a", 1), "b": row("b", 3), "c": row("c", 4)})
    assert roster.nodes[0] is first
    assert roster.nodes[1:] == (row("b", 3), row("c", 4))
    roster.put("b", row("b", 5))
    assert [node.name for node in roster.nodes] == ["a", "b", "c"]
    roster.remove("b")
    roster.remove("nobody")
    roster.put("c", "it has no podCIDR")
    assert roster.nodes == (first,)
    assert second not in roster.nodes


def test_who_is_left_out_is_named_this_node_first() -> None:
    roster = Roster("m")
    assert roster.remarks() == "no Node is named m, as this router's --node is"
    roster.replace({"m": row("m", 1), "b": row("b", 2)})
    assert roster.remarks() == ""
    roster.put("m", "no range")
    roster.put("b", "no address")
    assert roster.remarks() == "Nodes left out: 2 (m: no range; b: no address)"
    roster.replace({f"n{index}": "no range" for index in range(9)} | {"m": "no range"})
    assert roster.remarks().endswith("10 (m: no range; n0: no range; n1: no range; n2: no range; …)")
