"""Questions to the router of another node, and its answers: two real engines over loopback, and what strangers may try."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from router.engine.choose import available
from router.engine.interface import QUESTIONS_KEPT
from router.model import DropReason, Endpoint, VerdictKind
from router.observe.names import Names
from router.observe.trace.packet import Asked, Transport, answer_to, build, one_hop_less, resized
from router.observe.trace.questions import REPLIES_PER_S, TRIES, TRY_S, Questions
from router.wire import question
from router.wire.packet import parse_ip
from tests.engine_rig import VNI, Rig, endpoint_of, key, pair, underlay, until
from tests.packets import word_sum

PACKET = build(Asked(ip_address("10.42.1.2"), ip_address("10.42.2.2"), packet_bytes=100))


class Node:
    """A rig with what answers questions."""

    def __init__(self, engine: str, number: int) -> None:
        self.rig = Rig(engine, number)
        own = tuple(subnet[1] for subnet in self.rig.own.subnets)
        self.names = Names(
            self.rig.own.name,
            lambda: [tap.attachment for tap in self.rig.taps.values()],
            lambda: [each for each in self.rig.table.nodes if each is not self.rig.own],
            lambda: own,
        )
        self.questions = Questions(self.rig.socket, VNI, self.names)
        told: Any = self.rig.told
        told.question_came = self.questions.take

    @property
    def endpoint(self) -> Endpoint:
        return endpoint_of(self.rig.socket)


@pytest.fixture(params=available())
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node]]:
    """Two nodes whose engines run, with a Pod .2 each."""
    with ExitStack() as stack:
        made = [Node(request.param, number) for number in (1, 2)]
        for node in made:
            stack.enter_context(node.rig)
            node.rig.pod("pod", 2)
        pair(made[0].rig, made[1].rig)
        for node in made:
            node.rig.start()
            node.questions.start(node.rig.engine)
            stack.callback(node.questions.stop)
        yield made[0], made[1]


def test_the_other_router_says_who_would_get_it_and_how_large_it_may_be(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    found = near.questions.ask(far.endpoint, one_hop_less(PACKET))
    assert found is not None
    assert (found.node, found.verdict, found.target, found.reason) == ("node2", VerdictKind.LOCAL, "pod", "")
    assert found.mtu_bytes == 1452
    tally = far.rig.tally(near.endpoint)
    assert (tally.received_packets, tally.control_packets) == (0, 1), "a question is no packet"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("src", "dst", "size", "expected"),
    [
        ("1:2", "2:9", 100, (VerdictKind.REJECT, DropReason.NO_ATTACHMENT)),
        ("1:2", "3:2", 100, (VerdictKind.REJECT, DropReason.NO_ROUTE)),
        ("2:7", "2:2", 100, (VerdictKind.DROP, DropReason.SPOOFED_SOURCE)),
        ("1:2", "2:2", 1453, (VerdictKind.REJECT, DropReason.TOO_BIG)),
        ("1:2", "2:2", 65535, (VerdictKind.REJECT, DropReason.TOO_BIG)),
        ("1:2", "2:2", 1452, (VerdictKind.LOCAL, None)),
    ],
)
def test_it_says_why_not(
    nodes: tuple[Node, Node],
    version: int,
    src: str,
    dst: str,
    size: int,
    expected: tuple[VerdictKind, DropReason | None],
) -> None:
    ends = [text.split(":") for text in (src, dst)]
    form = "10.42.{}.{}" if version == 4 else "fd42:{}::{}"
    one, other = (ip_address(form.format(*each)) for each in ends)
    packet = build(Asked(one, other, Transport.UDP, 9, size, dont_fragment=True))
    found = nodes[0].questions.ask(nodes[1].endpoint, packet)
    assert found is not None
    assert (found.verdict, found.reason) == (expected[0], str(expected[1] or ""))


def test_a_hop_limit_that_ends_there_is_told(nodes: tuple[Node, Node]) -> None:
    asked = Asked(ip_address("10.42.1.2"), ip_address("10.42.2.2"))
    found = nodes[0].questions.ask(nodes[1].endpoint, build(asked, hop_limit=1))
    assert found is not None
    assert (found.verdict, found.reason) == (VerdictKind.REJECT, str(DropReason.TTL_EXPIRED))


def test_what_is_no_packet_is_said_to_be_none(nodes: tuple[Node, Node]) -> None:
    for junk in (b"\x45" + bytes(40), b"\x60" + bytes(3), PACKET[:19], bytes(256)):
        found = nodes[0].questions.ask(nodes[1].endpoint, junk)
        assert found is not None
        assert (found.verdict, found.reason, found.mtu_bytes) == (VerdictKind.DROP, str(DropReason.MALFORMED), 0)


def test_what_was_dropped_of_the_flow_lately_is_told_though_it_would_pass_now(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    near.rig.taps[key("pod")].send_packet(resized(PACKET, 300))  # … has a checksum of its own, and arrives
    until(far.rig.taps[key("pod")].frames, "the packet")
    found = near.questions.ask(far.endpoint, PACKET)
    assert found is not None
    assert found.reason == ""
    far.rig.learn("node1", epoch=5)  # what node1 sends is of an older one
    near.rig.renew(4)
    near.rig.taps[key("pod")].send_packet(PACKET)
    until(lambda: far.rig.drops(near.endpoint).get("stale_epoch"), "the drop")
    found = near.questions.ask(far.endpoint, PACKET)
    assert found is not None
    assert (found.verdict, found.reason) == (VerdictKind.LOCAL, "stale_epoch")


def test_nobody_there_is_no_answer_in_bounded_time(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    far.questions.stop()
    began_s = time.monotonic()
    assert near.questions.ask(far.endpoint, PACKET) is None
    assert time.monotonic() - began_s < 5 * TRIES * TRY_S
    assert near.questions._waiting == {}


def test_a_peer_gets_so_many_replies_a_second_and_no_more(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    near.questions.stop()
    far.questions._engine = far.rig.engine
    asked = question.encode_question(VNI, question.Question(1, 2, PACKET, len(PACKET)))
    began_s = time.monotonic()
    for _ in range(5 * REPLIES_PER_S):
        far.questions._see_to(near.endpoint, question.decode(asked))
    seconds = int(time.monotonic() - began_s) + 2
    until(lambda: near.rig.tally(far.endpoint).control_packets, "replies")
    assert near.rig.tally(far.endpoint).control_packets <= seconds * REPLIES_PER_S
    assert seconds > 3 or near.rig.tally(far.endpoint).control_packets < 5 * REPLIES_PER_S


def test_who_is_no_peer_gets_no_reply(nodes: tuple[Node, Node]) -> None:
    _, far = nodes
    with underlay() as stranger:
        asked = question.encode_question(VNI, question.Question(1, 2, PACKET, len(PACKET)))
        far.questions._see_to(endpoint_of(stranger), question.decode(asked))  # it has just left the table
        stranger.sendto(asked, far.rig.socket.getsockname())
        until(lambda: far.rig.counters().strangers.dropped, "the stranger counted")
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.recv(2048)


def test_a_flood_keeps_nobody_and_nothing_waiting() -> None:
    with Rig("python") as rig:
        questions = Questions(rig.socket, VNI, Names("node1", tuple, tuple))
        for number in range(100_000):
            questions.take(Endpoint(ip_address(number)), b"x", 0)
        assert questions._came.qsize() <= QUESTIONS_KEPT
        questions.start(rig.engine)
        questions.stop()
        questions.take(Endpoint(ip_address(1)), b"x", 0)


def test_only_the_reply_that_was_asked_for_is_taken(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    far.questions.stop()
    forged = question.Reply(1, 2, 1, 1452, "", "everybody", "nobody")
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(near.questions.ask(far.endpoint, PACKET)))
    asking.start()
    until(lambda: near.questions._waiting, "the question")
    [(endpoint, sequence)] = near.questions._waiting
    elsewhere = replace(endpoint, port=endpoint.port ^ 1)
    for source, reply in (
        (elsewhere, replace(forged, sequence=sequence)),
        (endpoint, forged),
        (endpoint, replace(forged, sequence=sequence)),
    ):
        near.questions.take(source, question.encode_reply(VNI, reply), time.monotonic_ns())
    for junk in (b"", b"x" * 512, bytes(512), question.encode_reply(VNI, forged)[:-1]):
        near.questions.take(endpoint, junk, time.monotonic_ns())
    asking.join()
    assert answers == [None]


def test_a_question_that_waited_too_long_is_not_answered(nodes: tuple[Node, Node]) -> None:
    near, far = nodes
    asked = question.encode_question(VNI, question.Question(1, 2, PACKET, len(PACKET)))
    far.questions.take(near.endpoint, asked, time.monotonic_ns() - int(60e9))
    assert near.questions.ask(far.endpoint, PACKET) is not None  # the one before it was seen to
    assert near.rig.tally(far.endpoint).control_packets == 1


# The packets


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("size", [0, 100, 1452, 65535])
def test_packets_are_whole_and_stay_so(version: int, transport: Transport, size: int) -> None:
    src, dst = ("10.42.1.2", "10.42.2.2") if version == 4 else ("fd42:1::2", "fd42:2::2")
    packet = build(Asked(ip_address(src), ip_address(dst), transport, 80, size, dont_fragment=True))
    assert len(packet) >= size
    for each in (packet, one_hop_less(packet), answer_to(packet), resized(packet, 77), resized(packet, 9000)):
        header = parse_ip(each, 0, len(each))
        assert header is not None
        assert (header.version, header.may_fragment) == (version, False)
    one = parse_ip(one_hop_less(packet), 0, len(packet))
    assert one is not None
    assert one.hop_limit == 63
    back = parse_ip(answer_to(packet), 0, len(packet))
    assert back is not None
    assert back.addresses == ip_address(dst).packed + ip_address(src).packed


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", list(Transport))
def test_checksums_are_true(version: int, transport: Transport) -> None:
    src, dst = ("10.42.1.2", "10.42.2.2") if version == 4 else ("fd42:1::2", "fd42:2::2")
    packet = build(Asked(ip_address(src), ip_address(dst), transport, 80, 101))
    payload = packet[20 if version == 4 else 40 :]
    protocol = packet[9] if version == 4 else packet[6]
    pseudo = ip_address(src).packed + ip_address(dst).packed + struct.pack(">II", len(payload), protocol)
    assert word_sum((b"" if protocol == 1 else pseudo) + payload) == 0xFFFF
