"""Counters as they go from a router to its successor: plain lists, JSON."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from router.engine.interface import EngineCounters
from router.model import AttachmentKey, DropReason, Endpoint, Tally


def encode(counters: EngineCounters) -> dict[str, Any]:
    """Return what `decode` makes the same counters of."""
    return {
        "attachments": [[*_key(key), _row(tally)] for key, tally in counters.attachments.items()],
        "peers": [
            [str(each.address), each.port, _row(tally)] for each, tally in counters.peers.items() if any_of(tally)
        ],
        "strangers": _row(counters.strangers),
        "gone": _row(counters.gone),
        "icmp_suppressed": counters.icmp_suppressed,
        "socket_drops": counters.socket_drops,
        "restarts": counters.restarts,
        "batches": list(counters.batches),
    }


def decode(found: dict[str, Any]) -> EngineCounters:
    """Return the counters. Raise ValueError, KeyError or TypeError when they are none."""
    return EngineCounters(
        attachments={AttachmentKey(sandbox, name): _tally(row) for sandbox, name, row in found["attachments"]},
        peers={Endpoint(ip_address(address), _whole(port)): _tally(row) for address, port, row in found["peers"]},
        strangers=_tally(found["strangers"]),
        gone=_tally(found["gone"]),
        icmp_suppressed=_whole(found["icmp_suppressed"]),
        socket_drops=_whole(found["socket_drops"]),
        restarts=_whole(found["restarts"]),
        batches=tuple(map(_whole, found["batches"])),
    )


def any_of(tally: Tally) -> bool:
    """Tell whether anything was counted: of a hundred thousand peers few are heard of."""
    return tally != Tally()


def _key(key: AttachmentKey) -> tuple[str, str]:
    return key.sandbox_id, key.if_name


_NUMBERS = (
    "received_packets", "received_bytes", "received_frames", "delivered_packets", "tunnelled_packets", "sent_packets",
    "sent_bytes", "icmp_errors", "control_packets",
)  # fmt: skip


def _row(tally: Tally) -> list[Any]:
    return [*(getattr(tally, name) for name in _NUMBERS), {str(why): count for why, count in tally.dropped.items()}]


def _tally(row: list[Any]) -> Tally:
    *numbers, dropped = row
    # A reason that this version does not know any more is as little anybody's as ENGINE_FAILED.
    known = {why.value for why in DropReason}
    tally = Tally()
    for name, number in zip(_NUMBERS, numbers, strict=True):
        setattr(tally, name, _whole(number))
    for why, count in dict(dropped).items():
        tally.drop(DropReason(why) if why in known else DropReason.ENGINE_FAILED, _whole(count))
    return tally


def _whole(number: object) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{number!r} is no count")
    return number
