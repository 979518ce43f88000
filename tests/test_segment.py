"""Super-packets: cut as a kernel cuts them, joined only where cutting would give the same rows back."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise

import dpkt
import pytest

from router.model import DropReason
from router.wire import geneve
from router.wire.merge import Merger
from router.wire.packet import VnetHeader, parse_ip
from router.wire.segment import MAX_TRAIN_BYTES, Train, gso_shape, packets_in, shape_of
from router.wire.split import Splitter
from tests import packets
from tests.packets import ACK, CWR, ECE, FIN, PSH, TCP, UDP, finished, flows, frame, ip, l4_at, packets_of, tcp, udp

VNI = 7
BASE = geneve.BASE_BYTES
ENCAP = geneve.HEADER_BYTES
PAYLOADS = [0, 1, 7, 999, 1000, 1001, 1999, 2000, 2001, 12_345, 63_999, 64_000]


def split(
    received: bytes, max_segments: int = 128, offload: bool = True, splitter: Splitter | None = None, epoch: int = 0
) -> list[Train]:
    packet = memoryview(received)[10:]
    vnet = VnetHeader.read(received, 0)
    header = parse_ip(packet, 0, len(packet))
    assert header is not None
    shape = gso_shape(packet, header, vnet)
    assert shape is not None
    trains = (splitter or Splitter(VNI, max_segments)).split(packet, header, vnet, shape, offload, epoch)
    assert sum(train.packets for train in trains) == packets_in(len(packet), shape, vnet.gso_size)
    return [train._replace(datagrams=memoryview(bytes(train.datagrams))) for train in trains]


def rows(train: Train) -> list[bytes]:
    step = train.segment_bytes
    found = [bytes(train.datagrams[at : at + step]) for at in range(0, len(train.datagrams), step)]
    assert len(found) == train.packets
    assert len(train.datagrams) <= MAX_TRAIN_BYTES
    assert all(len(row) == step for row in found[:-1])
    return found


def loose(train: Train) -> Train:
    """Make the same packets strangers to each other: no segments of one super-packet, each must be compared."""
    data = bytearray(train.datagrams)
    for at in range(0, len(data), train.segment_bytes):
        data[at + geneve.FLAGS_OFFSET] &= ~(geneve.SEGMENT | geneve.LAST_SEGMENT)
    return train._replace(datagrams=memoryview(data))


def inner(row: bytes) -> tuple[bytes, geneve.Encapsulation]:
    """Decapsulate; the packet's checksum finished if it came partial."""
    encap = geneve.decode(row, 0, len(row), VNI)
    assert not isinstance(encap, DropReason)
    packet = row[encap.header_bytes :]
    if encap.flags & geneve.PARTIAL_CHECKSUM:
        protocol = TCP if encap.csum_offset == 16 else UDP
        assert encap.csum_start == l4_at(packet, protocol)
        assert packet == packets.partial(packet, protocol), "the partial checksum is not the pseudo-header's sum"
        packet = finished(packet, protocol)
    return packet, encap


def joined(train: Train, at: int = 0, merger: Merger | None = None) -> Iterator[tuple[int, bytes]]:
    """Go through a train as an engine does; yield how many rows each frame stands for, and the frame."""
    merger = merger or Merger()
    data, step = train.datagrams, train.segment_bytes
    while at < len(data):
        after = min(at + step, len(data))
        encap = geneve.decode(data, at, after, VNI)
        header = None if isinstance(encap, DropReason) else parse_ip(data, at + encap.header_bytes, after)
        if isinstance(encap, DropReason) or header is None:
            yield 1, b""
            at = after
            continue
        packet = data[at + encap.header_bytes : after]
        shape = None
        if encap.flags & geneve.PARTIAL_CHECKSUM:
            shape = shape_of(packet, header, encap.csum_start, encap.csum_offset)
        count = merger.run(train, at, encap, header, shape) if shape is not None else 1
        if count > 1 and shape is not None:
            yield count, bytes(merger.merge(train, at, count, encap, header, shape))
        else:
            yield 1, b""
        at = min(at + count * step, len(data))


def without_ident(packet: bytes) -> bytes:
    """Blank what splitting numbers anew: identification and header checksum of IPv4 without DF."""
    if packet[0] >> 4 == 4 and not packet[6] & 0x40:
        return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]
    return packet


def check_joins(train: Train) -> list[int]:
    """Join a train, and prove each frame right: cut again, it gives exactly the rows it replaced."""
    data, step, at, counts = train.datagrams, train.segment_bytes, 0, []
    for count, merged in joined(train):
        counts.append(count)
        for index, again in enumerate(packets_of(merged) if merged else ()):
            row = bytes(data[at + index * step : at + (index + 1) * step])
            packet, _ = inner(row)
            assert parse_ip(packet, 0, len(packet)) is not None, "a row that is no packet was joined"
            assert without_ident(again) == without_ident(packet)
        if merged:
            assert len(packets_of(merged)) == count
        at = min(at + count * step, len(data))
    assert at == len(data)
    return counts


@pytest.mark.parametrize("max_segments", [64, 128])
@pytest.mark.parametrize("size", PAYLOADS)
def test_split_as_a_kernel_splits(size: int, max_segments: int) -> None:
    for name, protocol, packet in flows(size):
        received = frame(packet, protocol, gso_size=1000)
        expected = packets_of(received)
        for offload in (True, False):
            found = [row for train in split(received, max_segments, offload) for row in rows(train)]
            assert [inner(row)[0] for row in found] == expected, name
            assert all(inner(row)[1].header_bytes == (ENCAP if offload else BASE) for row in found)


@pytest.mark.parametrize("gso_size", [1, 8, 63, 536, 1398, 1400, 9000, 30_000])
def test_split_then_joined_gives_back_the_bytes(gso_size: int) -> None:
    random_ = random.Random(gso_size)
    near = [gso_size * times + more for times in (1, 2, 3, 127, 128, 129) for more in (-1, 0, 1)]
    sizes = {size for size in near if 0 < size <= 65_000} | {random_.randrange(1, 65_000)}
    for size in sizes:
        for name, protocol, packet in flows(size):
            received = frame(packet, protocol, gso_size)
            trains = split(received)
            frames = [(count, merged) for train in trains for count, merged in joined(train)]
            if len(trains) == 1 and trains[0].packets > 1:
                assert [count for count, _ in frames] == [trains[0].packets], name
                assert frames[0][1] == received, name
            for train in trains:
                assert check_joins(train) == [train.packets], name


def test_up_to_the_largest_packet() -> None:
    for _, protocol, packet in flows(0):
        for size in (65_535, 65_534):
            payload = bytes(size - len(packet))
            source, destination = ("10.42.1.2", "10.42.2.3") if packet[0] >> 4 == 4 else ("fd42:1::2", "fd42:2::3")
            body = tcp(payload) if protocol == TCP else udp(payload)
            whole = ip(source, destination, protocol, body[: size - (20 if packet[0] >> 4 == 4 else 40)])
            if protocol == UDP:
                at = l4_at(whole, UDP)
                whole = whole[: at + 4] + struct.pack(">H", len(whole) - at) + whole[at + 6 :]
            received = frame(whole, protocol, gso_size=1400)
            found = [row for train in split(received) for row in rows(train)]
            assert [inner(row)[0] for row in found] == packets_of(received)


def test_flags_go_where_they_belong() -> None:
    packet = ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(3000), seq=0xFFFFFC00, flags=ACK | FIN | PSH | CWR | ECE))
    (train,) = split(frame(packet, TCP, gso_size=1000))
    seen = [dpkt.ip.IP(inner(row)[0]).data for row in rows(train)]
    assert [segment.flags for segment in seen] == [ACK | ECE | CWR, ACK | ECE, ACK | ECE | FIN | PSH]
    assert [segment.seq for segment in seen] == [0xFFFFFC00, 0xFFFFFFE8, 0x3D0]
    indices = [inner(row)[1] for row in rows(train)]
    assert [encap.row for encap in indices] == [0, 1, 2]
    assert [bool(encap.flags & geneve.LAST_SEGMENT) for encap in indices] == [False, False, True]
    assert len({encap.frame_id for encap in indices}) == 1


def test_the_frames_of_a_splitter_are_told_apart() -> None:
    received = frame(ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(3000))), TCP, gso_size=1000)
    packet, vnet = memoryview(received)[10:], VnetHeader.read(received, 0)
    header = parse_ip(packet, 0, len(packet))
    assert header is not None
    shape = gso_shape(packet, header, vnet)
    assert shape is not None
    splitter = Splitter(VNI)
    ids = [inner(rows(splitter.split(packet, header, vnet, shape)[0])[0])[1].frame_id for _ in range(70_000 // 1000)]
    assert all(later != earlier for earlier, later in pairwise(ids))


def test_every_datagram_is_a_true_packet() -> None:
    """Read by dpkt, which knows nothing of us."""
    for _, protocol, packet in flows(5000):
        for train in split(frame(packet, protocol, gso_size=1200)):
            for row in rows(train):
                whole, _ = inner(row)
                read = dpkt.ip.IP(whole) if whole[0] >> 4 == 4 else dpkt.ip6.IP6(whole)
                if whole[0] >> 4 == 4:
                    assert read.len == len(whole)
                    assert not packets.word_sum(whole[: l4_at(whole, protocol)]) ^ 0xFFFF
                else:
                    assert read.plen == len(whole) - 40
                l4 = read.data
                if protocol == UDP:
                    assert l4.ulen == len(whole) - l4_at(whole, protocol)
                assert bytes(l4.data) == whole[-len(l4.data) :]


def test_only_what_is_a_super_packet_has_a_shape() -> None:
    packet = ip("10.42.1.2", "10.42.2.3", TCP, tcp(b"\x55" * 3000))
    good = VnetHeader(1, 1, 40, 1000, 20, 16)
    header = parse_ip(packet, 0, len(packet))
    assert header is not None
    assert gso_shape(memoryview(packet), header, good) is not None
    for hostile in (
        {"gso_size": 0}, {"flags": 0}, {"gso_type": 4}, {"gso_type": 5}, {"gso_type": 3}, {"csum_start": 19},
        {"csum_start": 21}, {"csum_start": 24},
        {"csum_start": 40}, {"csum_start": 65535}, {"csum_offset": 6}, {"csum_offset": 0},
        {"csum_offset": 65535}, {"csum_start": 3030},
    ):  # fmt: skip
        assert gso_shape(memoryview(packet), header, good._replace(**hostile)) is None, hostile


def test_hostile_virtio_headers_never_raise() -> None:
    random_ = random.Random(5)
    kinds = [(protocol, packet) for size in (0, 1, 100, 5000) for _, protocol, packet in flows(size)]
    splitter = Splitter(VNI)
    tried = 0
    for _ in range(6000):
        protocol, packet = random_.choice(kinds)
        fields = list(packets.VNET.unpack_from(frame(packet, protocol, gso_size=500)))
        for _ in range(random_.randrange(1, 3)):
            fields[random_.randrange(6)] = random_.choice((0, 1, 2, 3, 4, 5, 8, 20, 28, 40, 48, 0x80, 0x81, 0xFF))
        if random_.random() < 0.5:
            fields[3] = random_.choice((1, 65535, 65500, 65480, 65400, len(packet), random_.randrange(65536)))
        vnet = VnetHeader(*fields)
        whole = memoryview(packet[: random_.choice((len(packet), random_.randrange(len(packet) + 1)))])
        header = parse_ip(whole, 0, len(whole)) or parse_ip(packet, 0, len(packet))
        assert header is not None
        shape = gso_shape(whole, header, vnet)
        if shape is not None:
            tried += 1
            for offload in (True, False):
                trains = splitter.split(whole, header, vnet, shape, offload)
                assert sum(train.packets for train in trains) == packets_in(len(whole), shape, vnet.gso_size)
    assert tried > 500


def test_no_mutated_header_is_joined_wrongly() -> None:
    """Change every header byte of the first, a middle and the last row, to what is near and what is far."""
    for _, protocol, packet in flows(3500):
        train = loose(*split(frame(packet, protocol, gso_size=1000)))
        assert train.packets == 4
        assert check_joins(train) in ([4], [1, 3]), "as they are they are joined, but for a first one with CWR"
        step = train.segment_bytes
        for row in (0, 1, 2, 3):
            for offset in range(ENCAP + len(packet) - 3500):
                for flip in (0x01, 0x08, 0x80, 0xFF):
                    data = bytearray(train.datagrams)
                    data[row * step + offset] ^= flip
                    check_rows_or_apart(train._replace(datagrams=memoryview(data)))


def test_segments_are_joined_by_what_the_option_says() -> None:
    """One byte of the option changed in one row: that row is joined with nothing before it."""
    (train,) = split(frame(ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(5000))), TCP, gso_size=1000))
    step = train.segment_bytes
    option = (geneve.FLAGS_OFFSET, *range(geneve.INDEX_OFFSET - 2, geneve.EPOCH_OFFSET + 1))
    for row in (1, 2, 3, 4):
        for offset in option:
            for flip in (0x01, 0x02, 0x80, 0xFF):
                data = bytearray(train.datagrams)
                data[row * step + offset] ^= flip
                counts = [count for count, _ in joined(train._replace(datagrams=memoryview(data)))]
                assert sum(counts) == 5
                assert row in _sums(counts), f"row {row} was joined with those before it"


@pytest.mark.parametrize("make", [lambda train: train, loose])
@pytest.mark.parametrize("ends", [("10.42.1.2", "10.42.2.3"), ("fd42:1::2", "fd42:2::3")], ids=["v4", "v6"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_rows_of_different_epochs_stay_apart(
    make: Callable[[Train], Train], ends: tuple[str, str], protocol: int
) -> None:
    """Each epoch is looked at once a frame: a frame must be of one."""
    body = tcp(bytes(6000)) if protocol == TCP else udp(bytes(6000))
    train = make(*split(frame(ip(*ends, protocol, body), protocol, gso_size=1000), splitter=Splitter(VNI)))
    for changed in range(1, 1 << 6):
        data = bytearray(train.datagrams)
        for row in range(6):
            data[row * train.segment_bytes + geneve.EPOCH_OFFSET] = changed >> row & 1
        at = 0
        for count, _ in joined(train._replace(datagrams=memoryview(data))):
            assert len({changed >> row & 1 for row in range(at, at + count)}) == 1
            at += count
        assert at == 6


def test_a_splitter_tells_the_epoch() -> None:
    received = frame(ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(2000))), TCP, gso_size=300)
    splitter = Splitter(VNI)
    for epoch in (0, 255, 3):
        for train in split(received, splitter=splitter, epoch=epoch):
            assert {inner(row)[1].epoch for row in rows(train)} == {epoch}
        for train in split(received, splitter=splitter, offload=False, epoch=epoch):
            assert {inner(row)[1].epoch for row in rows(train)} == {None}


@pytest.mark.parametrize("make", [lambda train: train, loose])
@pytest.mark.parametrize("tail", [0, 500])
def test_a_train_longer_than_a_packet_is_joined_up_to_one(make: Callable[[Train], Train], tail: int) -> None:
    """A kernel with a raised gro_max_size may hand over more than 64 KiB at once."""
    (train,) = split(frame(ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(3000))), TCP, gso_size=1000))
    step, data = train.segment_bytes, bytearray()
    for index in range(100):
        row = bytearray(train.datagrams[:step])
        row[geneve.INDEX_OFFSET] = index
        struct.pack_into(">I", row, ENCAP + 24, (struct.unpack_from(">I", row, ENCAP + 24)[0] + index * 1000) % 2**32)
        data += row
    long = make(train._replace(datagrams=memoryview(bytes(data[: len(data) - tail])), packets=100))
    counts = [count for count, _ in joined(long)]
    assert counts[0] == 65
    assert sum(counts) == 100


@pytest.mark.parametrize("make", [lambda train: train, loose])
def test_a_last_row_cut_short_is_joined_only_whole(make: Callable[[Train], Train]) -> None:
    packet = ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(2500)))
    train = make(*split(frame(packet, TCP, gso_size=1000)))
    whole = len(train.datagrams)
    for size in range(2 * train.segment_bytes + 1, whole):
        cut = train._replace(datagrams=train.datagrams[:size])
        assert [count for count, _ in joined(cut)] == [2, 1]
    assert [count for count, _ in joined(train)] == [3]


def _sums(counts: list[int]) -> set[int]:
    return {sum(counts[:end]) for end in range(len(counts))}


def check_rows_or_apart(train: Train) -> None:
    """As `check_joins`, but rows may be no packets or have wrong checksums: then what is joined must keep them wrong."""
    data, step, at = train.datagrams, train.segment_bytes, 0
    for count, merged in joined(train):
        for index, again in enumerate(naive_rows(merged) if merged else ()):
            row = bytes(data[at + index * step : at + (index + 1) * step])
            encap = geneve.decode(row, 0, len(row), VNI)
            assert not isinstance(encap, DropReason)
            assert encap.flags & geneve.PARTIAL_CHECKSUM
            packet = row[encap.header_bytes :]
            assert parse_ip(packet, 0, len(packet)) is not None, "a row that is no packet was joined"
            assert without_ident(same_zero(again, encap)) == without_ident(same_zero(packet, encap))
        at = min(at + count * step, len(data))


def naive_rows(merged: bytes) -> list[bytes]:
    """Cut a frame, checksums left partial and only shifted by the length: so a wrong one stays as wrong as it was."""
    _, _, _, _, start, offset = packets.VNET.unpack_from(merged)
    whole = merged[10:]
    (was,) = struct.unpack_from(">H", whole, start + offset)
    found = []
    for packet in packets_of(merged):
        value = (was - len(whole) + len(packet)) % 0xFFFF
        found.append(packet[: start + offset] + struct.pack(">H", value) + packet[start + offset + 2 :])
    return found


def same_zero(packet: bytes, encap: geneve.Encapsulation) -> bytes:
    """Write the L4 checksum's two zeros as one."""
    where = encap.csum_start + encap.csum_offset
    return (
        packet[:where]
        + (b"\0\0" if packet[where : where + 2] == b"\xff\xff" else packet[where : where + 2])
        + packet[where + 2 :]
    )


def test_interleaved_flows_are_kept_apart() -> None:
    random_ = random.Random(8)
    for _ in range(200):
        protocol = random_.choice((TCP, UDP))
        lanes = []
        splitter = Splitter(VNI)
        for port in range(random_.randrange(1, 4)):
            body = (tcp if protocol == TCP else udp)(bytes(100) * random_.randrange(2, 60), ports=(1000 + port, 80))
            received = frame(ip("10.42.1.2", "10.42.2.3", protocol, body), protocol, gso_size=100)
            (train,) = split(received, splitter=splitter)
            lanes.append(rows(random_.choice((train, loose(train)))))
        mixed = []
        while any(lanes):
            lane = random_.choice([lane for lane in lanes if lane])
            mixed.append(lane.pop(0))
        whole = Train(memoryview(b"".join(mixed)), len(mixed[0]), len(mixed))
        counts = check_joins(whole)
        assert sum(counts) == len(mixed)


def test_a_gap_a_repeat_and_a_swap_are_not_joined() -> None:
    (train,) = split(frame(ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(4000))), TCP, gso_size=1000))
    a, b, c, d = rows(train)
    for order, expected in (([a, c, d], [1, 2]), ([a, a, b], [1, 2]), ([b, a, c], [1, 1, 1]), ([a, b, c, d], [4])):
        data = b"".join(order)
        assert check_joins(train._replace(datagrams=memoryview(data), packets=len(order))) == expected


def test_a_wrong_ip_checksum_is_not_mended_by_joining() -> None:
    """What is no packet alone must not become one by its neighbours."""
    packet = ip("10.42.1.2", "10.42.2.3", UDP, udp(bytes(3000)), df=False)
    train = loose(*split(frame(packet, UDP, gso_size=1000)))
    for row in range(3):
        data = bytearray(train.datagrams)
        data[row * train.segment_bytes + ENCAP + 10] ^= 0x55
        merged = list(joined(train._replace(datagrams=memoryview(data))))
        assert sum(count for count, _ in merged) == 3
        for at, (count, _) in zip(range(3), merged, strict=False):
            assert count == 1 or not at <= row < at + count


def test_rows_with_options_of_others_stay_apart() -> None:
    """Our option stands elsewhere then: what differs in it must not be masked away."""
    packet = ip("10.42.1.2", "10.42.2.3", TCP, tcp(bytes(3000)))
    (train,) = split(frame(packet, TCP, gso_size=1000))
    foreign = bytes((0x01, 0x02, 0x03, 0x00))
    plain = [bytes((4,)) + row[1:8] + foreign + row[8:] for row in rows(train)]
    for row in (0, 1, 2):
        changed = bytearray(plain[row])
        changed[16] &= ~geneve.PARTIAL_CHECKSUM
        data = b"".join([*plain[:row], bytes(changed), *plain[row + 1 :]])
        for at, (count, _) in enumerate(joined(Train(memoryview(data), len(changed), 3))):
            assert count == 1 or not at <= row < at + count


def test_a_udp_length_is_not_mended_by_joining() -> None:
    packet = ip("10.42.1.2", "10.42.2.3", UDP, udp(bytes(3000)))
    (train,) = split(frame(packet, UDP, gso_size=1000))
    data = bytearray(train.datagrams)
    for row in range(3):
        data[row * train.segment_bytes + ENCAP + 20 + 5] ^= 4
    assert check_joins(Train(memoryview(data), train.segment_bytes, 3)) == [1, 1, 1]


@pytest.mark.parametrize("gso_size", [997, 1000, 1300, 6000, 30_000])
def test_what_is_joined_is_never_longer_than_a_packet(gso_size: int) -> None:
    """Rows that go on and on, with a last one that just fits or just does not."""
    most = 65_535 - 40
    for size in (most - 1, most, most + 1, most + gso_size, 2 * most):
        found, step = [], ENCAP + 40 + gso_size
        for start in range(0, size, gso_size):
            payload = bytes(min(gso_size, size - start))
            row = packets.partial(ip("10.42.1.2", "10.42.2.3", TCP, tcp(payload, seq=1 + start)), TCP)
            found.append(geneve.encode(VNI, 4, geneve.PARTIAL_CHECKSUM, 16, 20) + row)
        counts = check_joins(Train(memoryview(b"".join(found)), step, len(found)))
        assert counts[0] == min(len(found), most // gso_size + (size <= most and size % gso_size > 0))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("flags", [ACK | FIN, ACK | PSH, ACK | CWR | ECE, ACK | FIN | PSH | CWR])
def test_flags_are_right_over_many_trains(flags: int, offload: bool) -> None:
    for ends in (("10.42.1.2", "10.42.2.3"), ("fd42:1::2", "fd42:2::3")):
        received = frame(ip(*ends, TCP, tcp(bytes(20_001), seq=0xFFFFF000, flags=flags)), TCP, gso_size=100)
        trains = split(received, 64, offload)
        assert [train.packets for train in trains] == [64, 64, 64, 9]
        assert [inner(row)[0] for train in trains for row in rows(train)] == packets_of(received)


@pytest.mark.parametrize("most", [64, 128])
@pytest.mark.parametrize("number", [64, 65, 127, 128, 129, 300])
def test_no_more_udp_is_joined_than_a_kernel_takes(number: int, most: int) -> None:
    """virtio_net_hdr_to_skb (linux/virtio_net.h) refuses more than UDP_MAX_SEGMENTS; the refusal costs all of them."""
    row = packets.partial(ip("10.42.1.2", "10.42.2.3", UDP, udp(bytes(100))), UDP)
    last = packets.partial(ip("10.42.1.2", "10.42.2.3", UDP, udp(bytes(99))), UDP)
    head = geneve.encode(VNI, 4, geneve.PARTIAL_CHECKSUM, 6, 20)
    train = Train(memoryview(b"".join([head + row] * (number - 1) + [head + last])), len(head + row), number)
    counts = [count for count, _ in joined(train, merger=Merger(most))]
    assert counts[0] == min(number, most)
    assert sum(counts) == number
