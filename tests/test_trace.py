"""Traces over real routers: what they decide, what real packets from inside Pods meet, and who is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shim.client import ClientError
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from shim.observe.answers import TraceStep
from shim.observe.client import ObserverClient
from tests.accounts import of_pod

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("version", [4, 6])


def trace(node: LabNode, src: str, dst: object, **asked: Any) -> list[TraceStep]:
    with ObserverClient(str(node.socket)) as client:
        return list(client.trace(src, str(dst), **asked))


def address(pod: LabPod, version: int) -> str:
    return str(pod.addresses[version == 6])


def kinds(steps: list[TraceStep], kind: str) -> list[TraceStep]:
    return [step for step in steps if step.kind == kind]


@contextmanager
def answering(pod: LabPod, version: int, kind: socket.SocketKind, port: int) -> Iterator[None]:
    """Have something in a Pod accept TCP connections, or answer datagrams."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with netns.open_socket(pod.netns_path, family, kind) as sock:
        sock.bind((address(pod, version), port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
            yield
            return
        sock.settimeout(20)
        stop = threading.Event()

        def answer() -> None:
            while not stop.is_set():
                try:
                    datagram, sender = sock.recvfrom(65535)
                except TimeoutError:
                    return
                if datagram == b"end":
                    return
                sock.sendto(datagram, sender)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            with netns.open_socket(pod.netns_path, family, kind) as last:
                last.sendto(b"end", (address(pod, version), port))
            thread.join()


@BOTH
def test_both_routers_say_what_they_do_and_real_packets_meet_them_hop_by_hop(lab: Lab, version: int) -> None:
    source, target = lab.pods[0], lab.pods[2]
    steps = trace(lab.nodes[0], source.name, address(target, version))
    decisions, probes = kinds(steps, "decision"), kinds(steps, "probe")
    assert [(each.node, each.verdict, each.target, each.mtu_bytes) for each in decisions] == [
        ("n1", "tunnel", "n2", 1452),
        ("n2", "local", f"{lab.name}/{target.name}", 1452),
    ]
    assert [(each.hop, each.address, each.node) for each in probes] == [
        (1, str(lab.nodes[0].addresses[version == 6]), "n1"),
        (2, str(lab.nodes[1].addresses[version == 6]), "n2"),
        (3, address(target, version), "n2"),
    ]
    assert all(each.rtt_s is not None and 0 < each.rtt_s < 5 for each in probes)
    last = steps[-1]
    assert (last.kind, last.reached) == ("conclusion", True)
    assert "works, 2 routers on the way" in last.text
    assert len(kinds(steps, "conclusion")) == 1


@BOTH
@pytest.mark.parametrize("where", ["same node", "other node"])
def test_a_connection_an_open_port_and_a_closed_one(lab: Lab, version: int, where: str) -> None:
    source, target = lab.pods[0], lab.pods[1 if where == "same node" else 2]
    asked: dict[str, Any] = {"ip_version": version, "dst_port": 8080}
    dst = address(target, version)
    with answering(target, version, socket.SOCK_STREAM, 8080):
        steps = trace(lab.nodes[0], source.name, dst, protocol="tcp", **asked)
    assert steps[-1].reached
    assert kinds(steps, "probe")[-1].text == "accepts the connection"
    with answering(target, version, socket.SOCK_DGRAM, 8080):
        steps = trace(lab.nodes[0], source.name, dst, protocol="udp", packet_bytes=100, **asked)
    assert steps[-1].reached
    assert kinds(steps, "probe")[-1].text == "answers"
    for protocol in ("tcp", "udp"):
        steps = trace(lab.nodes[0], source.name, dst, protocol=protocol, **asked)
        assert steps[-1].reached
        assert f"nothing listens on {protocol.upper()} port 8080" in steps[-1].text


@BOTH
def test_sizes_and_what_must_not_be_cut(lab: Lab, version: int) -> None:
    source, dst = lab.pods[0].name, address(lab.pods[2], version)
    for protocol in ("icmp", "udp"):
        asked: dict[str, Any] = {"protocol": protocol, "dont_fragment": True}
        steps = trace(lab.nodes[0], source, dst, packet_bytes=1452, **asked)
        assert steps[-1].reached, steps
        steps = trace(lab.nodes[0], source, dst, packet_bytes=1453, **asked)
        assert not steps[-1].reached
        assert kinds(steps, "decision")[0].reason == "too_big"
        assert "carries 1452 bytes" in steps[-1].text
        steps = trace(lab.nodes[0], source, dst, packet_bytes=4000, protocol=protocol)
        assert steps[-1].reached, steps
    steps = trace(lab.nodes[0], source, dst, packet_bytes=1400, protocol="tcp", dont_fragment=True)
    assert steps[-1].reached
    assert kinds(steps, "probe")[-1].text == "ICMP of 1400 bytes: echo reply"


def test_a_dry_run_sends_nothing(lab: Lab) -> None:
    source, target = lab.pods[0], lab.pods[2]
    before, there = of_pod(source).tally, of_pod(target).tally
    steps = trace(lab.nodes[0], source.name, address(target, 4), dry_run=True)
    assert kinds(steps, "probe") == []
    assert steps[-1].reached
    assert "nothing was sent" in steps[-1].text
    assert of_pod(source).tally.received_packets == before.received_packets
    assert of_pod(target).tally.sent_packets == there.sent_packets


def test_the_node_itself_other_nodes_and_the_outside(lab: Lab) -> None:
    steps = trace(lab.nodes[0], "node", address(lab.pods[2], 6))
    assert [each.node for each in kinds(steps, "probe")] == ["n2", "n2"]
    assert steps[-1].reached
    steps = trace(lab.nodes[0], lab.pods[0].name, "n3")
    assert steps[-1].reached, steps
    steps = trace(lab.nodes[0], lab.pods[0].name, "198.51.100.1")
    assert steps[-1].reached, steps
    assert "to leave the cluster" in kinds(steps, "decision")[0].text
    steps = trace(lab.nodes[0], lab.pods[0].name, lab.pods[1].name, ip_version=6)
    assert kinds(steps, "probe")[-1].address == address(lab.pods[1], 6)


@BOTH
def test_who_is_not_there_is_named(lab: Lab, version: int) -> None:
    gone = "10.42.2.200" if version == 4 else "fd42:0:0:2::200"
    nobody = "10.42.200.2" if version == 4 else "fd42:0:0:200::2"
    steps = trace(lab.nodes[0], lab.pods[0].name, gone)
    assert (steps[-1].reached, kinds(steps, "decision")[1].reason) == (False, "no_attachment")
    assert "no_attachment" in steps[-1].text
    steps = trace(lab.nodes[0], lab.pods[0].name, nobody)
    assert (steps[-1].reached, kinds(steps, "decision")[0].reason) == (False, "no_route")


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"src": "nobody"}, "NOT_FOUND", "no Pod or node 'nobody'"),
        ({"src": ""}, "INVALID_ARGUMENT", "src: say which Pod"),
        ({"src": "n2"}, "NOT_FOUND", "n2 is another node"),
        ({"dst": "10.42.2"}, "NOT_FOUND", "no Pod or node '10.42.2'"),
        ({"dst": "x" * 513}, "INVALID_ARGUMENT", "dst: say which"),
        ({"dst": "a\0b"}, "INVALID_ARGUMENT", "printable"),
        ({"dst": "fe80::1%eth0"}, "INVALID_ARGUMENT", "leave the zone"),
        ({"ip_version": 6}, "INVALID_ARGUMENT", "no addresses of IPv6 in common"),
        ({"ip_version": 5}, "INVALID_ARGUMENT", "use 4, 6, or 0"),
        ({"protocol": "sctp"}, "INVALID_ARGUMENT", "none of icmp, tcp, udp"),
        ({"dst_port": 80}, "INVALID_ARGUMENT", "ICMP has no ports"),
        ({"protocol": "tcp", "dst_port": 65536}, "INVALID_ARGUMENT", "1 to 65535"),
        ({"packet_bytes": 27}, "INVALID_ARGUMENT", "28 to 65535"),
        ({"packet_bytes": 65536}, "INVALID_ARGUMENT", "28 to 65535"),
    ],
)
def test_what_makes_no_sense_is_refused_and_says_why(lab: Lab, asked: dict[str, Any], code: str, said: str) -> None:
    request = {"src": lab.pods[0].name, "dst": "10.42.2.2"} | asked
    with pytest.raises(ClientError) as refused:
        trace(lab.nodes[0], request.pop("src"), request.pop("dst"), **request)
    assert refused.value.code == code
    assert said in refused.value.message


def test_one_trace_a_pod_at_once_and_the_place_is_given_back(lab: Lab) -> None:
    node, source = lab.nodes[0], lab.pods[0].name
    with ObserverClient(str(node.socket)) as client:
        slow = client.trace(source, "224.0.0.251", protocol="udp")  # of which nobody tells
        assert next(slow).kind == "decision"
        with pytest.raises(ClientError, match="is being traced already"):
            trace(node, source, "10.42.2.2")
        assert trace(node, lab.pods[1].name, address(lab.pods[0], 4))[-1].reached, "another Pod"
        assert list(slow)[-1].kind == "conclusion"
    assert trace(node, source, address(lab.pods[1], 4))[-1].reached


def test_the_command_prints_tables_or_json_and_its_status_tells(lab: Lab) -> None:
    source, target = lab.pods[0].name, address(lab.pods[2], 4)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "router", "trace", *words, "--socket", str(lab.nodes[0].socket)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    done = run(source, target)
    assert done.returncode == 0, done.stderr
    tables, sentence = done.stdout.rstrip().rsplit("\n\n", 1)
    assert "ROUTER OF" in tables
    assert "HOP" in tables
    assert "works" in sentence
    done = run(source, "10.42.200.2", "--json", "--dry-run")
    assert done.returncode == 1
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["kind"] for step in steps] == ["decision", "conclusion"]
    assert run("nobody", target).returncode == 1
    assert run(source, target, "--dport", "0").returncode == 2
