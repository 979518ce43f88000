"""What is wrong with the links between stations of the underlay: cut, or impaired; kept in the ledger, made so in the kernel.

A pair that is cut the bridge drops. A pair that is impaired it drops too, and the relay carries instead, frame by frame: so
senders on such pairs are kept from handing super-frames to the device (gso_max_segs), or one loss would cost forty frames.
What is wrong between two Pods only is so on the way of their nodes: the relay carries that, and looks whose each packet is.
What is in the ledger is wanted; whatever a crash left is put right by the next change.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from shim.lab import bridge, netns
from shim.lab.errors import LabError
from shim.lab.ledger import Ledger, PodRecord, write_whole
from shim.lab.plan import LabPlan, Station
from shim.lab.relay.ask import ask
from shim.lab.relay.faults import NO_FAULTS, Faults
from shim.lab.relay.line import LineCounts
from shim.lab.relay.switch import Pair
from shim.lab.service import Service

REST = "rest"
"""As a group: everybody who is not in the other one; beside Pods, all Pods of other nodes."""
Group = str | Iterable[str]
"""Stations, or Pods: names, or names with commas between them."""
_RELAY_TIMEOUT_S = 30.0
_ANY_SEGMENTS = 65535


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two stations, or two Pods, as it is wanted."""

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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: getattr(self, name) for name in self.__slots__} | {"faults": self.faults.to_json()}


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
                found.link.to_json()
                | {
                    "cut_frames": found.cut_frames,
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

    def forget(self, *names: str) -> None:
        """Let go of the links of stations or Pods that leave."""
        links = self.read()
        kept = {pair: link for pair, link in links.items() if not {*names} & {*pair}}
        if kept != links:
            self._become(kept)

    def look_again(self, pod: str) -> None:
        """Find a Pod's packets by the addresses that it has now."""
        links = self.read()
        if any(pod in pair for pair in links):
            self._become(links)

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
        states = []
        for pair, link in links.items():
            found = counts.get(pair)
            cut_frames = found.lost if link.cut and found else dropped[bridge.CUT].get(pair, 0)
            states.append(LinkState(link, cut_frames, found))
        return LinksState(tuple(states), self._relay.pid, missed)

    @property
    def _stations(self) -> Mapping[str, Station]:
        return {station.name: station for station in self.plan.stations}

    @property
    def _pods(self) -> Mapping[str, PodRecord]:
        record = self._ledger.read()
        return {} if record is None else {pod.name: pod for pod in record.pods}

    def _ask_counts(self) -> dict[str, Any] | None:
        running = self._relay.pid is not None
        if not running or not self._socket.exists():  # or it is about to listen
            return None
        try:
            return ask(self._socket, {})
        except LabError:
            if self._relay.pid is None:  # it has ended meanwhile
                return None
            raise

    def _become(self, links: Mapping[Pair, Link]) -> None:
        """Write down what is wanted and make it so. No frame goes both ways, by the bridge and by the relay."""
        links = {pair: links[pair] for pair in sorted(links) if links[pair].cut or links[pair].faults}
        before = bridge.read(self._underlay)
        was_cut, was_relayed = set(before[bridge.CUT]), set(before[bridge.RELAYED])
        between = {pair: link for pair, link in links.items() if pair[0] in self._stations}
        cut = {pair for pair, link in between.items() if link.cut}
        of_pods = [
            line for line in self._pod_lines(links.keys() - between.keys(), links) if tuple(line["way"]) not in cut
        ]
        relayed = (between.keys() - cut) | {(line["way"][0], line["way"][1]) for line in of_pods}
        content = [link.to_json() for link in links.values()]
        write_whole(self._path, json.dumps(content, indent=1))

        senders, old_senders = ({source for source, _ in pairs} for pairs in (relayed, was_relayed))
        self._set_segments(senders - old_senders, 1)
        if relayed:
            self._need_relay()
        bridge.add(self._underlay, {bridge.CUT: cut - was_cut, bridge.RELAYED: relayed - was_relayed})
        if self._relay.pid is not None:
            lines = [self._line(links.get(pair, Link(*pair))) for pair in sorted(relayed)]
            ask(self._socket, {"lines": lines, "cut": sorted(cut), "pods": of_pods})
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

    def _pod_lines(self, pairs: Iterable[Pair], links: Mapping[Pair, Link]) -> list[dict[str, Any]]:
        pods = self._pods
        return [
            {
                "source": source,
                "target": target,
                "way": [pods[source].node, pods[target].node],
                "ends": _ends(pods[source], pods[target]),
                "faults": (Faults(loss=1.0) if links[source, target].cut else links[source, target].faults).to_json(),
                "seed": links[source, target].seed,
            }
            for source, target in sorted(pairs)
            if source in pods and target in pods
        ]

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
        given = {name for group in ends for name in group if group != [REST]}
        pods = self._pods
        places = (
            {name: pod.node for name, pod in pods.items()} if given & pods.keys() else dict.fromkeys(self._stations)
        )
        for name in sorted(given - places.keys()):
            if pods.keys() >= given - self._stations.keys():
                raise LabError(f"{name} is no Pod: a link is between two on the underlay, or between two Pods")
            known = ", ".join([*self._stations, *pods])
            raise LabError(
                f"lab {self._ledger.name} has nobody {name!r} on the underlay, and no such Pod (it has: {known})"
            )
        groups = [
            sorted(places.keys() - other) if group == [REST] else group
            for group, other in ((ends[0], ends[1]), (ends[1], ends[0]))
        ]
        if both := set(groups[0]) & set(groups[1]):
            raise LabError(f"{', '.join(sorted(both))} cannot be at both ends of a link")
        pairs = {(one, other) for one in groups[0] for other in groups[1]}
        if places.keys() == pods.keys():
            near = sorted(pair for pair in pairs if places[pair[0]] == places[pair[1]])
            if near and [REST] not in ends:
                one, other = near[0]
                raise LabError(f"{one} and {other} are both on {places[one]}: no link lies between them")
            pairs -= set(near)
        return sorted(pairs if one_way else pairs | {(other, one) for one, other in pairs})


def _names(group: Group) -> list[str]:
    names = group.split(",") if isinstance(group, str) else group
    return [name.strip() for name in names if name.strip()]


def _ends(source: PodRecord, target: PodRecord) -> list[str]:
    """Return how packets from one Pod to another begin their addresses: source and destination, of one IP version."""
    pairs = [
        (ip_address(one).packed, ip_address(other).packed) for one in source.addresses for other in target.addresses
    ]
    return sorted((one + other).hex() for one, other in pairs if len(one) == len(other))
