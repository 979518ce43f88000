"""Probes: their bytes as they are drawn, what may come in their place, and what tshark makes of them."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import DropReason
from router.wire import geneve
from router.wire.probe import ANSWER, HEADER_BYTES, KIND_OFFSET, REQUEST, Probe, answer_to, decode, encode
from tests import peer
from tests.capture import decode as tshark

VNI = 0xABCDEF
HEADER = bytes.fromhex("05c00000 abcdef00 ffff8204 0100 001c 89abcdef 0123456789abcdef")
"""A request of 28 bytes."""
SENT_NS = 0x0123456789ABCDEF


def read(datagram: bytes) -> Probe | None:
    return decode(b"before" + datagram + b"after", 6, 6 + len(datagram))


def test_bytes_are_as_drawn() -> None:
    assert encode(VNI, Probe(REQUEST, 28, 0x89ABCDEF, SENT_NS)) == HEADER
    assert encode(VNI, Probe(REQUEST, 30, 0x89ABCDEF, SENT_NS)) == HEADER[:15] + b"\x1e" + HEADER[16:] + b"\0\0"
    assert encode(VNI, Probe(ANSWER, 1452, 0x89ABCDEF, SENT_NS)) == HEADER[:12] + b"\2\0\5\xac" + HEADER[16:]
    assert len(HEADER) == HEADER_BYTES
    assert HEADER[KIND_OFFSET] == REQUEST
    assert encode(VNI, Probe(REQUEST, 99, 5, 6)) == peer.probe(1, 99, 5, 6, VNI)


def test_an_answer_is_the_header_with_another_kind() -> None:
    for size in (28, 29, 1472, 65_507):
        asked = Probe(REQUEST, size, 7, 8)
        answer = answer_to(encode(VNI, asked)[:HEADER_BYTES])
        assert answer == encode(VNI, asked._replace(kind=ANSWER))
        assert read(answer) == asked._replace(kind=ANSWER)
        assert len(answer) <= size, "no longer than what was asked"


@given(
    st.integers(0, (1 << 24) - 1), st.sampled_from([REQUEST, ANSWER]), st.integers(HEADER_BYTES, 2000),
    st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1),
)  # fmt: skip
def test_what_was_encoded_is_decoded(vni: int, kind: int, size: int, sequence: int, sent_ns: int) -> None:
    sent = Probe(kind, size, sequence, sent_ns)
    datagram = encode(vni, sent)
    assert len(datagram) == (size if kind == REQUEST else HEADER_BYTES)
    assert read(datagram) == sent
    assert geneve.decode(datagram, 0, len(datagram), vni) is DropReason.BAD_ENCAPSULATION, "it holds no packet"
    assert geneve.decode(datagram, 0, len(datagram), vni ^ 1) is DropReason.WRONG_NETWORK


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(HEADER[:-1], id="cut off"),
        pytest.param(HEADER + b"\0", id="longer than it says"),
        pytest.param(HEADER[:14] + b"\0\x1d" + HEADER[16:], id="shorter than it says"),
        pytest.param(HEADER[:14] + b"\0\x1b" + HEADER[16:], id="says it is shorter than a header"),
        pytest.param(HEADER[:14] + b"\0\0" + HEADER[16:], id="says it is nothing"),
        pytest.param(HEADER[:12] + b"\2" + HEADER[13:] + b"\0", id="answer with something behind it"),
        pytest.param(HEADER[:12] + b"\2\0\0\x1b" + HEADER[16:], id="answer to less than a header"),
        pytest.param(HEADER[:12] + b"\0" + HEADER[13:], id="kind 0"),
        pytest.param(HEADER[:12] + b"\3" + HEADER[13:], id="kind 3"),
        pytest.param(HEADER[:12] + b"\xff" + HEADER[13:], id="kind 255"),
        pytest.param(b"\x05\x40" + HEADER[2:], id="no control packet"),
        pytest.param(b"\x45" + HEADER[1:], id="version 1"),
        pytest.param(b"\x04" + HEADER[1:], id="option length 4"),
        pytest.param(b"\x06" + HEADER[1:], id="option length 6"),
        pytest.param(HEADER[:2] + b"\x08\x00" + HEADER[4:], id="with a protocol"),
        pytest.param(HEADER[:8] + b"\xff\xfe" + HEADER[10:], id="option of another class"),
        pytest.param(HEADER[:10] + b"\x02" + HEADER[11:], id="option that is not critical"),
        pytest.param(HEADER[:10] + b"\x81" + HEADER[11:], id="the option of packets"),
        pytest.param(HEADER[:11] + b"\x05" + HEADER[12:], id="option of another length"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff" * 28, id="all ones"),
        pytest.param(bytes(28), id="all zeros"),
    ],
)
def test_what_is_no_probe(hostile: bytes) -> None:
    assert read(hostile) is None


def test_reserved_bits_are_ignored() -> None:
    """RFC 8926 sections 3.4 and 3.5: what is reserved must be ignored on receipt."""
    wanted = read(HEADER)
    assert wanted == Probe(REQUEST, 28, 0x89ABCDEF, SENT_NS)
    for at, bits in ((1, 0x3F), (1, 0x40), (7, 0xFF), (11, 0xE0), (13, 0xFF)):
        changed = bytearray(HEADER)
        changed[at] ^= bits
        assert read(bytes(changed)) == wanted


def test_every_length_but_its_own_is_refused() -> None:
    whole = encode(VNI, Probe(REQUEST, 1452, 1, 2))
    assert [size for size in range(len(whole) + 1) if read(whole[:size]) is not None] == [1452]


@given(st.binary(max_size=80), st.integers(0, 28))
def test_random_bytes_never_raise(data: bytes, kept: int) -> None:
    for datagram in (data, HEADER[:kept] + data):
        found = read(datagram)
        assert found is None or (found.kind in {REQUEST, ANSWER} and len(datagram) <= max(found.size_bytes, 28))


def test_mutated_probes_never_raise() -> None:
    random_ = random.Random(1)
    seen = set()
    for _ in range(30_000):
        data = bytearray(HEADER.ljust(random_.choice((28, 60)), b"\0"))
        for _ in range(random_.randrange(1, 4)):
            data[random_.randrange(28)] = random_.choice((0, 1, 2, 4, 5, 0x1C, 0x3C, 0xC0, random_.randrange(256)))
        found = read(bytes(data))
        seen.add(found and found.kind)
        assert found is None or found.size_bytes == len(data) or found.kind == ANSWER
    assert seen == {None, REQUEST, ANSWER}


def test_tshark_reads_an_oam_packet(tmp_path: Path) -> None:
    sent = [encode(VNI, Probe(kind, size, 1, 2)) for kind in (REQUEST, ANSWER) for size in (28, 29, 1472)]
    file = tmp_path / "probes.pcap"
    with file.open("wb") as opened:
        pcap = dpkt.pcap.Writer(opened, linktype=101, snaplen=65535)
        for number, datagram in enumerate(sent):
            body = struct.pack(">HHHH", 6081, 6081, 8 + len(datagram), 0) + datagram
            whole = dpkt.ip.IP(src=b"\xc0\0\2\1", dst=b"\xc0\0\2\2", p=17, data=body)
            pcap.writepkt(bytes(whole), ts=number)
    fields = ["geneve.flags.oam", "geneve.flags.critical", "geneve.vni", "geneve.proto_type", "geneve.option.class"]
    rows = tshark(file, [*fields, "geneve.option.type", "_ws.malformed", "_ws.expert.severity"])
    assert len(rows) == len(sent)
    for row in rows:
        assert [int(row[field][0] in {"1", "True"}) for field in fields[:2]] == [1, 1]
        assert [int(row[field][0], 0) for field in fields[2:]] == [VNI, 0, 0xFFFF]
        assert row["_ws.malformed"] == []
        assert "8388608" not in row["_ws.expert.severity"], "an error"
