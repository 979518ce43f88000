"""Filter programs, compiled: over every packet the same answer as Python's (router/wire/bpf.py)."""

from __future__ import annotations

import random

import pytest

from router.engine.choose import available
from router.wire import bpf

pytestmark = pytest.mark.skipif("native" not in available(), reason="the native engine is not built")

_LOADS = (0x00, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x80, 0x01, 0x61, 0x81, 0xB1)
_ALU = tuple(4 | operation | source for operation in range(0, 0xB0, 0x10) for source in (0, 8))
_JUMPS = tuple(5 | jump | source for jump in (0x10, 0x20, 0x30, 0x40) for source in (0, 8))
_OTHERS = (0x02, 0x03, 0x05, 0x06, 0x16, 0x07, 0x87)
_NUMBERS = (0, 1, 2, 3, 4, 9, 12, 15, 16, 20, 31, 32, 33, 63, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)


def program(random_: random.Random) -> list[tuple[int, int, int, int]]:
    size = random_.randrange(1, 24)
    made = []
    for at in range(size):
        left = size - at
        code = random_.choice(random_.choice((_LOADS, _LOADS, _ALU, _JUMPS, _OTHERS)))
        k = random_.randrange(left) if code == 5 else random_.choice(_NUMBERS)
        made.append((code, random_.randrange(left), random_.randrange(left), k))
    return [*made, (random_.choice((0x06, 0x16)), 0, 0, random_.choice(_NUMBERS))]


def test_random_programs_say_the_same() -> None:
    from router.engine.native import _core

    random_ = random.Random(20260301)
    answers = set()
    checked = 0
    while checked < 20_000:
        asked = program(random_)
        if bpf.check(asked):
            continue
        checked += 1
        packet = random_.randbytes(random_.choice((0, 1, 3, 20, 40, 64, 65)))
        answer = bpf.run(asked, packet)
        answers.add(answer)
        assert _core.run_program(asked, packet) == answer, (asked, packet.hex())
    assert len(answers) > 300, "they say all sorts of things"


def test_no_program_takes_everything() -> None:
    from router.engine.native import _core

    assert _core.run_program([], b"") == bpf.run([], b"") == 0xFFFFFFFF
