"""Classic BPF: whatever is checked can be run over anything, and gives what the kernel gives for the same program."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import bpf
from tests.packets import TCP, UDP, ip, tcp, udp

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
ABS, IND, MEM, LEN, MSH = 0x20, 0x40, 0x60, 0x80, 0xA0
LOADS = (0x00, 0x80, 0x60, *(size | mode for size in (0x00, 0x08, 0x10) for mode in (ABS, IND)))
X_LOADS = (0x01, 0x81, 0x61, 0xB1)
OPERATIONS = (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0x90, 0xA0)
JUMPS = (0x10, 0x20, 0x30, 0x40)
PACKETS = (
    ip("10.42.1.2", "10.42.2.3", UDP, udp(b"hello", (53, 9000))),
    ip("10.42.1.2", "10.42.2.3", TCP, tcp(b"x" * 200), options=b"\1\1\1\0"),
    ip("fd42:1::2", "fd42:2::3", TCP, tcp(b"y" * 30)),
    bytes(range(256)),
    b"\xff" * 64,
    b"\x01",
)
Instructions = list[tuple[int, int, int, int]]

# What libpcap 1.10 makes of `ip and udp dst port 9000`, from the IP header on: ports only in first fragments.
PORT_9000: Instructions = [
    (0x30, 0, 0, 0), (0x54, 0, 0, 0xF0), (0x15, 0, 8, 0x40), (0x30, 0, 0, 9), (0x15, 0, 6, 17), (0x28, 0, 0, 6),
    (0x45, 4, 0, 0x1FFF), (0xB1, 0, 0, 0), (0x48, 0, 0, 2), (0x15, 0, 1, 9000), (0x06, 0, 0, 262144), (0x06, 0, 0, 0),
]  # fmt: skip


def test_a_filter_of_libpcap() -> None:
    assert bpf.check(PORT_9000) == ""
    assert [bpf.run(PORT_9000, packet) for packet in PACKETS] == [262144, 0, 0, 0, 0, 0]
    moved = ip("10.42.1.2", "10.42.2.3", UDP, udp(b"hello", (53, 9000)), options=b"\1" * 8)
    later = ip("10.42.1.2", "10.42.2.3", UDP, udp(b"hello", (53, 9000)), df=False, fragment=0x2001)
    assert bpf.run(PORT_9000, memoryview(bytearray(moved))) == 262144
    assert bpf.run(PORT_9000, later) == 0
    assert all(bpf.run(PORT_9000, PACKETS[0][:size]) == 0 for size in range(24))


def test_no_program_takes_everything() -> None:
    assert bpf.check(()) == ""
    assert bpf.run((), b"") == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ([(6, 0, 0, 0)] * 4097, "4097 instructions"),
        ([(0x00, 0, 0, 1)], "last instruction does not return"),
        ([(0x15, 0, 1, 1), (6, 0, 0, 0)], "instruction 0: it jumps past the end"),
        ([(0x15, 255, 0, 1), (6, 0, 0, 0)], "instruction 0: it jumps past the end"),
        ([(0x05, 0, 0, 1), (6, 0, 0, 0)], "instruction 0: it jumps past the end"),
        ([(0x05, 0, 0, 0xFFFFFFFF), (6, 0, 0, 0)], "instruction 0: it jumps past the end"),
        ([(0x34, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: division by zero"),
        ([(0x94, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: division by zero"),
        ([(0x64, 0, 0, 32), (6, 0, 0, 0)], "instruction 0: it shifts by more than 31 bits"),
        ([(0x60, 0, 0, 16), (6, 0, 0, 0)], "instruction 0: no such scratch cell"),
        ([(0x61, 0, 0, 16), (6, 0, 0, 0)], "instruction 0: no such scratch cell"),
        ([(0x02, 0, 0, 16), (6, 0, 0, 0)], "instruction 0: no such scratch cell"),
        ([(0x03, 0, 0, 0xFFFFFFFF), (6, 0, 0, 0)], "instruction 0: no such scratch cell"),
        ([(0x0A, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such store (code 0xa)"),
        ([(0x38, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such load (code 0x38)"),
        ([(0xA1, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such load (code 0xa1)"),
        ([(0x8C, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such operation (code 0x8c)"),
        ([(0xB4, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such operation (code 0xb4)"),
        ([(0x55, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such jump (code 0x55)"),
        ([(0x0E, 0, 0, 0)], "instruction 0: no such return (code 0xe)"),
        ([(0x17, 0, 0, 0), (6, 0, 0, 0)], "instruction 0: no such instruction (code 0x17)"),
        ([(0x106, 0, 0, 0)], "instruction 0: no such return (code 0x106)"),
        ([(0x10006, 0, 0, 0)], "instruction 0: a field is out of range"),
        ([(6, 256, 0, 0)], "instruction 0: a field is out of range"),
        ([(6, 0, -1, 0)], "instruction 0: a field is out of range"),
        ([(6, 0, 0, 1 << 32)], "instruction 0: a field is out of range"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_told_apart(program: Instructions, why: str) -> None:
    assert why in bpf.check(program)


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ([(0x00, 0, 0, 7), (0x16, 0, 0, 0)], 7),
        ([(0x80, 0, 0, 0), (0x16, 0, 0, 0)], 256),
        ([(0x20, 0, 0, 1), (0x16, 0, 0, 0)], 0x01020304),
        ([(0x28, 0, 0, 254), (0x16, 0, 0, 0)], 0xFEFF),
        ([(0x20, 0, 0, 253), (6, 0, 0, 9)], 0),  # past the end: no match, whatever comes after
        ([(0x30, 0, 0, 256), (6, 0, 0, 9)], 0),
        ([(0x01, 0, 0, 250), (0x50, 0, 0, 5), (0x16, 0, 0, 0)], 255),
        ([(0x01, 0, 0, 250), (0x50, 0, 0, 6), (6, 0, 0, 9)], 0),
        ([(0x01, 0, 0, 0xFFFFFFFF), (0x50, 0, 0, 3), (0x16, 0, 0, 0)], 2),  # the sum has 32 bits
        ([(0xB1, 0, 0, 0x47), (0x87, 0, 0, 0), (0x16, 0, 0, 0)], 28),
        ([(0xB1, 0, 0, 256), (6, 0, 0, 9)], 0),
        ([(0x00, 0, 0, 5), (0x02, 0, 0, 15), (0x00, 0, 0, 1), (0x61, 0, 0, 15), (0x87, 0, 0, 0), (0x16, 0, 0, 0)], 5),
        ([(0x60, 0, 0, 3), (0x16, 0, 0, 0)], 0),
        ([(0x04, 0, 0, 0xFFFFFFFF), (0x04, 0, 0, 3), (0x16, 0, 0, 0)], 2),
        ([(0x14, 0, 0, 1), (0x16, 0, 0, 0)], 0xFFFFFFFF),
        ([(0x00, 0, 0, 0xFFFFFFFF), (0x24, 0, 0, 0xFFFFFFFF), (0x16, 0, 0, 0)], 1),
        ([(0x00, 0, 0, 7), (0x84, 0, 0, 0), (0x16, 0, 0, 0)], 0xFFFFFFF9),
        ([(0x00, 0, 0, 7), (0x3C, 0, 0, 0), (6, 0, 0, 9)], 0),  # a division by X, which is 0
        ([(0x00, 0, 0, 7), (0x9C, 0, 0, 0), (6, 0, 0, 9)], 0),
        ([(0x00, 0, 0, 7), (0x01, 0, 0, 32), (0x6C, 0, 0, 0), (0x16, 0, 0, 0)], 0),
        ([(0x00, 0, 0, 7), (0x01, 0, 0, 31), (0x6C, 0, 0, 0), (0x16, 0, 0, 0)], 0x80000000),
        ([(0x05, 0, 0, 1), (6, 0, 0, 1), (6, 0, 0, 2)], 2),
    ],
    ids=str,
)  # fmt: skip
def test_each_instruction(program: Instructions, result: int) -> None:
    assert bpf.check(program) == ""
    assert bpf.run(program, PACKETS[3]) == result


FIELDS = st.tuples(
    st.integers(0, 0xFF), st.integers(0, 4), st.integers(0, 4), st.integers(0, 40) | st.integers(0, 2**32 - 1)
)


@given(st.lists(FIELDS, max_size=12), st.binary(max_size=80))
def test_whatever_is_checked_can_be_run(program: Instructions, packet: bytes) -> None:
    """Any bytes at all as program and as packet: a reason, or a number of 32 bits."""
    if bpf.check([*program, (6, 0, 0, 1)]) == "":
        assert 0 <= bpf.run([*program, (6, 0, 0, 1)], packet) <= 0xFFFFFFFF


def test_the_longest_program_ends() -> None:
    assert bpf.run([(0x04, 0, 0, 1)] * 4095 + [(0x16, 0, 0, 0)], b"") == 4095


# Beside the kernel


class Filtered:
    """A datagram socket whose kernel runs a program over what comes: it cuts each to what the program returns."""

    def __init__(self) -> None:
        self.end, self._filtered = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._filtered.setblocking(False)

    def attach(self, program: Instructions) -> bool:
        """Set the program; False when the kernel refuses it."""
        code = b"".join(struct.pack("=HBBI", *each) for each in program)
        held = ctypes.create_string_buffer(code, len(code))
        try:
            self._filtered.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(held))
            )
        except OSError:
            return False
        return True

    def passed(self, packet: bytes) -> int:
        """Return how many bytes of the packet pass."""
        self.end.send(packet)
        try:
            return len(self._filtered.recv(1 << 16))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.end.close()
        self._filtered.close()


@pytest.fixture
def kernel() -> Iterator[Filtered]:
    filtered = Filtered()
    yield filtered
    filtered.close()


def anything(random_: random.Random, size: int) -> Instructions:
    """Make a program that a kernel may take: all kinds of instructions, no ancillary loads, no shifts by X."""
    program: Instructions = [(LD | 0x00, 0, 0, random_.getrandbits(32)), (ST, 0, 0, 3), (STX, 0, 0, 4)]
    while len(program) < size:
        left = size - len(program)
        k = random_.choice((random_.randrange(32), random_.randrange(300), random_.getrandbits(31)))
        kind = random_.choice((LD, LD, LD, LDX, LDX, ST, STX, ALU, ALU, ALU, JMP, JMP, JMP, RET, MISC))
        if kind == LD:
            code = random_.choice(LOADS)
            program.append((code, 0, 0, random_.choice((3, 4)) if code == 0x60 else k if code == 0 else k % 310))
        elif kind == LDX:
            code = random_.choice(X_LOADS)
            program.append((code, 0, 0, random_.choice((3, 4)) if code == 0x61 else k if code == 1 else k % 310))
        elif kind in (ST, STX):
            program.append((kind, 0, 0, random_.choice((3, 4, 5))))
        elif kind == ALU:
            code = random_.choice(OPERATIONS) | ALU
            if code in (0x64, 0x74):
                k %= 32
            elif code != 0x84:
                code |= random_.choice((0, 8))
            program.append((code, 0, 0, k or 1))
        elif kind == JMP:
            if random_.random() < 0.2:
                program.append((0x05, 0, 0, random_.randrange(left)))
            else:
                code = random_.choice(JUMPS) | JMP | random_.choice((0, 8))
                program.append((code, random_.randrange(min(256, left)), random_.randrange(min(256, left)), k))
        elif kind == RET:
            if random_.random() < 0.2:
                program.append(random_.choice(((0x06, 0, 0, k % 400), (0x16, 0, 0, 0))))
        else:
            program.append((random_.choice((0x07, 0x87)), 0, 0, 0))
    return [*program, random_.choice(((0x06, 0, 0, random_.randrange(400)), (0x16, 0, 0, 0)))]


@pytest.mark.parametrize("seed", range(4))
def test_the_kernel_says_the_same(kernel: Filtered, seed: int) -> None:
    """Over 400 programs, six packets each: what passes, and how much of it."""
    random_ = random.Random(seed)
    compared = matched = 0
    while compared < 400:
        program = anything(random_, random_.randrange(4, 40))
        assert bpf.check(program) == "", program
        assert kernel.attach(program), program
        for packet in PACKETS:
            expected = min(bpf.run(program, packet), len(packet))
            assert kernel.passed(packet) == expected, (program, packet)
            matched += expected > 0
        compared += 1
    assert 200 < matched < 2_200


def test_the_kernel_refuses_what_the_check_refuses(kernel: Filtered) -> None:
    """Mutated programs: what the check takes the kernel takes too, unless it reads cells that nothing was stored in."""
    random_ = random.Random(7)
    refused = 0
    for _ in range(600):
        program = anything(random_, random_.randrange(4, 12))
        at = random_.randrange(len(program))
        mutated = list(program[at])
        field = random_.randrange(4)
        mutated[field] = random_.randrange((0x100, 0x100, 0x100, 64)[field])
        program[at] = (mutated[0], mutated[1], mutated[2], mutated[3])
        why = bpf.check(program)
        refused += why != ""
        if why:
            assert not kernel.attach(program), (why, program)
        elif not kernel.attach(program):
            assert any(code & 7 in (LD, LDX) and code & 0xE0 == MEM for code, *_ in program), program
    assert refused > 50
