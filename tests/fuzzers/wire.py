"""Packets and datagrams at their parsers: what a Pod writes, what comes in at the UDP port."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from random import Random

from router.model import DropReason
from router.wire import bpf, flow, fragment, geneve, icmp, packet, probe, question, segment
from tests.fuzz import datagrams, frames
from tests.fuzzers import mutate
from tests.fuzzers.target import Target

_VNI = 7
_ADDRESSES = (ip_address("10.1.1.1"), ip_address("fd00:0:0:1::1"))


class InnerPackets(Target):
    """An IP packet: header, flow, TCP and UDP shape, checksums, what an ICMP error quotes, what is cut in fragments."""

    name = "packets"
    reached_by = "Pods and peers: IP, TCP, UDP, ICMP"

    def __init__(self) -> None:
        self._valid = frames()

    def make(self, random: Random) -> bytes:
        return mutate.some(random, self._valid)

    def feed(self, given: bytes) -> None:
        head, inner = given[:10].ljust(10, b"\0"), given[10:]
        flow.flow_of(inner)
        vnet = packet.VnetHeader.read(head, 0)
        header = packet.parse_ip(inner, 0, len(inner))
        if header is None:
            return
        whole = memoryview(inner)
        segment.shape_of(whole, header, vnet.csum_start, vnet.csum_offset)
        segment.gso_shape(whole, header, vnet)
        packet.finish_checksum(bytearray(inner), vnet.csum_start, vnet.csum_offset)
        for reason in DropReason:
            made = icmp.make_error(inner, reason, _ADDRESSES, 1280)
            assert made is None or packet.parse_ip(made, 0, len(made)) is not None, "an ICMP error that is no packet"
        if header.version == 4:
            for mtu_bytes in (68, 576, 1280):
                for piece in fragment.fragment(inner, mtu_bytes):
                    assert packet.parse_ip(piece, 0, len(piece)) is not None, "a fragment that is no packet"


class Datagrams(Target):
    """What a stranger sends to the UDP port: Geneve, probes, questions."""

    name = "datagrams"
    reached_by = "anybody who reaches the UDP port"

    def __init__(self) -> None:
        asked = question.Question(3, 4, bytes.fromhex("4500001c0000000040110000") + bytes(16), 1400)
        replied = question.Reply(3, 4, 2, 1400, "no_route", "node-2", "node-1")
        self._valid = [
            *datagrams(),
            question.encode_question(_VNI, asked),
            question.encode_reply(_VNI, replied),
            probe.encode(_VNI, probe.Probe(probe.REQUEST, 200, 1, 2)),
            probe.encode(_VNI, probe.Probe(probe.ANSWER, 200, 1, 2)),
        ]

    def make(self, random: Random) -> bytes:
        return mutate.some(random, self._valid)

    def feed(self, given: bytes) -> None:
        found = geneve.decode(given, 0, len(given), _VNI)
        assert isinstance(found, DropReason) or found.header_bytes <= len(given)
        asked = probe.decode(given, 0, len(given))
        if asked is not None and asked.kind == probe.REQUEST:
            answer = probe.answer_to(given[: probe.HEADER_BYTES])
            assert len(answer) <= len(given), "an answer longer than its request"
        said = question.decode(given)
        if isinstance(said, question.Question):
            assert len(said.packet) <= question.MOST_PACKET_BYTES
            flow.flow_of(said.packet)
        elif said is not None:
            assert all(text.isprintable() for text in (said.reason, said.target, said.node))


class Programs(Target):
    """A capture's filter: whatever passes the check ends, and raises nothing, over any packet."""

    name = "bpf"
    reached_by = "gRPC callers: filters of captures"

    def __init__(self) -> None:
        self._packets = frames()[:40]

    def make(self, random: Random) -> bytes:
        length = random.choice((1, 2, 3, 5, 12, 40))
        codes = (0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x80, 0xB1, 0x15, 0x25, 0x35, 0x45, 0x05, 0x06, 0x16, 0x07, 0x87, 0x02, 0x03,
                 0x04, 0x14, 0x24, 0x34, 0x54, 0x64, 0x74, 0x84, 0x94, 0xA4, 0x0C, 0x3C, 0x6C, 0x9C, 0x01, 0x61, 0x00)  # fmt: skip
        out = b""
        for at in range(length):
            code = random.choice(codes) if random.random() < 0.97 else random.randrange(0x10000)
            left = max(1, length - at)
            jumps = (random.randrange(left), random.randrange(left)) if random.random() < 0.95 else (255, 255)
            constant = random.choice((random.randrange(80), random.choice(mutate.WORDS), random.randrange(1 << 32)))
            out += struct.pack(">HBBI", code, *jumps, constant)
        if random.random() < 0.9:
            out += struct.pack(">HBBI", random.choice((0x06, 0x16)), 0, 0, random.randrange(1 << 32))
        return out + random.choice(self._packets)

    def feed(self, given: bytes) -> None:
        for size in (8 * (len(given) // 8), 8 * min(len(given) // 8, 13), 8 * min(len(given) // 8, 3)):
            program = [struct.unpack_from(">HBBI", given, at) for at in range(0, size, 8)]
            if not bpf.check(program):
                assert 0 <= bpf.run(program, given[size:]) <= 0xFFFFFFFF
