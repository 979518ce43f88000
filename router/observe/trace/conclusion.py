"""What a trace means: one sentence that a person understands, with what to do. Pure.

it arrived                              → so say that, and what is worth knowing
it did not leave the Pod                → interface, route, firewall there
a router refuses it                     → why, and what to do: this one, the next, the way back
it met something on the way             → too big, unreachable, round and round
nothing came back                       → where it was last seen, and what was dropped meanwhile
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from router.model import DropReason
from router.observe.reasons import REASONS
from router.observe.trace.decision import Decision
from router.observe.trace.packet import Asked, Transport
from router.observe.trace.probe import Met, Outcome
from router.observe.trace.silence import Silence

_ARRIVED = frozenset((Met.ANSWER, Met.REFUSED))
_PROHIBITED = {4: frozenset((9, 10, 13)), 6: frozenset((1, 5))}
"""Codes of "destination unreachable" by which firewalls say no (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a trace found."""

    source: str
    destination: str
    asked: Asked
    node: str
    """Whose router was asked first."""
    overlay_mtu_bytes: int
    here: Decision
    there: Decision | None = None
    """Of the next router; None when there is none, or it did not answer."""
    silence: Silence | None = None
    """Of the next router, when it did not answer."""
    impostor: str = ""
    """What the next router calls itself, when that is not what this node's table says."""
    back: Decision | None = None
    """Of this router about an answer, when it would refuse it."""
    interface: str = ""
    """What is wrong with the source's."""
    far_interface: str = ""
    """What is wrong with the destination's, when it is on this node."""
    outcomes: tuple[Outcome, ...] = ()
    """Of the real probes in the order of hops; none in a dry run."""
    echo: Outcome | None = None
    """Of a ping of the destination, when it did not answer what was asked."""
    sized: Outcome | None = None
    """Of an ICMP packet of the size that a TCP segment was said to have."""
    dropped_here: str = ""
    """Why this router dropped packets of this flow meanwhile; of the next one, `there.reason`."""
    dropped_back: str = ""
    """Why this router dropped answers meanwhile."""
    table_error: str = ""
    """Why the newest subnet table was refused."""

    @property
    def way(self) -> str:
        """Say from where to where."""
        return f"{self.source} → {self.to}"

    @property
    def to(self) -> str:
        """Name the destination: as people call it, where somebody knows, and as it was asked for."""
        return self.destination if self.name == self.destination else f"{self.name} ({self.destination})"

    @property
    def name(self) -> str:
        """Name the destination in short."""
        holder = next((each.target for each in (self.there, self.here) if each is not None and each.holder), "")
        return holder or self.destination


def conclude(found: Evidence) -> tuple[bool, str]:
    """Return whether the packet arrives, and the sentence."""
    final = found.outcomes[-1] if found.outcomes else None
    if found.sized is not None and found.sized.met is not Met.ANSWER and final is not None and final.met in _ARRIVED:
        return False, _sized(found, found.sized)
    if final is not None and final.met in _ARRIVED:
        return True, _arrived(found, final)
    wrong = _at_home(found, final) or _refused(found) or _on_the_way(found, final) or _vanished(found, final)
    if wrong:
        return False, wrong
    return True, _would_arrive(found)


# It arrived


def _arrived(found: Evidence, final: Outcome) -> str:
    """Say how it went."""
    hops = sum(each.met is Met.HOP for each in found.outcomes)
    took = f", {hops} router{'s' if hops != 1 else ''} on the way, {(final.rtt_s or 0.0) * 1000:.2f} ms there and back"
    said = f"{found.way} works{took}"
    if final.met is Met.REFUSED:
        where = f"nothing listens on {found.asked.what} there (or a firewall there refuses it)"
        return f"{found.way}: the packet arrives{took}, but {where}; look at the program in {found.name}"
    mtu_bytes = _mtu_bytes(found)
    if mtu_bytes and mtu_bytes < found.overlay_mtu_bytes:
        return (
            f"{said}; but the path carries only {mtu_bytes} bytes of the overlay MTU {found.overlay_mtu_bytes}: {_HOLE}"
        )
    return f"{said}{f'; packets may have {mtu_bytes} bytes' if mtu_bytes else ''}"


def _would_arrive(found: Evidence) -> str:
    mtu_bytes = _mtu_bytes(found)
    if found.here.outside:
        return f"{found.way} would leave the cluster at {found.node}; what lies beyond only a real probe tells (no --dry-run)"
    size = f", in packets of up to {mtu_bytes} bytes" if mtu_bytes else ""
    return f"{found.way} would arrive{size}: every router on the way lets it pass (nothing was sent)"


def _mtu_bytes(found: Evidence) -> int:
    sizes = [each.mtu_bytes for each in (found.here, found.there) if each is not None and each.mtu_bytes]
    return min(sizes, default=0)


_HOLE = "the underlay between the nodes carries less than its interfaces say (an MTU hole); mend it there. Pods are told, and send less"


def _sized(found: Evidence, sized: Outcome) -> str:
    connects = f"{found.way}: {found.asked.what} connects, but"
    if sized.met is Met.TOO_BIG:
        return f"{connects} a packet of {found.asked.packet_bytes} bytes is too big: the path carries {sized.mtu_bytes}; {_HOLE}"
    if sized.met is Met.FAILED:
        return f"{connects} {_failed(found, sized)}"
    return (
        f"{connects} an ICMP packet of {found.asked.packet_bytes} bytes gets no answer: large packets get lost on the way (an "
        "MTU hole that was not noticed yet, see `podwire peers`), or a firewall drops ICMP"
    )


# It did not leave


def _at_home(found: Evidence, final: Outcome | None) -> str:
    if found.interface:
        return f"{found.way}: {found.interface}"
    if final is not None and final.met is Met.FAILED:
        return f"{found.way}: {_failed(found, final)}"
    return ""


def _failed(found: Evidence, final: Outcome) -> str:
    """Say why the source's own kernel did not send it."""
    pod, dst = found.source, found.asked.dst
    if final.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        family = "" if dst.version == 4 else "-6 "
        return (
            f"{pod} has no route to {dst}: put its default route back (`ip {family}route add default dev IFACE` in it), or "
            "detach the Pod and attach it anew"
        )
    if final.errno == errno.EMSGSIZE:
        size = f" carries {final.mtu_bytes} bytes and" if final.mtu_bytes else ""
        return f"the interface of {pod}{size} takes no packet of {found.asked.packet_bytes} that must not be cut: send less"
    if final.errno in (errno.EPERM, errno.EACCES):
        return f"a firewall in {pod} itself does not let it send {found.asked.what} to {dst}: look at `nft list ruleset` in it"
    if final.errno == errno.EADDRNOTAVAIL:
        return f"{pod} does not have its address {found.asked.src} any more: detach it, and attach it anew"
    return f"{pod} could not send it: {os.strerror(final.errno)}"


# A router refuses it


def _refused(found: Evidence) -> str:
    here, there = found.here, found.there
    if found.silence is not None:
        return f"{found.way}: {found.silence}"
    if here.refused:
        return f"{found.way}: {_refusal(found, here, first=True)}"
    if there is not None and found.impostor:
        return (
            f"{found.way}: the router that the table of {found.node} has for {there.node} calls itself {found.impostor}: two nodes "
            f"have one endpoint, or the table is wrong; correct the endpoint of {there.node} in it"
        )
    if there is not None and there.refused:
        return f"{found.way}: {_refusal(found, there, first=False)}"
    if found.back is not None:
        return (
            f"{found.way}: it would arrive, but the router of {found.node} drops the answer ({found.back.reason}): the tables "
            f"of {found.node} and {here.target} differ; compare `podwire subnets list` on both"
        )
    return ""


def _refusal(found: Evidence, decision: Decision, first: bool) -> str:
    asked, node = found.asked, decision.node
    reason = decision.reason
    if reason == DropReason.TOO_BIG:
        limit_bytes = decision.mtu_bytes
        said = f"{asked.packet_bytes} bytes are too big for the way from {node}, which carries {limit_bytes}"
        return f"{said}: {_HOLE}" if limit_bytes < found.overlay_mtu_bytes and first else f"{said}: send less"
    if reason == DropReason.SPOOFED_SOURCE and not first:
        return (
            f"the router of {node} drops it ({reason}): its table does not give {asked.src} to {found.node}, so the tables of "
            f"{found.node} and {node} differ; compare `podwire subnets list` on both"
        )
    if reason == DropReason.WRONG_NODE:
        return (
            f"the router of {node} refuses it ({reason}): {asked.dst} is not in its subnets, so the tables of {found.node} and "
            f"{node} differ; compare `podwire subnets list` on both"
        )
    if reason == DropReason.NO_ATTACHMENT:
        return f"the router of {node} refuses it ({reason}): no Pod there holds {asked.dst}; it is gone, or was never attached (`podwire pods` on {node})"
    if reason == DropReason.NO_ROUTE:
        table = f"; the newest table was refused: {found.table_error}" if found.table_error else ""
        return (
            f"the router of {node} refuses it ({reason}): no node owns {asked.dst}; see `podwire routes` there{table}"
        )
    if reason in REASONS:
        meaning, advice = REASONS[DropReason(reason)]
        return f"the router of {node} drops it ({reason}): {meaning}. {advice}"
    return f"the router of {node} drops it ({reason or 'it does not say why'})"


# It met something


def _on_the_way(found: Evidence, final: Outcome | None) -> str:
    if final is None:
        return ""
    if final.met is Met.TOO_BIG:
        size = f"which carries {final.mtu_bytes}" if final.mtu_bytes else "which does not say what it carries"
        return f"{found.way}: {found.asked.packet_bytes} bytes are too big for the link behind {final.address}, {size}: send less"
    if final.met is Met.UNREACHABLE:
        if final.code in _PROHIBITED[found.asked.dst.version]:
            return f"{found.way}: a firewall at {final.address} refuses {found.asked.what}: change its rules"
        return f"{found.way}: {final.address} says that {found.asked.dst} is unreachable (ICMP code {final.code}): look at its routes"
    met = [each.address for each in found.outcomes if each.met is Met.HOP]
    again = next((at for at, address in enumerate(met) if address in met[:at]), None)
    if again is not None:
        between = " and ".join(dict.fromkeys(str(address) for address in met[met.index(met[again]) : again]))
        return f"{found.way}: it goes round between {between} until its hop limit is used up (a routing loop): mend the routes there"
    return ""


# Nothing came back


def _vanished(found: Evidence, final: Outcome | None) -> str:
    if final is None:
        return ""
    if found.far_interface:
        return f"{found.way}: {found.far_interface}"
    for node, reason, what in (
        (found.node, found.dropped_here, "it"),
        (found.there.node if found.there else "", found.there.reason if found.there else "", "it"),
        (found.node, found.dropped_back, "the answer"),
    ):
        if reason in REASONS:
            meaning, advice = REASONS[DropReason(reason)]
            return f"{found.way}: the router of {node} drops {what} ({reason}): {meaning}. {advice}"
    return f"{found.way}: {_lost(found)}"


def _lost(found: Evidence) -> str:
    asked, hops = found.asked, [each for each in found.outcomes if each.met is Met.HOP]
    if found.here.outside:
        last = f"behind {hops[-1].address}" if hops else f"behind {found.node}"
        return f"it leaves the cluster at {found.node}, and nothing came back from {last}: look for a firewall or a missing route there"
    if found.echo is not None and found.echo.met is Met.ANSWER:
        pod = found.name
        if asked.transport is Transport.TCP:
            return (
                f"{pod} answers pings, but nothing on {asked.what}: a firewall in {pod} drops it (`nft list ruleset` in it), "
                "or its queue of connections is full"
            )
        return f"{pod} answers pings, but nothing on {asked.what}: a program there that has nothing to say, or a firewall in {pod}"
    routers = [found.node] + ([found.there.node] if found.there is not None else [])
    if not hops:
        return (
            f"nothing came back, not even from the router of {found.node}: a firewall in {found.source} drops what it sends or "
            f"gets, or its traffic takes another interface; look in it with `ip route get {asked.dst}`"
        )
    if len(hops) < len(routers):
        return (
            f"it gets lost between {routers[len(hops) - 1]} and {routers[len(hops)]}: run `podwire why {found.node}` on "
            f"{routers[len(hops)]}, and look for a firewall on the underlay"
        )
    return (
        f"it was handed to {found.name} by the router of {routers[-1]}, and no answer came: its interface is down, or a "
        f"firewall in it drops {asked.what}; run `podwire why {found.asked.dst}` on {routers[-1]}"
    )
