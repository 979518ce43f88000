"""What is wrong with the links between stations of the underlay: cut, or impaired; kept in the ledger, made so in the kernel.

A pair that is cut the bridge drops. A pair that is impaired it drops too, and the relay carries instead, frame by frame: so
senders on such pairs are kept from handing super-frames to the device (gso_max_segs), or one loss would cost forty frames.
What is in the ledger is wanted; whatever a crash left is put right by the next change.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shim.lab import bridge, netns
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger, write_whole
from shim.lab.plan import LabPlan, Station
from shim.lab.relay.ask import ask
from shim.lab.relay.faults import NO_FAULTS, Faults
from shim.lab.relay.line import LineCounts
from shim.lab.relay.switch import Pair
from shim.lab.service import Service

REST = "rest"
"""As a group: everybody who is not in the other one."""
Group = str | Iterable[str]
"""Stations: names, or names with commas between them."""
_RELAY_TIMEOUT_S = 30.0
_ANY_SEGMENTS = 65535


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two stations, as it is wanted."""

    source: str
    target: str
    cut: bool = False
    faults: Faults = NO_FAULTS
    """Not felt while it is cut."""
    seed: int = 0

    @property
    def pair(self) -> Pair:
        """Its ends."""
        return self.source, self.target


@dataclass(frozen=True, slots=True)
class LinkState:
    """A direction that is not as good as new, and what was counted there."""

    link: Link
    cut_frames: int
    """Dropped since it was cut."""
    counts: LineCounts | None
    """Of the faults; None while none is felt, or the relay is dead."""


@dataclass(frozen=True, slots=True)
class LinksState:
    """Everything that is wrong with links."""

    links: tuple[LinkState, ...]
    relay_pid: int | None
    missed: Mapping[str, int]
    """Frames the relay had no room for, by the station they came from: it was too slow."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "links": [
                {
                    "source": found.link.source,
                    "target": found.link.target,
                    "cut": found.link.cut,
                    "cut_frames": found.cut_frames,
                    "faults": found.link.faults.to_json(),
                    "seed": found.link.seed,
                    "counts": None
                    if found.counts is None
                    else {name: getattr(found.counts, name) for name in LineCounts.__slots__},
                }
                for found in self.links
            ],
            "relay_pid": self.relay_pid,
            "missed": dict(self.missed),
        }


class Links:
    """The links of a lab. Whoever changes them holds the ledger's lock."""

    def __init__(self, ledger: Ledger, plan: LabPlan) -> None:
        self._ledger = ledger
        self.plan = plan
        self._underlay = netns.path_of(plan.underlay_netns)
        self._path = ledger.path / "links.json"
        self._socket = ledger.path / "relay" / "relay.sock"
        self._relay = Service("the relay", ledger.path / "relay", "relay", self._underlay)

    def partition(self, left: Group, right: Group, *, one_way: bool = False) -> list[Pair]:
        """Cut every link between two groups, or only that from the first to the second. Return what is cut by this."""
        pairs = self._pairs(left, right, one_way)
        links = self.read()
        self._become(links | {pair: replace(links.get(pair, Link(*pair)), cut=True) for pair in pairs})
        return pairs

    def impair(self, left: Group, right: Group, faults: Faults, *, one_way: bool = False, seed: int = 0) -> list[Pair]:
        """Give every link between two groups these faults in place of those it had. Return which."""
        pairs = self._pairs(left, right, one_way)
        links = self.read()
        self._become(links | {pair: replace(links.get(pair, Link(*pair)), faults=faults, seed=seed) for pair in pairs})
        return pairs

    def heal(self, left: Group = REST, right: Group = REST, *, only_partitions: bool = False) -> list[Pair]:
        """Make the links between two groups as good as new, all without groups; return which were not."""
        links = self.read()
        healed = set(links)
        if not (left == REST and right == REST):
            healed &= set(self._pairs(left, right, one_way=False))
        kept = {pair: link for pair, link in links.items() if pair not in healed}
        if only_partitions:
            healed = {pair for pair in healed if links[pair].cut}
            kept |= {pair: replace(link, cut=False) for pair, link in links.items() if pair not in kept}
        self._become(kept)
        return sorted(healed)

    def forget(self, name: str) -> None:
        """Let go of the links of a station that leaves."""
        links = self.read()
        kept = {pair: link for pair, link in links.items() if name not in pair}
        if kept != links:
            self._become(kept)

    def kill9(self) -> None:
        """Kill the relay, if there is one: impaired links carry nothing then."""
        self._relay.end(0)

    def read(self) -> dict[Pair, Link]:
        """Return every direction that is not as good as new, by its ends."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        links = [Link(**each | {"faults": Faults.from_json(each["faults"])}) for each in found]
        return {link.pair: link for link in links}

    def state(self) -> LinksState:
        """Return what is wrong, and what was counted."""
        links = self.read()
        dropped = bridge.read(self._underlay) if links else {bridge.CUT: {}}
        counts: dict[Pair, LineCounts] = {}
        missed: dict[str, int] = {}
        if answer := self._ask_counts():
            counts = {(line["source"], line["target"]): LineCounts(**line["counts"]) for line in answer["lines"]}
            missed = answer["missed"]
        states = [LinkState(link, dropped[bridge.CUT].get(pair, 0), counts.get(pair)) for pair, link in links.items()]
        return LinksState(tuple(states), self._relay.pid, missed)

    @property
    def _stations(self) -> Mapping[str, Station]:
        return {station.name: station for station in self.plan.stations}

    def _ask_counts(self) -> dict[str, Any] | None:
        try:
            return ask(self._socket, {}) if self._relay.pid is not None else None
        except LabError:
            if self._relay.pid is None:  # it has ended meanwhile
                return None
            raise

    def _become(self, links: Mapping[Pair, Link]) -> None:
        """Write down what is wanted and make it so. No frame goes both ways, by the bridge and by the relay."""
        links = {pair: links[pair] for pair in sorted(links) if links[pair].cut or links[pair].faults}
        before = bridge.read(self._underlay)
        was_cut, was_relayed = set(before[bridge.CUT]), set(before[bridge.RELAYED])
        cut = {pair for pair, link in links.items() if link.cut}
        relayed = links.keys() - cut
        content = [
            {
                "source": link.source,
                "target": link.target,
                "cut": link.cut,
                "faults": link.faults.to_json(),
                "seed": link.seed,
            }
            for link in links.values()
        ]
        write_whole(self._path, json.dumps(content, indent=1))

        senders, old_senders = ({source for source, _ in pairs} for pairs in (relayed, was_relayed))
        self._set_segments(senders - old_senders, 1)
        if relayed:
            self._need_relay()
        bridge.add(self._underlay, {bridge.CUT: cut - was_cut, bridge.RELAYED: relayed - was_relayed})
        if self._relay.pid is not None:
            ask(self._socket, {"lines": [self._line(links[pair]) for pair in sorted(relayed)], "cut": sorted(cut)})
        self._set_segments(old_senders - senders, _ANY_SEGMENTS)
        bridge.delete(self._underlay, {bridge.CUT: was_cut - cut, bridge.RELAYED: was_relayed - relayed})
        if not relayed:
            self._relay.end(grace_s=0)

    def _line(self, link: Link) -> dict[str, Any]:
        return {
            "source": link.source,
            "target": link.target,
            "mac": self._stations[link.target].mac.replace(":", ""),
            "faults": link.faults.to_json(),
            "seed": link.seed,
        }

    def _need_relay(self) -> None:
        if self._relay.pid is None:
            self._socket.unlink(missing_ok=True)
            self._relay.start([sys.executable, "-m", "shim.lab.relay", str(self._socket)])
        deadline_s = time.monotonic() + _RELAY_TIMEOUT_S
        while not self._socket.exists():
            if self._relay.pid is None:
                raise LabError(f"the relay ended at its start: {self._relay.log_tail()}")
            if time.monotonic() > deadline_s:
                raise LabError(f"the relay does not serve after {_RELAY_TIMEOUT_S:.0f} s: {self._relay.log_tail()}")
            time.sleep(0.01)

    def _set_segments(self, names: Iterable[str], most: int) -> None:
        """Set how many segments a super-frame may have that a station hands to its device; with 1 the kernel cuts it before.

        net/core/dev.c gso_features_check(). Checksums are left to the device all the same.
        """
        for name in sorted(set(names) & self._stations.keys()):
            netns.ip_batch(netns.path_of(self._stations[name].netns), [f"link set dev eth0 gso_max_segs {most}"])

    def _pairs(self, left: Group, right: Group, one_way: bool) -> list[Pair]:
        ends = [_names(group) for group in (left, right)]
        ends = [
            sorted(self._stations.keys() - other) if group == [REST] else group
            for group, other in ((ends[0], ends[1]), (ends[1], ends[0]))
        ]
        for group in ends:
            for name in group:
                if name not in self._stations:
                    known = ", ".join(self._stations)
                    raise LabError(f"lab {self._ledger.name} has nobody {name!r} on the underlay (it has: {known})")
        if both := set(ends[0]) & set(ends[1]):
            raise LabError(f"{', '.join(sorted(both))} cannot be at both ends of a link")
        pairs = {(one, other) for one in ends[0] for other in ends[1]}
        return sorted(pairs if one_way else pairs | {(other, one) for one, other in pairs})


def _names(group: Group) -> list[str]:
    names = group.split(",") if isinstance(group, str) else group
    return [name.strip() for name in names if name.strip()]
