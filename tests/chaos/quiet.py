"""The end of a run: everything is repaired, everything reaches everything, what was lost is explained."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shim.client import ClientError
from shim.lab.errors import LabError
from tests.chaos.excuses import losses, unexplained
from tests.chaos.log import Log
from tests.chaos.oracle import Oracle
from tests.chaos.rig import SETTLE_S, Rig

_RESEND_S = 0.3
_REACH_TIMEOUT_S = 30.0
"""Until it is given up; what is promised is SETTLE_S."""
_TCP_TIMEOUT_S = 30.0
"""A connection that was cut off for 6 s tries again 12 s after the last time, at the latest (RFC 6298 section 5.5)."""
_LEASE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Explained:
    """What became of datagrams and pings."""

    sent: int
    lost: int
    duplicated: int
    outside_sent: int
    """When nothing was excused."""
    outside_lost: int
    allowed: int
    """By counters."""


def settle(rig: Rig, log: Log) -> str:
    """Repair everything, and wait until every Pod reaches every Pod."""
    began_s = time.monotonic()
    try:
        rig.repair()
    except LabError as error:
        log.complain("everything reaches everything", f"it cannot be repaired: {error}")
        return "not repaired"
    repaired_s = time.monotonic()
    uids = [who for _, who in rig.places.values()]
    wanted = {(one.uid, other.uid, family) for one in uids for other in uids if one is not other for family in (4, 6)}
    missing = wanted
    while missing and time.monotonic() < repaired_s + _REACH_TIMEOUT_S:
        rig.traffic.send_reach(1, sorted(missing))
        time.sleep(_RESEND_S)
        missing = wanted - rig.traffic.reached(1)
        took_s = time.monotonic() - repaired_s
        if missing and took_s > SETTLE_S and not log.broken["everything reaches everything"]:
            some = ", ".join(f"{one} → {other} by IPv{family}" for one, other, family in sorted(missing)[:6])
            log.complain(
                "everything reaches everything",
                f"{took_s:.1f} s after the repair {len(missing)} of {len(wanted)} ways are missing: {some}",
            )
    took_s = time.monotonic() - repaired_s
    return f"{len(wanted)} ways in {took_s:.1f} s, once all was repaired ({repaired_s - began_s:.1f} s)"


def drain(rig: Rig, log: Log) -> float:
    """End the traffic; return when. Every TCP connection must have carried all that was put into it."""
    deadline_s = time.monotonic() + _TCP_TIMEOUT_S
    while missing := _not_connected(rig):
        if time.monotonic() > deadline_s:
            log.complain(
                "TCP survives",
                f"no connection of {missing[:6]} after {_TCP_TIMEOUT_S:.0f} s; refused were {dict(rig.traffic.refused)}",
            )
            break
        time.sleep(0.2)
    held_s = time.monotonic()
    rig.traffic.hold()
    deadline_s = held_s + _TCP_TIMEOUT_S
    while stuck := [made for made in list(rig.traffic.connections.values()) if not made.ended and not made.in_order]:
        if time.monotonic() > deadline_s:
            for made in stuck[:5]:
                idle_s = time.monotonic() - made.moved_s
                log.complain(
                    "TCP survives",
                    f"{made} received {made.received_bytes} of {made.sent_bytes} bytes, the last {idle_s:.1f} s ago",
                )
            break
        time.sleep(0.2)
    time.sleep(max(0.0, held_s + 2.5 - time.monotonic()))
    return held_s


def _not_connected(rig: Rig) -> list[str]:
    there = {
        (made.src.uid, made.kind) for made in list(rig.traffic.connections.values()) if made.opened_s and not made.ended
    }
    return [
        f"{kind} of {who.uid}"
        for _, who in rig.places.values()
        for kind in ("stream", "ask")
        if (who.uid, kind) not in there
    ]


def leases(rig: Rig, log: Log) -> str:
    """Wait until every router holds its subnets for sure, and no table is refused."""
    deadline_s = time.monotonic() + _LEASE_TIMEOUT_S
    for node in rig.lab.nodes:
        why = "it does not answer"
        while True:
            try:
                with node.client() as client:
                    status = client.status()
                why = "no lease" if status.source is None or status.source.lease is None else status.source.lease.why
                if not why and status.source and status.source.connected and not status.table_error:
                    break
                why = why or (status.source.error if status.source else "") or status.table_error
            except ClientError as error:
                why = str(error)
            if time.monotonic() > deadline_s:
                log.complain(
                    "every node holds its subnets", f"{node.name}, {_LEASE_TIMEOUT_S:.0f} s after the repair: {why}"
                )
                break
            time.sleep(0.2)
    return "all held"


def explain(rig: Rig, oracle: Oracle, log: Log, held_s: float) -> Explained:
    """Hold each flow's losses, and the sum of them, to what counters allow."""
    drops = rig.traffic.drops()
    found = losses(rig.traffic.datagrams.values(), rig.excuses, held_s)
    for wrong in unexplained(found, oracle.history, log.began_s):
        log.complain("every loss explained", wrong)
    outside = sum(len(loss.outside_lost) for loss in found)
    allowed = (
        oracle.accounts.everything()
        + sum(rig.relay_lost.values())
        + sum(rig.relay_missed.values())
        + sum(drops.values())
    )
    if outside > allowed:
        log.complain(
            "every loss explained",
            f"{outside} were lost in all when nothing excused it, and counters explain {allowed} at most",
        )
    duplicated = sum(loss.flow.duplicates for loss in found)
    if duplicated > rig.relay_duplicated:
        log.complain("nothing comes twice", f"{duplicated} came twice, and links doubled {rig.relay_duplicated} frames")
    return Explained(
        sum(loss.sent for loss in found), sum(loss.lost for loss in found), duplicated,
        sum(loss.outside_sent for loss in found), outside, allowed,
    )  # fmt: skip
