"""Questions and replies on the wire: byte for byte as drawn, whole or not at all, and never an exception."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import geneve, probe, question
from router.wire.question import (
    MOST_BYTES,
    MOST_PACKET_BYTES,
    QUESTION,
    QUESTION_BYTES,
    REPLY,
    Header,
    Question,
    Reply,
    decode,
    decode_header,
    encode_question,
    encode_reply,
)
from tests.capture import decode as tshark
from tests.packets import UDP, ip, udp

VNI = 7
PACKET = ip("10.42.1.2", "10.42.2.3", UDP, udp(b"hello"))
ASKED = Question(0xDEADBEEF, 1 << 63, PACKET, 1400)
REPLIED = Reply(0xDEADBEEF, 1 << 63, 3, 1452, "no_attachment", "10.42.2.3", "node2")


def head(kind: int, size: int) -> bytes:
    return b"\5\xc0" + struct.pack(">HIHBBBBHIQ", 0, VNI << 8, 0xFFFF, 0x83, 4, kind, 0, size, 0xDEADBEEF, 1 << 63)


def test_a_question_on_the_wire() -> None:
    datagram = encode_question(VNI, ASKED)
    said = struct.pack(">HH", 1400, len(PACKET)) + PACKET
    assert datagram == head(1, 512) + said + bytes(512 - 28 - len(said))
    assert decode(datagram) == ASKED
    assert decode_header(b"junk" + datagram + b"more", 4, 4 + 512) == Header(QUESTION, 512, 0xDEADBEEF, 1 << 63)


def test_a_reply_on_the_wire() -> None:
    datagram = encode_reply(VNI, REPLIED)
    said = b"\3\0\x05\xac\0\0" + b"\x0dno_attachment" + b"\x0910.42.2.3" + b"\x05node2"
    assert datagram == head(2, 28 + len(said)) + said
    assert decode(datagram) == REPLIED
    assert decode_header(datagram, 0, len(datagram)) == Header(REPLY, len(datagram), 0xDEADBEEF, 1 << 63)


def test_a_long_packet_is_quoted_in_part() -> None:
    asked = decode(encode_question(VNI, replace(ASKED, packet=bytes(range(256)) * 5, packet_bytes=1280)))
    assert asked == replace(ASKED, packet=bytes(range(256)), packet_bytes=1280)
    assert MOST_PACKET_BYTES == 256


@pytest.mark.parametrize(
    "text", ["", "n" * 128, "n" * 1000, "ü" * 1000, "n" + "ü" * 1000, "漢" * 99, "\udc80lone", "🚀" * 50]
)
def test_no_reply_is_longer_than_a_question(text: str) -> None:
    datagram = encode_reply(VNI, replace(REPLIED, reason=text, target=text, node=text))
    assert len(datagram) <= QUESTION_BYTES <= MOST_BYTES
    found = decode(datagram)
    assert isinstance(found, Reply)
    assert found.reason == found.target == found.node
    cut = text.replace("\udc80", "?")
    assert cut.startswith(found.node), "cut between two letters"
    assert len(found.node.encode()) > 124 or found.node == cut


def test_what_people_are_shown_is_printable() -> None:
    found = decode(encode_reply(VNI, replace(REPLIED, node="\x1b[31mred\n\u202e\0")))
    assert isinstance(found, Reply)
    assert found.node == "�[31mred���"
    datagram = encode_reply(VNI, replace(REPLIED, reason="", target="", node="ab"))
    found = decode(datagram[:-2] + b"\xff\xfe")
    assert isinstance(found, Reply)
    assert found.node == "��"


@pytest.mark.parametrize("whole", [encode_question(VNI, ASKED), encode_reply(VNI, REPLIED)], ids=["question", "reply"])
def test_one_that_is_cut_or_longer_is_none(whole: bytes) -> None:
    for size in range(len(whole)):
        assert decode(whole[:size]) is None, size
        assert decode_header(whole, 0, size) is None, size
    assert decode(whole + b"\0") is None


@pytest.mark.parametrize("whole", [encode_question(VNI, ASKED), encode_reply(VNI, REPLIED)], ids=["question", "reply"])
def test_the_header_must_be_right(whole: bytes) -> None:
    """Every bit of it that says what this is; of the rest, only what it says may change."""
    free = {1: 0x7F, 4: 0xFF, 5: 0xFF, 6: 0xFF, 7: 0xFF, 11: 0xE0, 13: 0xFF} | dict.fromkeys(range(16, 28), 0xFF)
    for at in range(28):
        for bit in (1 << number for number in range(8)):
            mutated = whole[:at] + bytes((whole[at] ^ bit,)) + whole[at + 1 :]
            assert (decode_header(mutated, 0, len(mutated)) is not None) == bool(free.get(at, 0) & bit), (at, bit)


def test_a_quote_that_does_not_fit_is_none() -> None:
    good = encode_question(VNI, ASKED)
    for packet_bytes, quoted_bytes, taken in (
        (1400, 256, True), (1400, 257, False), (1400, 0xFFFF, False), (10, 10, True), (10, 11, False), (0, 0, True),
        (0xFFFF, 0, True), (0, 1, False),
    ):  # fmt: skip
        found = decode(good[:28] + struct.pack(">HH", packet_bytes, quoted_bytes) + good[32:])
        assert (found is not None) == taken, (packet_bytes, quoted_bytes)
        if isinstance(found, Question):
            assert (found.packet_bytes, len(found.packet)) == (packet_bytes, quoted_bytes)


def test_texts_that_do_not_fit_are_none() -> None:
    def reply(said: bytes) -> bytes:
        return head(2, 28 + len(said)) + said

    facts = b"\1\0\5\xac\0\0"
    assert decode(reply(facts + b"\0\0\0")) is not None
    for said in (facts, facts + b"\0", facts + b"\0\0", facts + b"\0\0\1", facts + b"\xff" + bytes(200), facts[:5]):
        assert decode(reply(said)) is None, said


@given(st.binary(max_size=600))
def test_any_bytes_are_one_or_none(junk: bytes) -> None:
    assert decode(junk) is None or len(junk) > 28
    for kind in (QUESTION, REPLY):
        size = QUESTION_BYTES if kind == QUESTION else min(28 + len(junk), MOST_BYTES)
        decode((head(kind, size) + junk)[:size].ljust(size, b"\xff"))


def test_mutated_ones_are_one_or_none() -> None:
    random_ = random.Random(6)
    taken = 0
    for _ in range(5_000):
        datagram = bytearray(random_.choice((encode_question(VNI, ASKED), encode_reply(VNI, REPLIED))))
        for _ in range(random_.randrange(1, 4)):
            datagram[random_.randrange(28, len(datagram))] = random_.getrandbits(8)
        found = decode(bytes(datagram))
        taken += found is not None
        if isinstance(found, Question):
            assert len(found.packet) <= min(MOST_PACKET_BYTES, found.packet_bytes)
        elif found is not None:
            assert all(text.isprintable() and len(text) <= 255 for text in (found.reason, found.target, found.node))
    assert 1_000 < taken < 5_000


def test_tshark_reads_an_oam_packet(tmp_path: Path) -> None:
    file = tmp_path / "questions.pcap"
    with file.open("wb") as opened:
        pcap = dpkt.pcap.Writer(opened, linktype=101, snaplen=65535)
        for number, datagram in enumerate((encode_question(VNI, ASKED), encode_reply(VNI, REPLIED))):
            body = struct.pack(">HHHH", 6081, 6081, 8 + len(datagram), 0) + datagram
            pcap.writepkt(bytes(dpkt.ip.IP(src=b"\xc0\0\2\1", dst=b"\xc0\0\2\2", p=17, data=body)), ts=number)
    fields = ["geneve.flags.oam", "geneve.flags.critical", "geneve.vni", "geneve.proto_type", "geneve.option.class"]
    rows = tshark(file, [*fields, "_ws.malformed", "_ws.expert.severity"])
    assert len(rows) == 2
    for row in rows:
        assert [int(row[field][0] in {"1", "True"}) for field in fields[:2]] == [1, 1]
        assert [int(row[field][0], 0) for field in fields[2:]] == [VNI, 0, 0xFFFF]
        assert row["_ws.malformed"] == []
        assert "8388608" not in row["_ws.expert.severity"], "an error"


def test_it_is_no_packet_and_no_probe_to_others() -> None:
    """An engine without questions counts it as a bad encapsulation; and a probe is no question."""
    for datagram in (encode_question(VNI, ASKED), encode_reply(VNI, REPLIED)):
        assert geneve.decode(datagram, 0, len(datagram), VNI) == "bad_encapsulation"
        assert probe.decode(datagram, 0, len(datagram)) is None
    for kind in (probe.REQUEST, probe.ANSWER):
        asked = probe.encode(VNI, probe.Probe(kind, 512, 1, 2))
        assert question.decode_header(asked, 0, len(asked)) is None
