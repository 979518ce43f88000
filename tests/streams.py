"""Seeded traffic of every kind, valid and hostile: frames from TUNs of node 1, and datagrams to it, singly and in trains.

The places are those of tests/differential.py: Pods .2 to .7 and the node itself on node 1, Pods .3 on nodes 2, 3 and 4.
"""

from __future__ import annotations

import random
import struct

from tests.engine_rig import VNI
from tests.fuzz import after_geneve, after_vnet, datagrams, frames, mend, mutated
from tests.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    PLAIN_VNET,
    PSH,
    TCP,
    UDP,
    VNET,
    frame,
    ip,
    l4_at,
    packets_of,
    partial,
    tcp,
    udp,
)
from tests.peer import probe

GSO_SIZES = (1, 7, 8, 100, 255, 256, 257, 536, 1000, 1300, 1392, 1400, 1412, 1432, 1460, 2000, 9000, 65000)
TTLS = (0, 1, 2, 2, 64, 64, 64, 64, 64, 64, 255)
MOST_PACKETS = 300
"""Of one super-packet."""
MOST_NODES = 24
"""More than there can be runs of packets at a time, one for each peer."""
MOST_ROWS = 60
"""Of one UDP_SEGMENT send: every kernel takes 64."""
EPOCHS = (0, 1, 1, 2, 2, 3, 130, 255, 256, 257)
"""Of nodes: near each other and far, on either side of where the byte on the wire goes round."""
_FOUR = ("10.42.1.3", "10.42.1.2", "10.42.1.4", "10.42.1.5", "10.42.1.6", "10.42.1.7", "10.42.2.3", "10.42.2.3", "10.42.3.3",
         "10.42.3.3", "10.42.4.3", "10.42.1.1", "10.42.1.99", "10.42.2.1", "10.42.200.1", "9.9.9.9", "224.0.0.1",
         "255.255.255.255", "169.254.1.1", "127.0.0.1", "0.0.0.0")  # fmt: skip
_SIX = ("fd42:1::3", "fd42:1::2", "fd42:1::4", "fd42:1::5", "fd42:1::6", "fd42:1::7", "fd42:2::3", "fd42:2::3", "fd42:3::3",
        "fd42:3::3", "fd42:4::3", "fd42:1::1", "fd42:1::99", "fd42:2::1", "fd42:200::1", "2001:db8::9", "ff02::1", "fe80::1",
        "::1", "::")  # fmt: skip
_PATTERN = bytes(range(251)) * 262
"""Of prime length, so that nothing that is out of place looks like what belongs there."""
_FAR = ("10.42.2.3", "10.42.2.3", "10.42.3.3", "10.42.4.3")
_NEAR = ("10.42.1.2", "10.42.1.2", "10.42.1.3", "10.42.1.4", "10.42.1.5", "10.42.1.6")
_HOSTS = {"a": 2, "b": 3, "c": 4, "small": 5, "limited": 6, "shaped": 7, "node": 1}


class Traffic:
    """Makes traffic from one random sequence."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self._frames, self._datagrams = frames(), datagrams()

    # Packets

    def packet(self, src: str, dst: str, payload_bytes: int, protocol: int, ttls: tuple[int, ...] = TTLS) -> bytes:
        """Return a well-formed TCP or UDP packet without checksum, of any header lengths and fields."""
        random_, four = self.random, "." in src
        payload = _PATTERN[:payload_bytes]
        if protocol == TCP:
            body = tcp(
                payload,
                seq=random_.choice((1, 0xFFFFFF00, random_.getrandbits(32))),
                flags=random_.choice((ACK, ACK, ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | ECE | CWR | PSH, 0xFF, 2)),
                options=random_.randbytes(4 * random_.choice((0, 0, 3, 5, 10))),
            )
        else:
            body = udp(payload)
        ttl = random_.choice(ttls)
        if four:
            options = self.ipv4_options() if random_.random() < 0.15 else b""
            df = random_.random() < 0.6
            ident = random_.choice((0, 1, 0xFFF0, random_.getrandbits(16)))
            fragment = random_.choice((0, 0, 0, 0x2000, 0x2005, 0x1FFF)) if random_.random() < 0.05 else 0
            return ip(src, dst, protocol, body, ttl=ttl, df=df, ident=ident, options=options, fragment=fragment)
        if random_.random() < 0.15:
            units = random_.choice((0, 0, 1, 3))
            extension = bytes((protocol, units)) + random_.randbytes(6 + 8 * units)
            return ip(src, dst, random_.choice((0, 43, 60)), body, ttl=ttl, options=extension)
        return ip(src, dst, protocol, body, ttl=ttl)

    def packet_of(self, ends: tuple[str, str], size: int, protocol: int) -> bytes:
        """Return a packet of that size in all, or larger where its headers are."""
        state = self.random.getstate()
        header_bytes = len(self.packet(*ends, 0, protocol))
        self.random.setstate(state)
        return self.packet(*ends, max(0, size - header_bytes), protocol)

    def ipv4_options(self) -> bytes:
        """Return options, right or wrong, padded to whole words."""
        random_, found = self.random, b""
        for _ in range(random_.randrange(1, 5)):
            size = random_.randrange(2, 9)
            kind = random_.choice((0x82, 0x88, 7, 0x44, 0x94))
            found += random_.choice(
                (b"\1", b"\0", bytes((kind, size)) + random_.randbytes(size - 2), bytes((kind, 0)), bytes((kind, 60)))
            )
        return found[:40].ljust(-(-len(found[:40]) // 4) * 4, b"\0")

    def ends(self, sources: tuple[str, str], likely: tuple[str, ...]) -> tuple[str, str]:
        """Return source and destination, more often than not a `likely` one; one in twenty claims to be somebody else."""
        random_ = self.random
        six = random_.random() < 0.5
        src, dst = sources[six], random_.choice(likely)
        if six:
            number, host = dst.split(".")[2:]
            dst = f"fd42:{number}::{host}"
        if random_.random() < (0.4 if likely is _FAR else 0.15):
            dst = random_.choice((_FOUR, _SIX)[six])
        if random_.random() < 0.05:
            src = random_.choice((_FOUR, _SIX)[six])
        return src, dst

    # Out of the Pods

    def burst(self, source: str) -> list[bytes]:
        """Return frames of one attachment, many of them of one flow or one size, as stacks send them."""
        random_ = self.random
        host = _HOSTS[source]
        sources = (f"10.42.1.{host}", f"fd42:1::{host:x}")
        found: list[bytes] = []
        for _ in range(random_.randrange(1, 5)):
            kind = random_.random()
            ends = self.ends(sources, _FAR)
            protocol = random_.choice((TCP, UDP))
            if kind < 0.3:
                found += self.small_packets(sources)
            elif kind < 0.65:
                found.append(self.super_packet(ends, protocol))
            elif kind < 0.8:
                size = random_.choice((0, 1452, 1452, 600, 8952, random_.randrange(1400), random_.randrange(65_000)))
                packet = self.packet_of(ends, size + random_.choice((-1, 0, 1)), protocol)
                found.append(frame(packet, protocol if random_.random() < 0.7 else 0))
            elif kind < 0.9:
                found.append(self.wrong_frame(ends, protocol))
            else:
                found += [mutated(random_, self._frames, after_vnet) for _ in range(random_.randrange(1, 8))]
        return [each[:65545] for each in found]

    def small_packets(self, sources: tuple[str, str]) -> list[bytes]:
        """Return a run of packets, mostly of one size, to one or several places."""
        random_, found = self.random, []
        size = random_.choice((0, 18, 64, 300, 1000))
        few = ("10.42.2.3", "10.42.2.3", "10.42.2.3", "10.42.3.3", "10.42.4.3", "10.42.1.3")
        places = random_.choice((few, few, tuple(f"10.42.{number}.3" for number in range(2, MOST_NODES + 1))))
        for _ in range(random_.randrange(1, 60)):
            family = random_.random() < 0.3
            far = random_.choice(places)
            ends = (sources[family], far.replace("10.42.", "fd42:").replace(".3", "::3") if family else far)
            payload = random_.randbytes(size if random_.random() < 0.9 else random_.randrange(1200))
            packet = ip(*ends, UDP, udp(payload), df=random_.random() < 0.8, ttl=random_.choice((64, 64, 64, 1)))
            found.append(frame(packet, random_.choice((UDP, UDP, 0))))
        return found

    def super_packet(self, ends: tuple[str, str], protocol: int) -> bytes:
        """Return a super-packet whose payload ends where segments do, just beside it, or anywhere."""
        random_ = self.random
        gso_size = random_.choice(GSO_SIZES)
        room = min(65535 - 160, MOST_PACKETS * gso_size)
        whole = random_.randrange(0, room // gso_size + 1) * gso_size
        size = random_.choice((0, 1, whole, whole - 1, whole + 1, random_.randrange(room), room))
        return frame(self.packet(*ends, min(max(0, size), room), protocol), protocol, gso_size)

    def wrong_frame(self, ends: tuple[str, str], protocol: int) -> bytes:
        """Return a frame whose virtio header, length or checksum is not right."""
        random_ = self.random
        good = bytearray(
            self.super_packet(ends, protocol)
            if random_.random() < 0.5
            else frame(self.packet(*ends, 900, protocol), protocol)
        )
        how = random_.randrange(6)
        if how == 0:
            at = random_.choice((0, 1, 2, 4, 5, 6, 7, 8, 9))
            good[at] = random_.choice((0, 1, 2, 3, 4, 5, 0x81, 0x84, 40, 255))
        elif how == 1:
            kinds = (random_.choice((0, 1, 2, 3)), random_.choice((0, 1, 3, 4, 5, 0x80, 0x81)))
            fields = (random_.choice((0, 1, 6, 16, 20, 28, 40, 52, 60, 300, 0xFFFF)) for _ in range(4))
            good[:10] = VNET.pack(*kinds, *fields)
        elif how == 2:
            del good[random_.randrange(1, len(good)) :]
        elif how == 3:
            good += random_.randbytes(random_.randrange(1, 9))
        elif how == 4:
            good[10 + random_.randrange(min(40, len(good) - 10))] ^= 1 << random_.randrange(8)
        else:
            good[:10] = PLAIN_VNET
        return bytes(good)

    # From peers

    def arrivals(self, number: int) -> list[list[bytes]]:
        """Return sends of the peer of node `number`: each the rows of a train, or a single datagram."""
        random_, found = self.random, []
        for _ in range(random_.randrange(1, 6)):
            kind = random_.random()
            if kind < 0.3:
                found += [[mutated(random_, self._datagrams, after_geneve)] for _ in range(random_.randrange(1, 9))]
            elif kind < 0.42:
                size = random_.choice((28, 28, 29, 60, 1472, 9000))
                found.append(even([self.probe(size) for _ in range(random_.randrange(1, 8))]))
            else:
                found.append(self.train(number))
        return [rows for rows in found if rows]

    def train(self, number: int) -> list[bytes]:
        """Return the rows that a super-packet makes, in most cases with something wrong among them."""
        random_ = self.random
        protocol = random_.choice((TCP, UDP))
        ends = self.ends((f"10.42.{number}.3", f"fd42:{number}::3"), _NEAR)
        gso_size = random_.choice((1, 50, 100, 255, 256, 257, 536, 1000, 1300, 1412))
        count = random_.randrange(1, min(MOST_ROWS, 60_000 // (gso_size + 140)) + 1)
        size = max(1, count * gso_size - random_.choice((0, 0, 1, gso_size // 2)))
        whole = self.packet(*ends, size, protocol, (64,) * 15 + (1,))
        ours, segments = random_.random() < 0.8, random_.random() < 0.6
        packets = (
            packets_of(frame(whole, protocol, gso_size))
            if int.from_bytes(whole[6:8], "big") & 0x3FFF == 0 or whole[0] >> 4 == 6
            else [whole]
        )
        first, frame_id = random_.choice((0, 0, 0, 5, 250)), random_.getrandbits(16)
        epoch = random_.choice(EPOCHS) & 0xFF
        rows = []
        for index, packet in enumerate(packets):
            flags = 1 + 2 * segments + 4 * (segments and index == len(packets) - 1)
            rows.append(
                encapsulated(packet, protocol, flags, frame_id, (first + index) & 0xFF, epoch)
                if ours
                else encapsulated(packet, 0, 0, 0, 0)
            )
        for _ in range(random_.choice((0, 1, 1, 1, 2))):
            rows = self.disturbed(rows)
        return even(rows)

    def probe(self, size: int) -> bytes:
        """Return a probe of either kind, a request of that size; now and then something is wrong with it."""
        random_ = self.random
        kind = random_.choice((1, 1, 1, 2, 2, 0, 3))
        made = probe(kind, max(28, size), random_.getrandbits(32), random_.getrandbits(64))
        if random_.random() < 0.25:
            where = random_.randrange(28)
            made = made[:where] + bytes((random_.choice((0, 1, 2, 4, 5, 28, 64, 255)),)) + made[where + 1 :]
        if random_.random() < 0.1:
            made = made[: random_.randrange(1, len(made) + 1)] + random_.randbytes(random_.randrange(2))
        return made

    def disturbed(self, rows: list[bytes]) -> list[bytes]:
        """Return the rows with some lost, doubled, exchanged or changed."""
        random_, rows = self.random, list(rows)
        at = random_.randrange(len(rows))
        how = random_.randrange(12)
        if how == 0 and len(rows) > 1:
            del rows[at]
        elif how == 1:
            rows.insert(at, rows[at])
        elif how == 2:
            other = random_.randrange(len(rows))
            rows[at], rows[other] = rows[other], rows[at]
        elif how == 3:  # the option: flags, offsets, frame id, index
            where = random_.randrange(8, 20)
            if len(rows[at]) > where:
                rows[at] = (
                    rows[at][:where] + bytes((random_.choice((0, 1, 2, 3, 4, 5, 7, 16, 255)),)) + rows[at][where + 1 :]
                )
        elif how == 4:  # anywhere in the headers
            where = random_.randrange(min(90, len(rows[at])))
            rows[at] = rows[at][:where] + bytes((rows[at][where] ^ 1 << random_.randrange(8),)) + rows[at][where + 1 :]
        elif how == 5:
            rows[-1] = rows[-1][: random_.randrange(1, len(rows[-1]) + 1)]
        elif how == 6 and len(rows[at]) > 48 and rows[at][20] >> 4 == 4:  # a number of its own, rightly summed
            head = bytearray(rows[at])
            head[24:26] = random_.randbytes(2)
            mend(head, 20)
            rows[at] = bytes(head)
        elif how == 7:  # a field of the headers, the same in every row from here on
            where = random_.randrange(min(90, *map(len, rows)))
            value = bytes((random_.randrange(256),))
            rows[at:] = [row[:where] + value + row[where + 1 :] for row in rows[at:]]
        elif how == 8:  # the epoch: of one row, or of all from here on
            epoch = bytes((random_.choice(EPOCHS) & 0xFF,))
            end = random_.choice((at + 1, len(rows)))
            rows[at:end] = [row[:19] + epoch + row[20:] if len(row) > 20 else row for row in rows[at:end]]
        elif how == 9:  # a probe in the row's place
            rows[at] = self.probe(len(rows[at]))
        elif how == 10:  # a probe before it
            rows.insert(at, self.probe(len(rows[0])))
        else:  # one shorter in the middle: those after it lie askew
            rows[at] = rows[at][: -random_.randrange(1, min(8, len(rows[at]) - 1))]
        return rows


def encapsulated(packet: bytes, protocol: int, flags: int, frame_id: int, index: int, epoch: int = 0) -> bytes:
    """Encapsulate with our option (its checksum partial where flags say so), or without where there is no protocol."""
    base = struct.pack(">HI", 0x0800 if packet[0] >> 4 == 4 else 0x86DD, VNI << 8)
    if not protocol:
        return b"\0\0" + base + packet
    at, offset = l4_at(packet, protocol), 16 if protocol == TCP else 6
    option = struct.pack(">HBBBBHHBB", 0xFFFF, 0x81, 2, flags, offset, at, frame_id, index, epoch)
    return b"\3\x40" + base + option + partial(packet, protocol)


def even(rows: list[bytes]) -> list[bytes]:
    """Cut what rows hold, side by side, into rows of the first's length, as one UDP_SEGMENT send must be."""
    step, whole = len(rows[0]), b"".join(rows)[:65000]
    return [whole[at : at + step] for at in range(0, len(whole), step)][:MOST_ROWS]
