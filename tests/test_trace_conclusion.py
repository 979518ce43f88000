"""What a trace concludes from what it found: each cause is named, with what to do, and nothing else is."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address

import pytest

from router.model import DropReason, Endpoint, VerdictKind
from router.observe.trace.conclusion import Evidence, conclude
from router.observe.trace.decision import Decision
from router.observe.trace.packet import Asked, Transport
from router.observe.trace.probe import Met, Outcome
from router.observe.trace.silence import Silence

N1, N2 = ip_address("10.42.1.1"), ip_address("10.42.2.1")
DST = ip_address("10.42.2.2")
ASKED = Asked(ip_address("10.42.1.2"), DST, Transport.TCP, 80, 40)
HERE = Decision("n1", VerdictKind.TUNNEL, target="n2", mtu_bytes=1452)
THERE = Decision("n2", VerdictKind.LOCAL, target="db", mtu_bytes=1452)
HOPS = (Outcome(1, Met.HOP, N1, 0.001), Outcome(2, Met.HOP, N2, 0.002))
ANSWER = Outcome(3, Met.ANSWER, DST, 0.003)
SILENT = Outcome(64, Met.SILENCE)
GOOD = Evidence("web", str(DST), ASKED, "n1", 1452, HERE, THERE, outcomes=(*HOPS, ANSWER))


def with_last(last: Outcome, **changes: object) -> Evidence:
    return replace(GOOD, outcomes=(*HOPS, last), **changes)  # type: ignore[arg-type]


def refused(reason: DropReason, *, here: bool, kind: VerdictKind = VerdictKind.REJECT, mtu_bytes: int = 0) -> Evidence:
    decision = Decision("n1" if here else "n2", kind, str(reason), mtu_bytes=mtu_bytes)
    unreachable = Outcome(1, Met.UNREACHABLE, N1, 0.001, code=1)
    if here:
        return replace(GOOD, here=decision, there=None, outcomes=(unreachable,))
    return replace(GOOD, there=decision, outcomes=(HOPS[0], unreachable))


def silence(**changes: object) -> Silence:
    return replace(Silence("n2", Endpoint(ip_address("192.0.2.2")), "it is silent"), **changes)  # type: ignore[arg-type]


def test_what_arrives_is_said_to_with_hops_time_and_size() -> None:
    reached, text = conclude(GOOD)
    assert reached
    assert (
        text == "web → db (10.42.2.2) works, 2 routers on the way, 3.00 ms there and back; packets may have 1452 bytes"
    )


def test_what_would_arrive_is_not_said_to_have_been_sent() -> None:
    reached, text = conclude(replace(GOOD, outcomes=()))
    assert reached
    assert "would arrive" in text
    assert "nothing was sent" in text


def test_a_smaller_path_is_mentioned_though_the_packet_fits() -> None:
    reached, text = conclude(replace(GOOD, here=replace(HERE, mtu_bytes=1380)))
    assert reached
    assert "only 1380 bytes of the overlay MTU 1452" in text
    assert "MTU hole" in text


def test_what_arrives_arrives_whatever_routers_said_before() -> None:
    reached, text = conclude(replace(GOOD, there=None, silence=silence()))
    assert (reached, "works" in text) == (True, True)


@pytest.mark.parametrize("last", [Outcome(3, Met.REFUSED, DST, 0.003)])
def test_a_closed_port_is_reached_and_told(last: Outcome) -> None:
    reached, text = conclude(with_last(last))
    assert reached
    assert "the packet arrives" in text
    assert "nothing listens on TCP port 80" in text


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Outcome(1, Met.FAILED, errno=errno.ENETUNREACH), "web has no route to 10.42.2.2"),
        (Outcome(1, Met.FAILED, errno=errno.EPERM), "a firewall in web itself"),
        (Outcome(1, Met.FAILED, errno=errno.EADDRNOTAVAIL), "web does not have its address 10.42.1.2"),
        (Outcome(1, Met.FAILED, errno=errno.EMSGSIZE, mtu_bytes=1452), "carries 1452 bytes"),
        (Outcome(1, Met.FAILED, errno=errno.ENOBUFS), "No buffer space"),
        (Outcome(2, Met.TOO_BIG, N1, 0.001, mtu_bytes=1380), "which carries 1380"),
        (Outcome(2, Met.UNREACHABLE, N2, 0.001, code=13), "a firewall at 10.42.2.1 refuses TCP port 80"),
        (Outcome(2, Met.UNREACHABLE, N2, 0.001, code=1), "says that 10.42.2.2 is unreachable"),
    ],
)
def test_what_a_probe_met_is_named(last: Outcome, said: str) -> None:
    reached, text = conclude(replace(GOOD, outcomes=(last,)))
    assert not reached
    assert said in text


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (DropReason.SPOOFED_SOURCE, "the tables of n1 and n2 differ"),
        (DropReason.WRONG_NODE, "the tables of n1 and n2 differ"),
        (DropReason.NO_ATTACHMENT, "no Pod there holds 10.42.2.2"),
        (DropReason.TOO_BIG, "which carries 1400: send less"),
        (DropReason.EGRESS_DISABLED, "the router of n2 drops it (egress_disabled)"),
    ],
)
def test_a_refusal_of_the_next_router_is_explained(reason: DropReason, said: str) -> None:
    reached, text = conclude(refused(reason, here=False, mtu_bytes=1400))
    assert not reached
    assert said in text


@pytest.mark.parametrize("reason", list(DropReason))
@pytest.mark.parametrize("here", [True, False])
def test_every_reason_there_is_is_named_wherever_it_is_given(reason: DropReason, here: bool) -> None:
    reached, text = conclude(refused(reason, here=here, kind=VerdictKind.DROP))
    assert not reached
    assert reason.value in text or reason is DropReason.TOO_BIG
    assert ("n1" if here else "n2") in text


def test_a_reason_of_a_newer_router_is_handed_on() -> None:
    odd = replace(THERE, verdict=VerdictKind.DROP, reason="gravity")
    assert "drops it (gravity)" in conclude(replace(GOOD, there=odd, outcomes=(SILENT,)))[1]


def test_a_hole_is_told_from_a_packet_that_is_simply_too_long() -> None:
    assert "MTU hole" in conclude(refused(DropReason.TOO_BIG, here=True, mtu_bytes=1380))[1]
    text = conclude(refused(DropReason.TOO_BIG, here=True, mtu_bytes=1452))[1]
    assert "MTU hole" not in text
    assert "send less" in text


def test_no_route_mentions_a_table_that_was_refused() -> None:
    found = replace(refused(DropReason.NO_ROUTE, here=True), table_error="n2 and n9 have one endpoint")
    assert "the newest table was refused: n2 and n9 have one endpoint" in conclude(found)[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dropped": DropReason.WRONG_NETWORK}, "give both routers the same --vni"),
        ({"dropped": DropReason.STALE_EPOCH}, "it is of an old epoch"),
        ({"comes": True}, "the underlay is cut one way"),
        ({"comes": True, "why": ""}, "but no questions"),
        ({"port": Outcome(64, Met.REFUSED)}, "nothing listens at UDP 6081"),
        ({"host": Outcome(64, Met.ANSWER)}, "a firewall on the underlay drops UDP 6081"),
        ({"host": Outcome(64, Met.UNREACHABLE, N2)}, "10.42.2.1 says that its host is unreachable"),
        (
            {"host": Outcome(64, Met.FAILED, errno=errno.ENETUNREACH)},
            "this node cannot send to it (Network is unreachable)",
        ),
        ({"host": Outcome(64, Met.SILENCE)}, "n2 is dead, or the underlay between is cut"),
    ],
)
def test_a_silent_router_is_explained(changes: dict[str, object], said: str) -> None:
    down = Decision("n1", VerdictKind.REJECT, str(DropReason.PEER_DOWN))
    unreachable = Outcome(1, Met.UNREACHABLE, N1, 0.001, code=1)
    found = replace(GOOD, here=down, there=None, silence=silence(**changes), outcomes=(unreachable,))
    reached, text = conclude(found)
    assert not reached
    assert text.startswith("web → 10.42.2.2: the router of n2 at 192.0.2.2:6081 does not answer: ")
    assert said in text


def test_a_router_that_is_not_the_one_of_the_table_is_named() -> None:
    text = conclude(with_last(SILENT, impostor="n9"))[1]
    assert "has for n2 calls itself n9" in text
    assert conclude(replace(GOOD, impostor="n9"))[0], "it arrives all the same"


def test_an_answer_that_would_be_dropped_is_named() -> None:
    back = Decision("n1", VerdictKind.DROP, str(DropReason.SPOOFED_SOURCE))
    reached, text = conclude(with_last(SILENT, back=back))
    assert not reached
    assert "drops the answer (spoofed_source)" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"far_interface": "interface eth0 of db is down"}, "interface eth0 of db is down"),
        ({"dropped_here": "underlay_error"}, "the router of n1 drops it (underlay_error)"),
        ({"there": replace(THERE, reason="attachment_down")}, "the router of n2 drops it (attachment_down)"),
        ({"dropped_back": "rate_limited"}, "the router of n1 drops the answer (rate_limited)"),
        ({"echo": Outcome(16, Met.ANSWER, DST, 0.001)}, "answers pings, but nothing on TCP port 80"),
        ({"outcomes": (SILENT,)}, "not even from the router of n1: a firewall in web"),
        ({"outcomes": (HOPS[0], SILENT)}, "it gets lost between n1 and n2: run `podwire why n1` on n2"),
        ({}, "it was handed to db by the router of n2, and no answer came"),
        ({"interface": "interface eth0 of web is gone"}, "interface eth0 of web is gone"),
    ],
)
def test_silence_is_explained_by_where_it_begins_and_what_was_dropped(changes: dict[str, object], said: str) -> None:
    reached, text = conclude(replace(with_last(SILENT), **changes))  # type: ignore[arg-type]
    assert not reached
    assert said in text


def test_udp_that_is_not_answered_need_not_be_blocked() -> None:
    asked = replace(ASKED, transport=Transport.UDP)
    text = conclude(with_last(SILENT, asked=asked, echo=Outcome(16, Met.ANSWER, DST, 0.001)))[1]
    assert "a program there that has nothing to say" in text


def test_going_round_is_told_from_a_long_way() -> None:
    outside = replace(HERE, verdict=VerdictKind.LOCAL, target="n1", outside=True)
    far = [ip_address(f"198.51.100.{host}") for host in range(1, 15)]
    long = tuple(Outcome(hop, Met.HOP, address, 0.01) for hop, address in enumerate(far, 1))
    found = replace(GOOD, here=outside, there=None, outcomes=(*long, SILENT))
    assert "nothing came back from behind 198.51.100.14" in conclude(found)[1]
    loop = tuple(Outcome(hop, Met.HOP, far[hop % 2], 0.01) for hop in range(1, 15))
    text = conclude(replace(found, outcomes=(*loop, Outcome(64, Met.HOP, far[0], 0.01))))[1]
    assert "it goes round between 198.51.100.2 and 198.51.100.1 until" in text


@pytest.mark.parametrize(
    ("sized", "said"),
    [
        (
            Outcome(16, Met.TOO_BIG, N1, 0.001, mtu_bytes=1380),
            "TCP port 80 connects, but a packet of 1400 bytes is too big",
        ),
        (Outcome(16, Met.SILENCE), "TCP port 80 connects, but an ICMP packet of 1400 bytes gets no answer"),
        (Outcome(16, Met.FAILED, errno=errno.EMSGSIZE), "takes no packet of 1400"),
    ],
)
def test_a_connection_that_opens_and_carries_nothing_large_is_no_way(sized: Outcome, said: str) -> None:
    reached, text = conclude(replace(GOOD, asked=replace(ASKED, packet_bytes=1400), sized=sized))
    assert not reached
    assert said in text
