"""One trace after the other of what people ask: decisions, then real probes, then the conclusion. Bounded in time and number."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from router.engine.interface import Engine
from router.errors import Kind, Refusal
from router.kernel import netns
from router.model import NODE_KEY, Address, AttachmentKey, DropReason, Node, VerdictKind
from router.observe.trace.conclusion import Evidence, conclude
from router.observe.trace.decision import Decision, Judged, dropped_lately, judge
from router.observe.trace.packet import Asked, Transport, answer_to, build, one_hop_less
from router.observe.trace.probe import Met, OpenSocket, Outcome, fire
from router.observe.trace.questions import Questions
from router.observe.trace.request import Wanted, read
from router.observe.trace.silence import Silence, look
from router.observe.trace.steps import StepKind, TraceRequest, TraceStep
from router.observe.trace.words import Words

MOST_TRACES = 4
DEADLINE_S = 9.0
"""For all of a trace; what is under way then ends within a second."""
_MOST_HOPS = 16
_TRY_S = 0.8
_LAST_S = 1.5
"""How long the last probe waits, after which nothing more is asked."""
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_PER_HOP = 2
_LARGEST_SYN_BYTES = 80
"""IPv6, and TCP with all options that Linux sends."""

Steps = Generator[TraceStep, None, Evidence]
"""Steps as they come; in the end what is found."""


class Table(Protocol):
    """The subnet table."""

    @property
    def error(self) -> str:
        """Why the newest one was refused; empty when it is in force."""


class Cluster(Protocol):
    """What a tracer asks about the cluster."""

    @property
    def tables(self) -> Table:
        """The table's keeper."""

    def silence_of(self, name: str) -> str:
        """Return why a peer is down, as the prober says; empty when it is not."""


class Tracer:
    """Thread-safe; a trace runs in the thread of who reads its steps."""

    def __init__(
        self, engine: Engine, questions: Questions, cluster: Cluster, underlay: Address, overlay_mtu_bytes: int
    ) -> None:
        """`underlay` is this node's address there."""
        self._engine = engine
        self._names = questions.names
        self._questions = questions
        self._underlay = underlay
        self._overlay_mtu_bytes = overlay_mtu_bytes
        self._cluster = cluster
        self._words = Words(questions.names)
        self._lock = threading.Lock()
        self._traced: set[AttachmentKey] = set()

    def trace(self, request: TraceRequest) -> Iterator[TraceStep]:
        """Return the steps as they come; the last is the conclusion.

        Raise Refusal when it cannot be made, and with the first step when too many are made already.
        """
        return self._alone(read(request, self._names), request.dry_run)

    def _alone(self, wanted: Wanted, dry_run: bool) -> Iterator[TraceStep]:
        with self._one(wanted):
            yield from self._trace(wanted, dry_run)

    @contextmanager
    def _one(self, wanted: Wanted) -> Iterator[None]:
        key = wanted.key
        with self._lock:
            if key in self._traced:
                raise Refusal(
                    Kind.EXHAUSTED, f"{wanted.source} is being traced already; wait a few seconds for that to end"
                )
            if len(self._traced) >= MOST_TRACES:
                raise Refusal(Kind.EXHAUSTED, f"{MOST_TRACES} traces run on this node, and no more at once; try again")
            self._traced.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._traced.discard(key)

    def _trace(self, wanted: Wanted, dry_run: bool) -> Iterator[TraceStep]:
        deadline_s, began_ns = time.monotonic() + DEADLINE_S, time.time_ns()
        asked, packet = wanted.asked, build(wanted.asked)
        try:
            judged = judge(self._engine, self._names, packet, wanted.key)
        except KeyError:
            text = f"{wanted.source} has no working interface any more: detach it, and attach it anew"
            yield TraceStep(StepKind.CONCLUSION, text=f"{wanted.source} → {wanted.destination}: {text}")
            return
        yield self._words.decision(judged.decision, asked)
        found = Evidence(
            wanted.source,
            wanted.destination,
            asked,
            self._names.own_name,
            self._overlay_mtu_bytes,
            judged.decision,
            table_error=self._cluster.tables.error,
        )
        found = yield from self._next_router(found, judged, packet, wanted.key)
        if not dry_run:
            found = yield from self._probes(found, wanted, deadline_s)
            found = self._afterwards(found, judged, packet, wanted, began_ns)
        reached, text = conclude(found)
        yield TraceStep(StepKind.CONCLUSION, text=text, reached=reached)

    # What routers say

    def _next_router(self, found: Evidence, judged: Judged, packet: bytes, key: AttachmentKey) -> Steps:
        """Ask the router that comes next, and this one about the way back."""
        owner = self._names.owner(str(found.asked.dst))
        if judged.next_hop is None:
            if judged.decision.reason == DropReason.PEER_DOWN and owner is not None:
                found = replace(found, silence=self._look(owner))
                yield self._words.silence(found.silence)
            return found
        if not judged.next_hop.offload:
            text = "speaks plain Geneve, and answers no questions"
            yield TraceStep(StepKind.DECISION, judged.next_hop.node, text=text)
            return found
        there = self._ask(judged, packet, key)
        if there is None:
            if owner is not None:
                found = replace(found, silence=self._look(owner))
                yield self._words.silence(found.silence)
            return found
        impostor = there.node if there.node != judged.next_hop.node else ""
        found = replace(found, there=replace(there, node=judged.next_hop.node), impostor=impostor)
        yield self._words.decision(there, found.asked)
        try:
            back = judge(self._engine, self._names, answer_to(packet), judged.next_hop.endpoint).decision
        except KeyError:  # it has just left the table
            return found
        # An answer is as long as it likes to be.
        if back.refused and back.reason not in (DropReason.TOO_BIG, DropReason.TTL_EXPIRED):
            found = replace(found, back=back)
            yield self._words.decision(back, found.asked, back=True)
        return found

    def _ask(self, judged: Judged, packet: bytes, key: AttachmentKey) -> Decision | None:
        assert judged.next_hop is not None
        asked = packet if key == NODE_KEY else one_hop_less(packet)  # node and router count as one hop
        return self._questions.ask(judged.next_hop.endpoint, asked)

    def _look(self, node: Node) -> Silence:
        return look(self._engine, self._underlay, node, self._cluster.silence_of(node.name))

    # What a real one meets

    def _probes(self, found: Evidence, wanted: Wanted, deadline_s: float) -> Steps:
        open_socket = _opener(wanted.netns_path)
        try:
            if wrong := _interface(open_socket, wanted.if_name, wanted.source):
                found = replace(found, interface=wrong)
                yield TraceStep(StepKind.PROBE, node=found.node, text=wrong)
                return found
            # What is dropped here in silence tells nothing hop by hop.
            hops = 0 if found.here.verdict is VerdictKind.DROP else _MOST_HOPS
            for outcome in _sweep(found.asked, hops, open_socket, deadline_s):
                found = replace(found, outcomes=(*found.outcomes, outcome))
                yield self._words.probe(outcome, found.asked)
            final = found.outcomes[-1]
            arrived = final.met in (Met.ANSWER, Met.REFUSED)
            if found.asked.transport is Transport.TCP and found.asked.packet_bytes > _LARGEST_SYN_BYTES and arrived:
                sized = fire(replace(found.asked, transport=Transport.ICMP), _MOST_HOPS, _LAST_S, open_socket)
                found = replace(found, sized=sized)
                yield self._words.probe(sized, found.asked, f"ICMP of {found.asked.packet_bytes} bytes: ")
            if found.asked.transport is not Transport.ICMP and final.met is Met.SILENCE:
                echo = fire(replace(found.asked, transport=Transport.ICMP), _MOST_HOPS, 1.0, open_socket)
                found = replace(found, echo=echo)
                yield self._words.probe(echo, found.asked, "ICMP instead: ")
        except Refusal as refusal:  # its namespace is gone
            found = replace(found, interface=refusal.message)
            yield TraceStep(StepKind.PROBE, node=found.node, text=refusal.message)
        return found

    def _afterwards(self, found: Evidence, judged: Judged, packet: bytes, wanted: Wanted, began_ns: int) -> Evidence:
        """Look what was dropped of the probes, where they came to nothing."""
        if not found.outcomes or found.outcomes[-1].met is not Met.SILENCE:
            return found
        found = replace(
            found,
            dropped_here=dropped_lately(self._engine, packet, wanted.key, began_ns),
            dropped_back=dropped_lately(self._engine, answer_to(packet), None, began_ns),
        )
        if wanted.far_netns_path:
            try:
                wrong = _interface(_opener(wanted.far_netns_path), wanted.far_if_name, wanted.destination)
            except Refusal as refusal:
                wrong = refusal.message
            return replace(found, far_interface=wrong)
        if judged.next_hop is not None and found.there is not None:
            again = self._ask(judged, packet, wanted.key)
            return found if again is None else replace(found, there=replace(again, node=found.there.node))
        return found


def _opener(netns_path: str) -> OpenSocket:
    return lambda family, kind, protocol: netns.inside(netns_path, lambda: socket.socket(family, kind, protocol))


def _interface(open_socket: OpenSocket, if_name: str, pod: str) -> str:
    """Return what is wrong with an interface in a namespace; empty when it is up."""
    with open_socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as control:
        try:
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s24x", if_name.encode()))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return f"interface {if_name} of {pod} is gone: detach the Pod, and attach it anew"
            return ""
    if not struct.unpack_from("=H", answer, 16)[0] & _IFF_UP:
        return f"interface {if_name} of {pod} is down: set it up (`ip link set {if_name} up` in it), or attach the Pod anew"
    return ""


def _sweep(asked: Asked, hops: int, open_socket: OpenSocket, deadline_s: float) -> Iterator[Outcome]:
    """Yield what probes of one hop, two hops … meet, until one arrives or it is clear that none will."""
    silent = 0
    for hop in range(1, hops + 1):
        outcome = Outcome(hop, Met.SILENCE)
        for _ in range(_PER_HOP):
            if time.monotonic() + _LAST_S > deadline_s:
                break
            outcome = fire(asked, hop, _TRY_S, open_socket)
            if outcome.met is not Met.SILENCE:
                break
        yield outcome
        silent = silent + 1 if outcome.met is Met.SILENCE else 0
        if outcome.last:
            return
        if silent >= 2 or time.monotonic() + _LAST_S > deadline_s:
            break
    # Whoever is silent about a hop limit may answer what arrives.
    yield fire(asked, 64, _LAST_S, open_socket)
