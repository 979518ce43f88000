"""The steps of a trace, said in a line each."""

from __future__ import annotations

import os

from router.errors import Refusal
from router.model import Address, DropReason, VerdictKind
from router.observe.names import Names
from router.observe.reasons import REASONS
from router.observe.trace.decision import Decision
from router.observe.trace.packet import Asked, Transport
from router.observe.trace.probe import Met, Outcome
from router.observe.trace.silence import Silence
from router.observe.trace.steps import StepKind, TraceStep


class Words:
    """Knows who has which address."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def decision(self, found: Decision, asked: Asked, *, back: bool = False) -> TraceStep:
        """Say what a router decides; `back`: about the answer."""
        return TraceStep(
            StepKind.DECISION,
            found.node,
            found.verdict,
            found.reason if found.refused else "",
            found.target,
            found.mtu_bytes,
            text=("the answer: " if back else "") + _decision(found, asked),
        )

    def silence(self, found: Silence | None) -> TraceStep:
        """Say that a router did not answer, and what is known of it."""
        assert found is not None
        known = f" ({found.why})" if found.why else ""
        return TraceStep(StepKind.DECISION, found.node, text=f"{found}{known}")

    def probe(self, found: Outcome, asked: Asked, first: str = "") -> TraceStep:
        """Say what a probe met."""
        return TraceStep(
            StepKind.PROBE,
            self._node_of(found.address),
            hop=found.hop,
            address=str(found.address or ""),
            rtt_s=found.rtt_s,
            mtu_bytes=found.mtu_bytes,
            text=first + _met(found, asked if not first else Asked(asked.src, asked.dst)),
        )

    def _node_of(self, address: Address | None) -> str:
        """Return the node on which an address of the overlay is; empty for others."""
        if address is None:
            return ""
        try:
            here = self._names.attachment(str(address)) is not None
        except Refusal:  # a Pod is called like another's address: here they are all the same
            here = True
        if here:
            return self._names.own_name
        owner = self._names.owner(str(address))
        return owner.name if owner is not None else ""


def _decision(found: Decision, asked: Asked) -> str:
    if found.verdict is None:
        return "it does not say"
    if found.refused:
        told = ", and tells the sender" if found.verdict is VerdictKind.REJECT else ""
        if found.reason in REASONS:
            return f"drops it{told}: {REASONS[DropReason(found.reason)].meaning}"
        return f"drops it{told}: {found.reason}"
    cut = " in fragments" if found.mtu_bytes and asked.packet_bytes > found.mtu_bytes else ""
    late = f"; packets of this flow were dropped lately: {found.reason}" if found.reason else ""
    if found.verdict is VerdictKind.TUNNEL:
        return f"sends it{cut} through the tunnel to {found.target}{late}"
    if found.outside:
        return f"hands it{cut} to the kernel of {found.node}, to leave the cluster{late}"
    return f"hands it{cut} to {found.target}{late}"


def _met(found: Outcome, asked: Asked) -> str:
    if found.met is Met.HOP:
        return "passes it on"
    if found.met is Met.ANSWER:
        return {Transport.ICMP: "echo reply", Transport.TCP: "accepts the connection", Transport.UDP: "answers"}[
            asked.transport
        ]
    if found.met is Met.REFUSED:
        return "refuses the connection (RST)" if asked.transport is Transport.TCP else "nothing listens on that port"
    if found.met is Met.TOO_BIG:
        return f"too big: the next link carries {found.mtu_bytes or '?'} bytes"
    if found.met is Met.UNREACHABLE:
        return f"unreachable (ICMP code {found.code})"
    if found.met is Met.FAILED:
        carries = f" (its link carries {found.mtu_bytes} bytes)" if found.mtu_bytes else ""
        return f"it did not leave the Pod: {os.strerror(found.errno)}{carries}"
    return "no answer"
