"""The wire header: as RFC 8926 draws it, as tshark reads it, and whatever else arrives gets a reason, never an exception."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.model import DropReason
from router.wire import geneve
from router.wire.geneve import Encapsulation, decode, encode, encode_plain
from router.wire.packet import VnetHeader, parse_ip
from router.wire.segment import gso_shape
from router.wire.split import Splitter
from tests.packets import TCP, UDP, finished, flows, frame, ip, l4_at, partial, udp

VNI = 0xABCDEF
OURS = struct.pack(">HBB", 0xFFFF, 0x81, 2)


def base(options: bytes, *, version: int = 0, bits: int = 0x40, protocol: int = 0x0800, vni: int = VNI) -> bytes:
    """Pack a base header by hand, and the options after it."""
    assert len(options) % 4 == 0
    return struct.pack(">BBHI", version << 6 | len(options) // 4, bits, protocol, vni << 8) + options


def option(kind: int, size: int, option_class: int = 0x0102) -> bytes:
    return struct.pack(">HBB", option_class, kind, size // 4) + bytes(size)


def read(datagram: bytes, vni: int = VNI) -> Encapsulation | DropReason:
    return decode(b"before" + datagram + b"after", 6, 6 + len(datagram), vni)


def test_bytes_are_as_documented() -> None:
    header = encode(VNI, 4, 7, 16, 0x1234, 0x5678, 9, 0xE0)
    assert header == bytes.fromhex("03400800 abcdef00 ffff8102 07101234 567809e0")
    assert encode(1, 6) == bytes.fromhex("034086dd 00000100 ffff8102 00000000 00000000")
    assert encode_plain(VNI, 6) == bytes.fromhex("000086dd abcdef00")
    assert header[geneve.FLAGS_OFFSET] == 7
    assert header[geneve.INDEX_OFFSET] == 9
    assert header[geneve.EPOCH_OFFSET] == 0xE0
    assert len(header) == geneve.HEADER_BYTES


@given(
    st.integers(0, (1 << 24) - 1), st.sampled_from([4, 6]), st.integers(0, 255), st.integers(0, 255),
    st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=8),
)  # fmt: skip
def test_what_was_encoded_is_decoded(
    vni: int, version: int, flags: int, offset: int, start: int, frame_id: int, row: int, epoch: int, inner: bytes
) -> None:
    wanted = Encapsulation(20, version, flags, offset, start, frame_id, row, epoch)
    assert read(encode(vni, version, flags, offset, start, frame_id, row, epoch) + inner, vni) == wanted
    assert read(encode_plain(vni, version) + inner, vni) == Encapsulation(8, version)
    assert read(encode(vni, version) + inner, vni ^ 1) is DropReason.WRONG_NETWORK


def test_what_is_not_ours_to_read_is_dropped_by_reason() -> None:
    bad, inner = DropReason.BAD_ENCAPSULATION, ip("10.42.1.2", "10.42.2.3", 17, b"")
    ours = OURS + bytes(8)
    for version in (1, 2, 3):
        assert read(base(ours, version=version) + inner) is bad
    assert read(base(ours, bits=0xC0) + inner) is bad  # a control packet
    assert read(base(b"", bits=0x80) + inner) is bad
    assert read(base(ours, bits=0xC0) + inner, VNI + 1) is DropReason.WRONG_NETWORK
    for protocol in (0, 0x6558, 0x0806, 0x8847, 0x0801, 0xFFFF):
        assert read(base(ours, protocol=protocol) + inner) is bad
    assert read(base(option(0x81, 4)) + inner) is bad  # critical, and unknown here
    assert read(base(ours + option(0x80, 0)) + inner) is bad
    assert read(base(OURS[:3] + b"\1" + bytes(4)) + inner) is bad  # ours, but of another length
    assert read(base(option(1, 8)[:4] + bytes(4)) + inner) is bad  # longer than the header says
    assert read(base(OURS) + inner) is bad
    for size in range(20):
        assert read((base(ours) + inner)[:size]) is bad


def test_options_of_others_are_walked_past() -> None:
    inner = ip("10.42.1.2", "10.42.2.3", 17, b"")
    ours = OURS + bytes.fromhex("0110001400050307")
    for before in (b"", option(1, 0), option(2, 4), option(3, 124), option(1, 0) * 5):
        for after in (b"", option(4, 0), option(0x7F, 40, 0xFFFF)):
            if len(before + after) + 12 <= 252:
                found = read(base(before + ours + after) + inner)
                assert found == Encapsulation(8 + len(before + ours + after), 4, 1, 16, 20, 5, 3, 7)
            found = read(base(before + after, bits=0) + inner)
            assert found == Encapsulation(8 + len(before + after), 4)
            assert found.epoch is None


def test_reserved_bits_are_ignored() -> None:
    """RFC 8926 sections 3.4 and 3.5: what is reserved must be ignored on receipt."""
    inner = ip("10.42.1.2", "10.42.2.3", 17, b"")
    wanted = Encapsulation(20, 4, 1, 16, 20, 5, 3, 7)
    header = bytearray(base(OURS + bytes.fromhex("0110001400050307")))
    for at, bits in ((1, 0x3F), (7, 0xFF), (11, 0xE0)):
        changed = bytearray(header)
        changed[at] |= bits
        assert read(bytes(changed) + inner) == wanted


@pytest.mark.parametrize("epoch", [1, 2, 127, 128, 129, 255, 256, 257, 300, 65_536 + 3])
def test_half_of_all_epochs_are_older(epoch: int) -> None:
    """Those up to 128 behind; what is up to 127 ahead is a table's lag, and no offence."""
    for ahead in range(-128, 128):
        encap = Encapsulation(20, 4, epoch=(epoch + ahead) % 256)
        assert encap.is_older(epoch) == (ahead < 0)
    assert not Encapsulation(8, 4).is_older(epoch), "plain Geneve tells none"


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_never_raise(data: bytes) -> None:
    for vni in (VNI, int.from_bytes(data[4:7], "big")):
        found = read(data, vni)
        assert isinstance(found, DropReason) or found.header_bytes <= len(data)


def test_mutated_headers_never_raise() -> None:
    random_ = random.Random(1)
    valid = base(option(1, 4) + OURS + bytes(8) + option(2, 0)) + bytes(20)
    seen = set()
    for _ in range(30_000):
        data = bytearray(valid)
        for _ in range(random_.randrange(1, 4)):
            data[random_.randrange(36)] = random_.randrange(256)
        del data[random_.choice((len(data), random_.randrange(len(data)))) :]
        found = read(bytes(data))
        seen.add(found if isinstance(found, DropReason) else None)
        assert isinstance(found, DropReason) or (8 <= found.header_bytes <= len(data) and found.ip_version in {4, 6})
    assert seen == {None, DropReason.BAD_ENCAPSULATION, DropReason.WRONG_NETWORK}


# tshark, which knows nothing of us


FIELDS = (
    "geneve.vni", "geneve.proto_type", "geneve.option.class", "geneve.option.type", "ip.src", "ipv6.src",
    "tcp.seq_raw", "udp.length", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "_ws.malformed",
)  # fmt: skip


def write_pcap(path: Path, datagrams: list[bytes]) -> None:
    """Write UDP datagrams to port 6081 as raw IP packets (LINKTYPE_RAW, 101)."""
    with path.open("wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 101))
        for number, datagram in enumerate(datagrams):
            packet = finished(ip("192.0.2.1", "192.0.2.2", UDP, udp(datagram, (50_000, 6081))), UDP)
            file.write(struct.pack("=IIII", number, 0, len(packet), len(packet)) + packet)


def tshark(path: Path) -> list[dict[str, list[str]]]:
    """Return every packet's fields; those of inner headers come after the outer's."""
    checks = [f"{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    flags = [part for check in checks for part in ("-o", check)]
    for field in FIELDS:
        flags += ["-e", field]
    command = [
        "tshark",
        "-r",
        str(path),
        *flags,
        "-T",
        "fields",
        "-E",
        "separator=|",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=,",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return [{name: value.split(",") if value else [] for name, value in zip(FIELDS, row, strict=True)} for row in rows]


def test_tshark_reads_single_packets(tmp_path: Path) -> None:
    sent = []
    for size in (0, 1, 700):
        for _, protocol, packet in flows(size):
            version = packet[0] >> 4
            at, offset = l4_at(packet, protocol), 16 if protocol == TCP else 6
            sent.append((version, True, encode(VNI, version, 1, offset, at) + partial(packet, protocol)))
            sent.append((version, False, encode(VNI, version) + finished(packet, protocol)))
            sent.append((version, False, encode_plain(VNI, version) + finished(packet, protocol)))
    path = tmp_path / "tunnel.pcap"
    write_pcap(path, [datagram for _, _, datagram in sent])
    rows = tshark(path)
    assert len(rows) == len(sent)
    for row, (version, is_partial, datagram) in zip(rows, sent, strict=True):
        assert row["geneve.vni"] == [f"0x{VNI:06x}"]
        assert row["geneve.proto_type"] == ["0x0800" if version == 4 else "0x86dd"]
        if datagram[0] & 63:
            assert row["geneve.option.class"] == ["0xffff"]
            assert [int(value, 0) & 0x7F for value in row["geneve.option.type"]] == [1]
        assert row["ip.src" if version == 4 else "ipv6.src"][-1] in {"10.42.1.2", "fd42:1::2"}
        assert set(row["ip.checksum.status"]) == {"1"}
        assert row["_ws.malformed"] == []
        if not is_partial:
            assert set(row["tcp.checksum.status"] + row["udp.checksum.status"]) == {"1"}


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_tshark_reads_trains(tmp_path: Path, offload: bool) -> None:
    sent: list[tuple[int, int, bytes]] = []
    for _, protocol, packet in flows(9_999):
        received = frame(packet, protocol, gso_size=1300)
        view, vnet = memoryview(received)[10:], VnetHeader.read(received, 0)
        header = parse_ip(view, 0, len(view))
        assert header is not None
        shape = gso_shape(view, header, vnet)
        assert shape is not None
        for train in Splitter(VNI).split(view, header, vnet, shape, offload):
            step = train.segment_bytes
            datagrams = [bytes(train.datagrams[at : at + step]) for at in range(0, len(train.datagrams), step)]
            sent += [(protocol, index, row) for index, row in enumerate(datagrams)]
    path = tmp_path / "trains.pcap"
    write_pcap(path, [datagram for _, _, datagram in sent])
    rows = tshark(path)
    assert len(rows) == len(sent)
    for row, (protocol, index, _) in zip(rows, sent, strict=True):
        assert row["_ws.malformed"] == []
        assert set(row["ip.checksum.status"]) == {"1"}
        last = index == 9_999 // 1300
        if protocol == TCP:
            assert row["tcp.seq_raw"] == [str(1 + 1300 * index)]
        else:
            assert row["udp.length"][-1] == str(8 + (9_999 % 1300 if last else 1300))
        if not offload:
            assert set(row["tcp.checksum.status"] + row["udp.checksum.status"]) == {"1"}
            assert row["geneve.option.class"] == []
