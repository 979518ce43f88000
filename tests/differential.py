"""Both engines beside each other: the same traffic in, and every byte, verdict and count compared.

    python -m tests.differential --packets 1000000 --seed 1

What may differ: ICMP errors come at another moment (the native engine makes them in its slow path), so they are compared
as a set of their own; and which single packets to one peer share a send. Nothing else may, down to the order of a peer's
datagrams, the bounds of a super-packet's trains, the number of reads, what taps see in which order, and which flows' drops
are remembered.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import astuple, replace
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from router.engine.choose import available
from router.engine.interface import DroppedFlow, Instruction, Side, Sighting, Source
from router.engine.interface import Tap as Watching
from router.model import NODE_KEY, AttachmentKey, Endpoint, Limit, Limits, NextHop, Offloads, Verdict
from tests.engine_rig import Rig, Tap, endpoint_of, key, node, underlay, until
from tests.peer import SOL_UDP, UDP_GRO, UDP_SEGMENT
from tests.streams import EPOCHS, MOST_NODES, Traffic

MOST_BURST_BYTES = 1 << 20
"""Of one step: less than any buffer here holds, so that nothing is lost for want of room."""
PLENTY = 10**9
MTUS_BYTES = (1452, 1452, 8952)
PATH_MTUS_BYTES = (0, 0, 0, 1400, 1300, 600, 68, 10, 9000)
OFFLOADS = (
    Offloads(), Offloads(), Offloads(), Offloads(max_segments=64), Offloads(max_segments=5), Offloads(udp_segment=False),
    Offloads(udp_gro=False), Offloads(tun_tso=False), Offloads(tun_uso=False), Offloads(tun_checksum=False),
)  # fmt: skip
ANYWHERE = Endpoint(ip_address("0.0.0.0"))
SEGMENT = 2
"""Of the option's flags (router/wire/geneve.py)."""
_ERRORS = {1: (3, 11, 12), 58: (1, 2, 3, 4)}
WATCHES: tuple[tuple[dict[str, Any], ...], ...] = (
    (), (), ({},), ({}, {"dropped_only": True, "snap_bytes": 64}), ({"party": "a"}, {"party": "two"}),
    ({"party": "node", "sides": frozenset((Side.AFTER,))}, {"party": "limited", "dropped_only": True}, {"snap_bytes": 0}),
    # IPv6, or IPv4 and neither TCP nor a first byte of zero at its end
    ({"program": tuple(Instruction(*each) for each in (
        (0x30, 0, 0, 0), (0x74, 0, 0, 4), (0x15, 4, 0, 6), (0x30, 0, 0, 9), (0x15, 3, 0, 6), (0xB1, 0, 0, 0),
        (0x50, 0, 0, 0), (0x16, 0, 0, 0), (0x06, 0, 0, 0))), "party": "b"}, {"sides": frozenset((Side.BEFORE,))}),
)  # fmt: skip
"""What taps ask for, with parties by name."""
_NODE = (b"\x0a\x2a\x01\x01", b"\xfd\x42\x00\x01" + bytes(11) + b"\x01")
Seen = dict[str, list[Any]]


class Site:
    """Node 1 under one engine, with all kinds of Pods, and peers that record what they get."""

    def __init__(self, engine: str, offloads: Offloads, mtu_bytes: int, threads: int) -> None:
        self._stack = ExitStack()
        rig = Rig(engine, offloads=offloads, mtu_bytes=mtu_bytes, threads=threads, icmp_errors_per_s=PLENTY)
        self.rig = self._stack.enter_context(rig)
        numbers = {"two": 2, "three": 3, "four": 4} | {str(number): number for number in range(5, MOST_NODES + 1)}
        places = numbers | {"stranger": 250, "odd port": 3}
        self.sockets = {name: self._stack.enter_context(underlay(f"127.0.0.{last}")) for name, last in places.items()}
        self.nodes = {
            name: node(number, endpoint_of(self.sockets[name]), offload=name != "three")
            for name, number in numbers.items()
        }
        self.taps: dict[str, Tap] = {"node": self.rig.node_pod(), "a": self.rig.pod("a", 2), "b": self.rig.pod("b", 3)}
        self.taps["c"] = self.rig.pod("c", 4, 65_535)
        self.taps["small"] = self.rig.pod("small", 5, 600)
        self.taps["limited"] = self.rig.pod("limited", 6, limits=Limits(ingress=Limit(1, 60_000)))
        self.taps["shaped"] = self.rig.pod("shaped", 7, limits=Limits(egress=Limit(PLENTY, PLENTY)))
        self.route(tuple(self.nodes), egress=True)

    def route(self, names: tuple[str, ...], egress: bool) -> None:
        self.rig.know([self.nodes[name] for name in names], egress)

    def know(self, epoch: int, known: dict[str, dict[str, Any]]) -> None:
        """Begin an epoch of this node's own, and know that of its peers."""
        self.rig.known = {self.nodes[name].name: dict(fields) for name, fields in known.items()}
        self.rig.renew(epoch)

    def move(self, name: str) -> None:
        """Detach a Pod, or attach it again."""
        if name in self.taps:
            self.rig.detach(key(name))
            del self.taps[name]
        else:
            self.taps[name] = self.rig.pod(name, {"b": 3, "small": 5}[name], {"b": 1452, "small": 600}[name])

    def watch(self, asked: tuple[dict[str, Any], ...]) -> None:
        taps = []
        for number, fields in enumerate(asked, 1):
            party = fields.get("party")
            who = self._who(party) if party is not None else None
            taps.append(Watching(number, **{**fields, "party": who}))
        self.rig.engine.watch(tuple(taps))

    def _who(self, name: str) -> Source:
        if name in self.nodes:
            return self.nodes[name].endpoint
        return NODE_KEY if name == "node" else key(name)

    def _name(self, source: Source | None) -> str:
        """Name whom this site's sockets tell."""
        if isinstance(source, Endpoint):
            return next(name for name, sock in self.sockets.items() if endpoint_of(sock) == source)
        return "the router" if source is None else str(source)

    def sighted(self) -> Seen:
        """Return what was seen since it was asked last: by tap, side and whom it came from or went to; errors apart."""
        sightings, lost = self.rig.engine.sightings(0.0)
        found: Seen = {"lost": sorted(lost.items()), "errors": []}
        for one in sightings:
            who = self._name(one.source), self._name(one.target)
            if lost:
                break
            if one.side is Side.AFTER and one.source is None:
                found["errors"].append((one.tap, who, *self._facts(one)))
            else:
                key_ = f"tap {one.tap} {one.side.value} {who[one.side is Side.AFTER]}"
                found.setdefault(key_, []).append((who, *self._facts(one)))
        found["errors"] = sorted(Counter(map(repr, found["errors"])).items())
        return found

    @staticmethod
    def _facts(one: Sighting) -> tuple[object, ...]:
        return one.verdict, one.reason, one.packets, one.packet_bytes, one.packet

    def dropped(self) -> Seen:
        """Return which flows' drops are remembered, those of attachments and those from the underlay."""
        found: Seen = {"out": [], "in": []}
        for one in self.rig.engine.drops():
            found["out" if isinstance(one.source, AttachmentKey) else "in"].append(self._line(one))
        return found

    def _line(self, one: DroppedFlow) -> tuple[object, ...]:
        return self._name(one.source), one.reason, one.flow, one.packets, one.packet_bytes, one.limit_bytes

    def step(self, frames: list[tuple[str, bytes]], sends: list[tuple[str, list[bytes]]]) -> Seen:
        """Take that in, forward all of it, and return what came out: frames by tap, trains by peer, ICMP errors apart."""
        before = self._read()
        sent_before, asked_before = self._sent(), self._asked()
        for name, each in frames:
            self.taps[name].send(each)
        rows = 0
        for name, train in sends:
            control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(train[0])))] if len(train) > 1 else []
            self.sockets[name].sendmsg([b"".join(train)], control, 0, self.rig.socket.getsockname())
            rows += len(train)
        seen: Seen = {"errors": []}

        def all_out() -> bool:
            self.rig.pump()
            for name, tap in self.taps.items():
                for each in tap.frames():
                    seen.setdefault("errors" if _is_error(each[10:]) else name, []).append(each)
            return self._read()[0] - before[0] >= len(frames) and self._read()[1] - before[1] >= rows

        until(all_out, f"{len(frames)} frames and {rows} datagrams taken in")
        assert (self._read()[0] - before[0], self._read()[1] - before[1]) == (len(frames), rows)
        names = {each.endpoint: name for name, each in self.nodes.items()}
        seen["answers"] = [(names[endpoint], answer) for endpoint, answer, _ in self.rig.told.answers]
        self.rig.told.answers.clear()
        asked = self._asked() - asked_before - len(seen["answers"])
        expected = self._sent() - sent_before + asked
        found = 0

        def all_received() -> bool:
            nonlocal found
            for name, sock in self.sockets.items():
                for step, whole in _received(sock):
                    train = [whole[at : at + step] for at in range(0, len(whole), step)]
                    found += len(train)
                    assert len(train) <= self.rig.offloads.max_segments, f"a train of {len(train)} datagrams"
                    if whole[1] & 0x80:
                        seen.setdefault(f"answers to {name}", []).extend(train)
                        continue
                    inner = whole[20:] if whole[0] else whole[8:]
                    where = "errors" if len(train) == 1 and _is_error(inner) else f"to {name}"
                    # A super-packet's train is one to see; which single packets share a send is each engine's own.
                    is_run = whole[0] and not whole[12] & SEGMENT
                    seen.setdefault(where, []).extend(train if is_run else [(step, whole)])
            return found >= expected

        until(all_received, f"{expected} datagrams out, only {found} came")
        assert found == expected
        seen["errors"] = sorted(Counter(map(repr, seen["errors"])).items())
        return seen

    def _read(self) -> tuple[int, int]:
        """Return frames read from taps, and datagrams received, since they were made."""
        counted = self.rig.engine.counters()
        datagrams = counted.strangers.received_packets
        datagrams += sum(each.received_packets + each.control_packets for each in counted.peers.values())
        return sum(each.received_frames for each in counted.attachments.values()), datagrams

    def _sent(self) -> int:
        return sum(each.sent_packets for each in self.rig.engine.counters().peers.values())

    def _asked(self) -> int:
        return sum(each.control_packets for each in self.rig.engine.counters().peers.values())

    def said(self, packet: bytes, source: str) -> tuple[object, ...]:
        """Return a verdict without what differs by site: sockets' ports."""
        try:
            verdict: Verdict = self.rig.engine.decide(packet, self._who(source))
        except KeyError:
            return ("no such source",)
        target: object = verdict.target
        if isinstance(verdict.target, NextHop):
            target = replace(verdict.target, endpoint=ANYWHERE)
        return verdict.kind, target, verdict.reason

    def counts(self) -> dict[str, object]:
        counted = self.rig.counters()
        names = {each.endpoint: name for name, each in self.nodes.items()}
        found: dict[str, object] = {str(who): astuple(tally) for who, tally in counted.attachments.items()}
        found |= {f"peer {names[who]}": astuple(tally) for who, tally in counted.peers.items()}
        return found | {
            "strangers": astuple(counted.strangers), "gone": astuple(counted.gone), "restarts": counted.restarts,
            "suppressed": counted.icmp_suppressed,
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)
        for sock in self.sockets.values():
            sock.close()


def _received(sock: socket.socket) -> list[tuple[int, bytes]]:
    """Return what waits at a socket: trains with the length of their rows."""
    found = []
    while True:
        try:
            whole, control, _, _ = sock.recvmsg(1 << 17, 64)
        except BlockingIOError:
            return found
        step = len(whole)
        for level, kind, value in control:
            if (level, kind) == (SOL_UDP, UDP_GRO):
                (step,) = struct.unpack_from("=i", value)
        found.append((step, whole))


def _is_error(packet: bytes) -> bool:
    """Tell an ICMP error of node 1's own."""
    if len(packet) < 28:
        return False
    if packet[0] >> 4 == 4:
        return packet[9] == 1 and packet[12:16] == _NODE[0] and packet[20] in _ERRORS[1]
    return packet[6] == 58 and packet[8:24] == _NODE[1] and len(packet) > 40 and packet[40] in _ERRORS[58]


class Comparison:
    """Feeds two sites from one seed and fails at the first difference, with what it takes to see it again."""

    def __init__(self, seed: int, threads: int) -> None:
        self.seed, self.threads = seed, threads
        self.random = random.Random(seed)
        self.traffic = Traffic(self.random)
        self.steps = self.packets = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        how = (OFFLOADS[self.seed % len(OFFLOADS)], self.random.choice(MTUS_BYTES), self.threads)
        self.sites = {name: self._stack.enter_context(Site(name, *how)) for name in ("python", "native")}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(self, packets: int) -> None:
        """Go on until so many packets were sent."""
        while self.packets < packets:
            self.step()
        self._compare_counts()

    def step(self) -> None:
        random_ = self.random
        self.steps += 1
        if self.steps == 1:
            for site in self.sites.values():
                site.watch(WATCHES[self.seed % len(WATCHES)])
        if random_.random() < 0.05:
            self._change()
        frames: list[tuple[str, bytes]] = []
        sends: list[tuple[str, list[bytes]]] = []
        present = self.sites["python"].taps
        if random_.random() < 0.55:
            name = random_.choice(
                [each for each in ("a", "a", "a", "b", "c", "small", "shaped", "node") if each in present]
            )
            burst = self.traffic.burst(name)
            while sum(map(len, burst)) > MOST_BURST_BYTES:
                burst.pop()
            frames = [(name, each) for each in burst if each]
        else:
            name = random_.choice(("two", "two", "two", "three", "four", "odd port", "stranger"))
            number = {"two": 2, "three": 3, "odd port": 3, "four": 4, "stranger": 2}[name]
            sends = [(name, rows) for rows in self.traffic.arrivals(number)]
        self._compare_decisions([each[10:] for _, each in frames] + [row[20:] for _, rows in sends for row in rows[:2]])
        self.same("output", {name: site.step(frames, sends) for name, site in self.sites.items()}, frames, sends)
        self.same("sightings", {name: site.sighted() for name, site in self.sites.items()}, frames, sends)
        if self.steps % 8 == 0:
            self._compare_counts(frames, sends)
        self.packets += len(frames) + sum(len(rows) for _, rows in sends)

    def _compare_counts(self, *inputs: object) -> None:
        self.same("counters", {name: site.counts() for name, site in self.sites.items()}, *inputs)
        self.same("drops", {name: site.dropped() for name, site in self.sites.items()}, *inputs)

    def _compare_decisions(self, packets: list[bytes]) -> None:
        for packet in packets[:12]:
            for source in self.random.sample(("a", "b", "node", "small", "two", "three"), 2):
                self.same(
                    "verdict",
                    {name: site.said(packet, source) for name, site in self.sites.items()},
                    [(source, packet)],
                )

    def _change(self) -> None:
        """Change the table, what is known of peers, this node's epoch, whether Pods may leave, who is attached or who watches."""
        random_ = self.random
        what = random_.random()
        if what < 0.15:
            asked = random_.choice(WATCHES)
            for site in self.sites.values():
                site.watch(asked)
        elif what < 0.4:
            known = {name: self._known() for name in self.sites["python"].nodes if random_.random() < 0.7}
            epoch = random_.choice(EPOCHS)
            for site in self.sites.values():
                site.know(epoch, known)
        elif what < 0.7:
            moving = random_.choice(("b", "small"))
            for site in self.sites.values():
                site.move(moving)
        else:
            names = tuple(name for name in self.sites["python"].nodes if random_.random() < 0.8)
            egress = random_.random() < 0.7
            for site in self.sites.values():
                site.route(names, egress)

    def _known(self) -> dict[str, Any]:
        """Return what may be known of a peer."""
        random_ = self.random
        known = {"epoch": random_.choice(EPOCHS), "up": random_.random() < 0.8}
        if random_.random() < 0.1:
            known["offload"] = random_.random() < 0.5
        return known | {"mtu_bytes": random_.choice(PATH_MTUS_BYTES)}

    def same(self, what: str, found: dict[str, Any], *inputs: object) -> None:
        one, other = found["python"], found["native"]
        if one != other:
            where = f"seed {self.seed}, {self.threads} threads, step {self.steps}, {what}"
            raise AssertionError(f"{where}: {_difference(one, other)}\ninput: {_brief(inputs)}")


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                return f"{name}: {_difference(one.get(name), other.get(name))}"
    if isinstance(one, list) and isinstance(other, list):
        for index, (mine, its) in enumerate(zip(one, other, strict=False)):
            if mine != its:
                return f"number {index} of {len(one)} and {len(other)}: python {_brief(mine)}, native {_brief(its)}"
        return f"python has {len(one)}, native {len(other)}: {_brief((one + other)[min(len(one), len(other)) :])}"
    return f"python {_brief(one)}, native {_brief(other)}"


def _brief(what: object) -> str:
    if isinstance(what, bytes):
        return f"{len(what)} bytes {what[:120].hex()}"
    if isinstance(what, list | tuple):
        return "[" + ", ".join(_brief(each) for each in what[:12]) + "]"
    return repr(what)[:1000]


def main() -> None:
    """Compare until so many packets agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="default: one from the clock, which is shown")
    options = parser.parse_args()
    if "native" not in available():
        raise SystemExit("error: there is one engine only here; build the native one with scripts/build-native.sh")
    seed = options.seed if options.seed is not None else time.time_ns() & 0xFFFFFFFF
    done, began_s = 0, time.monotonic()
    while done < options.packets:
        threads = 1 + seed // len(OFFLOADS) % 2
        with Comparison(seed, threads) as comparison:
            comparison.run(min(50_000, options.packets - done))
        done += comparison.packets
        print(
            f"differential: seed {seed}, {done} packets agree, {done / (time.monotonic() - began_s):.0f} a second",
            flush=True,
        )
        seed += 1


if __name__ == "__main__":
    main()
