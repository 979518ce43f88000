"""Hostile bytes at the UDP port and at the TUN: `python -m tests.fuzz --packets 1000000 --seed 1`.

Valid datagrams and frames are mutated, half of them mended again in their IP header so that they get past its check.
Whatever they do: nothing is raised, memory stays flat, every one is counted, and the accounts balance.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize

from router.engine.choose import available
from router.engine.interface import EngineCounters
from router.model import Tally
from tests.engine_rig import VNI, Rig, endpoint_of, node, underlay
from tests.fuzzers.mutate import INTERESTING
from tests.packets import PLAIN_VNET, TCP, UDP, VNET, flows, frame, ip, l4_at, partial, tcp, udp, word_sum
from tests.peer import probe

WHERE = ("udp", "tun")
MOST_GROWTH_BYTES = 8 << 20
EPOCHS = (255, 256, 257)
"""Just stale, of the moment, just ahead."""
_BATCH = 24
_SOL_UDP, _UDP_SEGMENT = 17, 103  # linux/udp.h


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    where: str
    sent: int
    """Datagrams, or frames."""
    counted: int
    packets: int
    delivered: int
    tunnelled: int
    probes: int
    dropped: dict[str, int]
    grown_bytes: int
    """Resident memory at the end, less what it was after a fifth."""
    elapsed_s: float

    def __str__(self) -> str:
        reasons = ", ".join(
            f"{reason} {count}" for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1])
        )
        return (
            f"{self.where}: {self.sent} sent, {self.counted} counted as {self.packets} packets in {self.elapsed_s:.1f} s: "
            f"{self.delivered} delivered, {self.tunnelled} tunnelled, {self.probes} probes, dropped: {reasons}; "
            f"resident memory {self.grown_bytes / 1e6:+.1f} MB"
        )


def inner_packets(own: int, other: int) -> list[tuple[int, bytes]]:
    """Return (protocol with partial checksum or 0, packet) from a Pod of node `other` to those of node `own`."""
    sizes = (0, 40, 900)
    found: list[tuple[int, bytes]] = [(kind, packet) for size in sizes for _, kind, packet in flows(size, other, own)]
    found += [(0, packet) for _, packet in found[:12]]
    for src, dst in ((f"10.42.{other}.2", f"10.42.{own}.3"), (f"fd42:{other}::2", f"fd42:{own}::3")):
        protocol = 1 if "." in src else 58
        for ttl in (0, 1, 2, 64):
            found.append((0, ip(src, dst, protocol, bytes((8 if protocol == 1 else 128, 0)) + bytes(30), ttl=ttl)))
        found.append((0, ip(src, dst, 17, bytes(1600))))
        found.append((0, ip(src, dst, 17, bytes(1600), df=False)))
        found.append((0, ip(src, dst, 17, bytes(64), df=False, fragment=0x2005)))
        found.append((UDP, ip(src, dst, UDP, udp(b"x" * 1700), df=False)))
        found.append((TCP, ip(dst, src, TCP, tcp(b"y" * 10))))
    for stranger in ("192.0.2.9", "224.0.0.1", "10.42.200.1", f"10.42.{own}.77", f"10.42.{own}.1"):
        found.append((0, ip(f"10.42.{other}.2", stranger, 17, bytes(20))))
        found.append((0, ip(stranger, f"10.42.{own}.3", 17, bytes(20))))
    return found


def datagrams() -> list[bytes]:
    """Return valid datagrams from node 2 to node 1, with our option, without, and with others' beside it."""
    found = []
    for number, (protocol, packet) in enumerate(inner_packets(1, 2)):
        ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        base = struct.pack(">HI", ethertype, VNI << 8)
        body = partial(packet, protocol) if protocol else packet
        start = l4_at(packet, protocol) if protocol else 0
        ours = struct.pack(
            ">HBBBBHHBB",
            0xFFFF,
            0x81,
            2,
            1 if protocol else 0,
            16 if protocol == TCP else 6,
            start,
            9,
            0,
            EPOCHS[number % 3] & 0xFF,
        )
        foreign = struct.pack(">HBBI", 0x0102, 0x03, 1, 0xDEADBEEF)
        found.append(b"\x03\x40" + base + ours + body)
        found.append(b"\x00\x00" + base + packet)
        found.append(b"\x05\x40" + base + foreign + ours + body)
        found.append(probe(1 + number % 2, 28 + number))
    return found


def frames() -> list[bytes]:
    """Return valid frames from a Pod of node 1: plain, with partial checksum, super-packets."""
    found = []
    for other in (1, 2, 3):
        for protocol, packet in inner_packets(other, 1):
            found.append(PLAIN_VNET + packet)
            if protocol:
                found.append(frame(packet, protocol))
        for size in (1, 3000, 20_000):
            found += [frame(packet, kind, gso) for _, kind, packet in flows(size, 1, other) for gso in (100, 1300)]
    return found


def mutated(random_: random.Random, valid: list[bytes], ip_at: Callable[[bytes], int]) -> bytes:
    """Return a valid message with some damage, or noise."""
    kind = random_.random()
    if kind < 0.05:
        return random_.randbytes(random_.randrange(1, 200))
    whole = bytearray(random_.choice(valid))
    if kind < 0.15:
        return bytes(whole)
    for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
        if not whole:
            break
        # Headers are at the front: damage there tells more.
        at = random_.randrange(min(len(whole), random_.choice((12, 24, 48, 96, len(whole)))))
        how = random_.randrange(7)
        if how == 0:
            whole[at] ^= 1 << random_.randrange(8)
        elif how == 1:
            whole[at] = random_.choice(INTERESTING)
        elif how == 2:
            whole[at] = random_.randrange(256)
        elif how == 3:
            del whole[random_.randrange(len(whole)) :]
        elif how == 4:
            whole += random_.randbytes(random_.randrange(1, 60))
        elif how == 5:
            del whole[at : at + random_.randrange(1, 9)]
        else:
            whole[at:at] = random_.randbytes(random_.randrange(1, 9))
    if random_.random() < 0.5:
        mend(whole, ip_at(whole))
    return bytes(whole) or b"\0"


def mend(whole: bytearray, at: int) -> None:
    """Make the length and checksum of the IP header at `at` right again."""
    if at + 40 > len(whole):
        return
    if whole[at] >> 4 == 4:
        size = (whole[at] & 15) * 4
        whole[at + 2 : at + 4] = struct.pack(">H", min(0xFFFF, len(whole) - at))
        whole[at + 10 : at + 12] = b"\0\0"
        whole[at + 10 : at + 12] = struct.pack(">H", ~word_sum(bytes(whole[at : at + size])) & 0xFFFF)
    elif whole[at] >> 4 == 6:
        whole[at + 4 : at + 6] = struct.pack(">H", min(0xFFFF, len(whole) - at - 40))


def after_geneve(whole: bytes) -> int:
    return 8 + (whole[0] & 63) * 4 if whole else 0


def after_vnet(_: bytes) -> int:
    return VNET.size


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


class _Field:
    """Node 1 with two Pods and itself, peer 2 that knows our option, peer 3 that does not, and a stranger."""

    def __init__(self, rig: Rig, peers: list[socket.socket]) -> None:
        self.rig, self.peers = rig, peers
        two, three, _ = peers
        rig.know((node(2, endpoint_of(two)), node(3, endpoint_of(three), offload=False)))
        rig.learn("node2", epoch=EPOCHS[1])
        self.taps = (rig.pod("a", 2), rig.pod("b", 3), rig.node_pod())
        self.address = rig.socket.getsockname()

    def drain(self) -> None:
        self.rig.told.answers.clear()
        for tap in self.taps:
            tap.frames()
        for peer in self.peers:
            try:
                while True:
                    peer.recv(65536)
            except BlockingIOError:
                pass

    def counted(self, counters: EngineCounters) -> tuple[int, Tally]:
        """Return how many messages the fuzzed side counted, and what became of all packets."""
        total = counters.strangers
        for tally in (*counters.attachments.values(), *counters.peers.values()):
            total = total.plus(tally)
        return total.received_frames, total


def fuzz(engine: str, where: str, packets: int, seed: int) -> Report:
    """Send that many mutated datagrams or frames; AssertionError where the engine did not stand them."""
    random_ = random.Random(seed)
    sockets = [underlay("127.0.0.1"), underlay("127.0.0.2"), underlay("127.0.0.3")]
    began_s = time.monotonic()
    try:
        with Rig(engine) as rig:
            field = _Field(rig, sockets)
            batches = _datagram_batches if where == "udp" else _frame_batches
            sent, floor_bytes = 0, 0
            for count in batches(random_, field, packets):
                sent += count
                _forward_all(field, sent, where)
                if not floor_bytes and sent >= packets // 5:
                    floor_bytes = resident_bytes()
            grown = resident_bytes() - floor_bytes
            messages, total = field.counted(rig.counters())
            counted = total.received_packets + total.control_packets if where == "udp" else messages
            assert rig.told.failures == []
            assert rig.told.lost == []
            return Report(
                where, sent, counted, total.received_packets, total.delivered_packets, total.tunnelled_packets,
                total.control_packets,
                {reason.value: drops for reason, drops in total.dropped.items()}, grown, time.monotonic() - began_s,
            )  # fmt: skip
    finally:
        for sock in sockets:
            sock.close()


def _forward_all(field: _Field, sent: int, where: str) -> None:
    """Forward until everything sent was counted: loopback may take a moment to deliver."""
    deadline = time.monotonic() + 5
    while True:
        while field.rig.engine.forward(64):
            pass
        field.drain()
        messages, total = field.counted(field.rig.counters())
        counted = total.received_packets + total.control_packets if where == "udp" else messages
        if counted >= sent:
            assert counted == sent, f"{counted} counted of {sent} sent"
            return
        assert time.monotonic() < deadline, f"only {counted} counted of {sent} sent"


def _datagram_batches(random_: random.Random, field: _Field, packets: int) -> Iterator[int]:
    valid, sent = datagrams(), 0
    while sent < packets:
        count = 0
        while count < min(_BATCH, packets - sent):
            sender = random_.choices(field.peers, (6, 3, 1))[0]
            left = min(_BATCH, packets - sent) - count
            count += (
                _send_train(random_, sender, field.address, valid, left)
                if random_.random() < 0.2
                else _send_one(random_, sender, field.address, valid)
            )
        sent += count
        yield count


def _send_one(random_: random.Random, sender: socket.socket, to: tuple[str, int], valid: list[bytes]) -> int:
    sender.sendto(b"" if random_.random() < 0.001 else mutated(random_, valid, after_geneve), to)
    return 1


def _send_train(
    random_: random.Random, sender: socket.socket, to: tuple[str, int], valid: list[bytes], most: int
) -> int:
    """Send rows of equal length, the same packet over and over with different damage, as one UDP_SEGMENT train."""
    size = 0
    while not 20 < size < 1400:
        row = random_.choice(valid)
        size = len(row)
    rows = [bytearray(row) for _ in range(random_.randrange(1, 9))][:most]
    for each in rows:
        if random_.random() < 0.4:
            each[random_.randrange(min(size, 90))] = random_.choice(INTERESTING)
    if len(rows) > 1 and random_.random() < 0.5:
        del rows[-1][random_.randrange(1, size) :]
    control = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", size))] if len(rows) > 1 else []
    sender.sendmsg([b"".join(rows)], control, 0, to)
    return len(rows)


def _frame_batches(random_: random.Random, field: _Field, packets: int) -> Iterator[int]:
    valid, sent = frames(), 0
    while sent < packets:
        count = min(_BATCH, packets - sent)
        for _ in range(count):
            random_.choices(field.taps, (8, 1, 1))[0].send(mutated(random_, valid, after_vnet))
        sent += count
        yield count


def main() -> None:
    """Run both and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000, help="how many at each of the two places")
    parser.add_argument("--seed", type=int, default=None, help="default: one from the clock, which is shown")
    parser.add_argument("--where", choices=WHERE, action="append", help="default: both")
    parser.add_argument("--engine", choices=available(), action="append", help="default: all there are")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() & 0xFFFFFFFF
    for engine in options.engine or available():
        for where in options.where or WHERE:
            report = fuzz(engine, where, options.packets, seed)
            print(f"{engine}, seed {seed}, {report}", flush=True)
            if report.grown_bytes > MOST_GROWTH_BYTES:
                raise SystemExit(f"error: memory grew by {report.grown_bytes} bytes")


if __name__ == "__main__":
    main()
