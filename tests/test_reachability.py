"""Who reaches whom, and as whom: the promises a Pod network makes, with real kernels on both sides."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from ipaddress import ip_address
from itertools import product
from typing import Any

import pytest

from shim.lab import Lab, netns
from shim.lab.matrix import Place, measure
from shim.lab.node import LabNode
from shim.lab.plan import CLUSTER_V4, CLUSTER_V6, OUTSIDE_V4, OUTSIDE_V6
from shim.lab.pod import LabPod
from tests.accounts import of_pod
from tests.echo import PORT, Echo, ask_tcp, ask_udp, connect

pytestmark = pytest.mark.netns

OUTSIDE = (OUTSIDE_V4, OUTSIDE_V6)
_ICMP = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128)}
_IPV4_HEADER_BYTES = 20


def places(lab: Lab) -> list[Place]:
    found = [Place(pod.name, pod.netns_path, pod.addresses) for pod in lab.pods]
    return found + [Place(node.name, node.netns_path, node.addresses, node=True) for node in lab.nodes]


def pinged_by(source: LabPod | LabNode, target: LabPod | LabNode, family: int) -> tuple[str, str]:
    """Ping once; return whom the target saw asking, and the end of what ping said."""
    address = target.addresses[0 if family == 4 else 1]
    version, protocol, request = _ICMP[family]
    with netns.open_socket(target.netns_path, version, socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(3)
        done = source.run(["ping", "-n", "-c", "1", "-W", "3", str(address)])
        said = done.stdout.strip().splitlines()[-2]
        while True:
            packet, sender = raw.recvfrom(2048)
            if packet[_IPV4_HEADER_BYTES if family == 4 else 0] == request:
                return sender[0], said


def test_all_pods_and_nodes_reach_each_other_with_their_own_addresses(lab: Lab) -> None:
    assert [str(probe) for probe in measure(places(lab)).bad] == []


@pytest.mark.parametrize("family", [4, 6])
def test_icmp_reaches_all_and_keeps_sources(lab: Lab, family: int) -> None:
    every: list[LabPod | LabNode] = [*lab.pods[:3], *lab.nodes]
    own = {place.name: str(place.addresses[0 if family == 4 else 1]) for place in every}
    for source, target in product(every, every):
        if source is not target:
            seen, said = pinged_by(source, target, family)
            assert seen == own[source.name], (source.name, target.name)
            assert "1 received" in said, (source.name, target.name, said)


def test_nodes_reach_nodes_by_their_overlay_addresses(lab: Lab) -> None:
    with Echo(lab.nodes) as echo:
        for source, target in product(lab.nodes, lab.nodes):
            if source is target:
                continue
            for mine, theirs in zip(source.addresses, target.addresses, strict=True):
                with connect(source, theirs, socket.SOCK_STREAM) as asker:
                    assert ask_tcp(asker, b"stream") == b"stream"
                with connect(source, theirs, socket.SOCK_DGRAM) as asker:
                    assert ask_udp(asker, b"datagram") == b"datagram"
                assert {("tcp", str(theirs), str(mine)), ("udp", str(theirs), str(mine))} <= echo.seen


def test_a_wire_of_ipv6_carries_both_families(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=2, pods=2, underlay_family=6)
    with lab.nodes[0].client() as client:
        assert ip_address(client.status().endpoint.address).version == 6
    assert [str(probe) for probe in measure(places(lab)).bad] == []
    for family in (4, 6):
        assert pinged_by(lab.pods[0], lab.pods[2], family)[0] == str(lab.pods[0].addresses[0 if family == 4 else 1])
    payload = bytes(range(256)) * 8192
    with Echo(lab.pods[2:]):
        for address in lab.pods[2].addresses:
            with connect(lab.pods[0], address, socket.SOCK_STREAM) as asker:
                assert ask_tcp(asker, payload) == payload


def masqueraded(lab: Lab, pod: LabPod, family: int) -> str:
    """Open a connection to the host outside; return whom it saw."""
    outside = OUTSIDE[0 if family == 4 else 1]
    version = socket.AF_INET if family == 4 else socket.AF_INET6
    with netns.open_socket(lab.outside_path, version, socket.SOCK_STREAM) as server:  # type: ignore[arg-type]
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((str(outside), PORT))
        server.listen()
        server.settimeout(5)
        with connect(pod, outside, socket.SOCK_STREAM):
            connection, asker = server.accept()
            connection.close()
            return str(asker[0])


@pytest.mark.parametrize("family", [4, 6])
def test_pods_get_out_with_their_nodes_address(lab: Lab, family: int) -> None:
    for pod in (lab.pods[0], lab.pods[-1]):
        underlay = pod.node.plan.underlay[0 if family == 4 else 1].ip
        assert masqueraded(lab, pod, family) == str(underlay)
        done = pod.run(["ping", "-n", "-c1", "-W3", str(OUTSIDE[0 if family == 4 else 1])])
        assert done.returncode == 0, done.stdout


def nft_rules(node: LabNode) -> list[dict[str, Any]]:
    listed = json.loads(node.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
    return [entry["rule"] for entry in listed if "rule" in entry]


def test_a_node_masquerades_only_towards_outside(lab: Lab) -> None:
    for node in lab.nodes:
        rules = nft_rules(node)
        assert len(rules) == 2
        for rule, subnet, network in zip(rules, node.plan.subnets, (CLUSTER_V4, CLUSTER_V6), strict=True):
            *matches, last = rule["expr"]
            assert last == {"masquerade": None}
            told = {
                json.dumps(each["match"]["left"]): (each["match"]["op"], each["match"]["right"]) for each in matches
            }
            source, destination = (
                next(value for left, value in told.items() if f'"{field}"' in left) for field in ("saddr", "daddr")
            )
            assert source == ("==", {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}})
            assert destination == ("!=", {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}})


@pytest.mark.parametrize(("family", "said"), [(4, "Packet filtered"), (6, "Administratively prohibited")])
def test_without_egress_a_pod_is_told(make_lab: Callable[..., Lab], family: int, said: str) -> None:
    lab = make_lab(nodes=1, pods=2, outside=True, router_args=("--no-egress",))
    first, second = lab.pods
    before = of_pod(first).tally.dropped.get("egress_disabled", 0)
    done = first.run(["ping", "-n", "-c1", "-W3", str(OUTSIDE[0 if family == 4 else 1])])
    node_address = lab.nodes[0].addresses[0 if family == 4 else 1]
    assert f"From {node_address} icmp_seq=1" in done.stdout
    assert said in done.stdout
    assert of_pod(first).tally.dropped["egress_disabled"] == before + 1
    assert nft_rules(lab.nodes[0]) == []
    assert pinged_by(first, second, family)[0] == str(first.addresses[0 if family == 4 else 1])
