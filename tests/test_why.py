"""What was dropped, why and what to do: by whoever it concerns, in words that hold."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import cast

import pytest

from router.__main__ import _PLACES
from router.control.server import serve
from router.engine.interface import DroppedFlow, Engine, Source
from router.errors import Kind, Refusal
from router.model import Attachment, AttachmentKey, DropReason, Endpoint, Flow
from router.observe import reasons
from router.observe.drops import Drops
from router.observe.names import Names
from shim.lab import Lab
from tests.accounts import eventually
from tests.control_daemon import THERE, MemoryDaemon
from tests.test_commands import podwire

WEB, DB = AttachmentKey("sandbox-1", "eth0"), AttachmentKey("sandbox-2", "eth0")
STRANGER = Endpoint(ip_address("198.51.100.7"), 4711)
NS = 10**9


def attachment(key: AttachmentKey, name: str, *addresses: str) -> Attachment:
    labels = (("name", name), ("namespace", "default"))
    return Attachment(key, "/run/netns/x", tuple(map(ip_interface, addresses)), 1452, labels)


PODS = (
    attachment(WEB, "web-1", "10.1.1.2/24", "fd00:0:0:1::2/64"),
    attachment(DB, "db-1", "10.1.1.3/24", "fd00:0:0:1::3/64"),
)


def dropped(source: Source, src: str, dst: str, reason: DropReason = DropReason.NO_ROUTE, at_s: int = 5) -> DroppedFlow:
    flow = Flow(ip_address(src), ip_address(dst), 17, 4000, 53)
    return DroppedFlow(source, reason, flow, 3, NS, at_s * NS, 100)


FROM_WEB = dropped(WEB, "10.1.1.2", "10.9.9.9")
WEB_TO_DB = dropped(WEB, "10.1.1.2", "10.1.1.3", DropReason.RATE_LIMITED)
DB_TO_THERE = dropped(DB, "10.1.1.3", "10.1.2.9", DropReason.PEER_DOWN)
THERE_TO_WEB = dropped(THERE.endpoint, "10.1.2.9", "10.1.1.2", DropReason.ATTACHMENT_DOWN)
THERE_TO_NODE = dropped(THERE.endpoint, "10.1.2.9", "10.1.1.1", DropReason.TTL_EXPIRED)
OF_STRANGER = DroppedFlow(STRANGER, DropReason.UNKNOWN_PEER, None, 9, NS, 2 * NS, 60)
ALL = (FROM_WEB, WEB_TO_DB, DB_TO_THERE, THERE_TO_WEB, THERE_TO_NODE, OF_STRANGER)


class Dropping:
    """An engine of which only the drops count."""

    def __init__(self, drops: tuple[DroppedFlow, ...] = ALL) -> None:
        self.dropped = drops

    def drops(self) -> tuple[DroppedFlow, ...]:
        return self.dropped


@pytest.mark.parametrize(
    ("subject", "found"),
    [
        ("", ALL),
        ("web-1", (FROM_WEB, WEB_TO_DB, THERE_TO_WEB)),
        ("default/web-1", (FROM_WEB, WEB_TO_DB, THERE_TO_WEB)),
        ("fd00:0:0:1::2", (FROM_WEB, WEB_TO_DB, THERE_TO_WEB)),
        ("sandbox-2", (WEB_TO_DB, DB_TO_THERE)),
        ("there", (DB_TO_THERE, THERE_TO_WEB, THERE_TO_NODE)),
        ("[2001:db8::2]:7000", (DB_TO_THERE, THERE_TO_WEB, THERE_TO_NODE)),
        ("node", (THERE_TO_NODE,)),
        ("here", (THERE_TO_NODE,)),
        ("10.1.1.1", (THERE_TO_NODE,)),
        ("198.51.100.7", (OF_STRANGER,)),
        ("10.1.2.9", (DB_TO_THERE, THERE_TO_WEB, THERE_TO_NODE)),
        ("10.1.2.8", ()),
    ],
)
def test_drops_are_found_by_who_sent_and_by_who_was_to_get(subject: str, found: tuple[DroppedFlow, ...]) -> None:
    names = Names("here", lambda: PODS, lambda: (THERE,), lambda: (ip_address("10.1.1.1"),))
    listed = Drops(cast(Engine, Dropping()), names).list(subject)
    assert tuple(each.found for each in listed) == found


def test_a_subject_nobody_knows_is_refused() -> None:
    names = Names("here", lambda: (*PODS, attachment(AttachmentKey("x", "eth1"), "web-1")), lambda: (THERE,))
    drops = Drops(cast(Engine, Dropping()), names)
    for subject, kind in (("nobody", Kind.NOT_FOUND), ("web-1", Kind.INVALID)):
        with pytest.raises(Refusal) as refused:
            drops.list(subject)
        assert refused.value.kind is kind


# Words


@pytest.mark.parametrize("reason", DropReason)
def test_every_reason_has_words_that_hold(reason: DropReason) -> None:
    said = reasons.explain(reason)
    assert said[0].isupper()
    assert said.endswith((".", ").", "?"))
    assert "\n" not in said
    assert len(said) < 400, "a line for people"
    for command in re.findall(r"`podwire ([a-z-]+)", said):
        assert command in _PLACES, f"{command} is no command"


def test_what_was_too_big_is_told_with_both_sizes() -> None:
    assert "1500 bytes are more than the 1452 of the next link" in reasons.explain(DropReason.TOO_BIG, 1500, 1452)
    assert "larger than the next link" in reasons.explain(DropReason.TOO_BIG, 1500, 0)


# The command


@pytest.fixture
def engine() -> Dropping:
    return Dropping()


@pytest.fixture
def run(engine: Dropping, tmp_path: Path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    daemon = MemoryDaemon(cast(Engine, engine))
    daemon.held |= {each.key: each for each in PODS}
    server = serve(daemon, socket_path=str(tmp_path / "router.sock"))
    server.start()

    def command(*arguments: str) -> tuple[int, str, str]:
        done = podwire("why", *arguments, PODWIRE_SOCKET=str(tmp_path / "router.sock"))
        return done.returncode, done.stdout, done.stderr

    yield command
    server.stop(0)


def test_the_table_says_when_who_what_why_and_what_to_do(run: Callable[..., tuple[int, str, str]]) -> None:
    status, said, _ = run()
    assert status == 0
    lines = said.splitlines()
    assert lines[0].split() == ["LAST", "WHO", "SENT", "IT", "FLOW", "WHY", "PACKETS"]
    assert re.split(r" {2,}", lines[1].strip()) == [
        "1970-01-01 00:00:05", "default/web-1", "udp 10.1.1.2:4000 → 10.9.9.9:53", "no route", "3",
    ]  # fmt: skip
    assert re.split(r" {2,}", lines[6].strip()) == [
        "1970-01-01 00:00:02", f"a stranger ({STRANGER})", "no packet", "unknown peer", "9",
    ]  # fmt: skip
    assert f"no route: {reasons.explain(DropReason.NO_ROUTE)}" in lines
    assert f"peer down: {reasons.explain(DropReason.PEER_DOWN)}" in lines


def test_json_has_all_of_it(run: Callable[..., tuple[int, str, str]]) -> None:
    status, said, _ = run("there", "--json")
    found = json.loads(said)["drops"]
    assert status == 0
    assert [each["reason"] for each in found] == ["peer_down", "attachment_down", "ttl_expired"]
    assert found[0] == {
        "source": {
            "attachment": {"sandbox_id": "sandbox-2", "if_name": "eth0"},
            "endpoint": None,
            "name": "default/db-1",
        },
        "reason": "peer_down",
        "flow": {"src": "10.1.1.3", "dst": "10.1.2.9", "protocol": 17, "src_port": 4000, "dst_port": 53},
        "packets": 3,
        "first_s": 1.0,
        "last_s": 5.0,
        "packet_bytes": 100,
        "limit_bytes": 0,
        "text": reasons.explain(DropReason.PEER_DOWN),
    }
    assert found[1]["source"]["endpoint"] == {"address": "2001:db8::2", "port": 7000}


def test_when_nothing_was_dropped_it_says_since_when(
    run: Callable[..., tuple[int, str, str]], engine: Dropping
) -> None:
    engine.dropped = ()
    status, said, _ = run()
    assert (status, said.split(",")[0]) == (
        0, "Nothing was dropped lately: the router looks since 1970-01-01 00:16:40"
    )  # fmt: skip
    assert run("web-1")[1].startswith("Nothing of web-1 was dropped lately")
    status, said, complaint = run("nobody")
    assert (status, said) == (1, "")
    assert "no Pod or node 'nobody' is known on node here" in complaint


# In a real lab


@pytest.mark.netns
def test_a_lab_says_why(lab: Lab) -> None:
    node, far = lab.nodes[0], lab.nodes[1]
    pod, other = lab.pods[0], next(each for each in lab.pods if each.node is far)
    stranger = (
        "import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "for _ in range(3): s.sendto(b'who are you', (sys.argv[1], 6081))\nprint(s.getsockname()[1])"
    )
    far.run([sys.executable, "-c", stranger, node.endpoint], check=True)
    for command in (
        ["ping", "-n", "-c2", "-i0.2", "-W1", str(next(iter(unowned(lab))))],
        ["ping", "-n", "-c1", "-W1", "-t1", str(other.addresses[0])],
        ["ping", "-n", "-c1", "-W1", "-s1600", "-Mdo", str(other.addresses[0])],
        ["ping", "-n", "-c1", "-W1", "-t1", str(other.addresses[1])],
    ):
        pod.run(command)
    own = asked(node.socket, str(pod.addresses[0]))
    by_reason = {each["reason"]: each for each in own}
    assert by_reason["no_route"]["packets"] >= 2
    assert by_reason["no_route"]["source"]["attachment"]["sandbox_id"] == pod.sandbox_id
    versions = {each["flow"]["src"].count(":") > 0 for each in own if each["reason"] == "ttl_expired"}
    assert versions == {False, True}
    to_far = asked(node.socket, far.name)
    assert {each["flow"]["dst"] for each in to_far if each["flow"]} >= set(map(str, other.addresses)), (
        "what was for its Pods"
    )
    eventually(
        lambda: [each for each in asked(node.socket, "") if each["reason"] == "unknown_peer"], what="the stranger seen"
    )
    (unknown,) = (each for each in asked(node.socket, far.endpoint) if each["reason"] == "unknown_peer")
    assert (unknown["packets"], unknown["flow"]) == (3, None)
    assert unknown["source"]["name"].startswith("a stranger (")
    table = podwire("why", PODWIRE_SOCKET=str(node.socket)).stdout
    assert "ttl expired" in table
    assert "used up" in table


def unowned(lab: Lab) -> Iterator[object]:
    """Yield addresses inside the cluster range that no node owns."""
    owned = [subnet for node in lab.nodes for subnet in node.subnets]
    for third in range(255, 0, -1):
        address = ip_address(f"{str(lab.pods[0].addresses[0]).rsplit('.', 2)[0]}.{third}.9")
        if not any(address in subnet for subnet in owned):
            yield address


def asked(socket_path: object, subject: str) -> list[dict[str, dict[str, str]]]:
    done = podwire("why", *filter(None, (subject,)), "--json", PODWIRE_SOCKET=str(socket_path))
    assert done.returncode == 0, done.stderr
    found: list[dict[str, dict[str, str]]] = json.loads(done.stdout)["drops"]
    return found


def test_the_page_has_every_reason_in_the_same_words() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs/observability.md").read_text()
    for reason, (meaning, advice) in reasons.REASONS.items():
        assert f"| `{reason}` | {meaning[0].upper()}{meaning[1:]} | {advice} |" in page
