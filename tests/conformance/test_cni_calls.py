"""How both kinds of the CNI plugin take a router that is missing, silent or none: the same way, with the same words."""

from __future__ import annotations

import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim.lean import hpack
from tests.conformance.cni_sides import Side, frame, lying

SEED = 20_251
SETTINGS = frame(4, 0, 0)
OPENED = frame(1, 4, 1, b"\x88")
BODY = frame(0, 0, 1, bytes(5))
TRAILERS = frame(1, 5, 1, hpack.encode([(b"grpc-status", b"0")]))


def test_a_large_list_of_what_is_to_stay_passes_the_windows(sides: list[Side]) -> None:
    live = [{"containerID": f"sandbox-{number:032}", "ifname": "eth0"} for number in range(40_000)]
    for side in sides:
        side.daemon.synced.clear()
        assert side.ask("GC", {"cni.dev/valid-attachments": live}) == (0, None, "")
        ((owner, _),) = side.daemon.synced
        assert owner == "cni:net"


@pytest.mark.parametrize("name", ["router.sock", "d" * 120 + "/router.sock"])
def test_both_leave_a_tombstone_where_nobody_listens(sides: list[Side], tmp_path: Path, name: str) -> None:
    found = []
    for side in sides:
        path = tmp_path / side.client / name
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert side.ask("DEL", {"socket": str(path)}) == (0, None, "")
        (stone,) = (path.parent / "tombstones").iterdir()
        assert re.fullmatch(r"\d+-\d+\.json", stone.name)
        assert (stone.stat().st_mode & 0o777, stone.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        content = json.loads(stone.read_text())
        assert began_ns < content.pop("detached_ns") < time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        found.append((content, stone.parent.parent.stat().st_mode))
    assert found[0] == found[1]
    assert found[0][0] == {"sandbox_id": "box", "if_name": "eth0"}


def test_both_name_what_cannot_be_written(sides: list[Side], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/proc/none/deeper/router.sock", str(tmp_path / "file/router.sock"), "/proc/router.sock"):
        first, second = (side.ask("DEL", {"socket": place}) for side in sides)
        assert first == second
        assert first[1]["code"] == 5


def test_an_add_asks_until_it_has_waited(sides: list[Side], tmp_path: Path) -> None:
    for side in sides:
        began_s = time.monotonic()
        status, answer, _ = side.ask("ADD", {"socket": str(tmp_path / "none.sock"), "wait_s": 0.5})
        assert (status, answer["code"]) == (1, 11)
        assert 0.5 <= time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (b"", 11, "hung up"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 199, "no router, or a broken one"),
        (SETTINGS + frame(7, 0, 0, bytes(8)), 11, "stopping"),
        (SETTINGS + frame(3, 0, 1, (7).to_bytes(4, "big")), 11, "error 7"),
        (SETTINGS + frame(1, 5, 1, b"\x88"), 199, "HTTP status 200"),
        (SETTINGS + frame(1, 5, 1, b"\x8d"), 199, "HTTP status 404"),
        (SETTINGS + frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff"), 199, "broken one"),
        (SETTINGS + OPENED + frame(0, 8, 1, b"\x09ab"), 199, "broken one"),
        (SETTINGS + OPENED + frame(0, 0, 1, b"\x01" + bytes(4)) + TRAILERS, 199, "not one whole message"),
        (SETTINGS + OPENED + frame(0, 0, 1, b"\x00\x00\x00\x00\x09x") + TRAILERS, 199, "whole message"),
        (SETTINGS + OPENED + TRAILERS, 199, "whole message"),
        (SETTINGS + OPENED + BODY + frame(1, 5, 1, hpack.encode([(b"grpc-status", b"99")])), 100, "UNKNOWN"),
        (SETTINGS + OPENED + frame(0, 0, 1, b"\x00\x00\x00\x00\x01\xff") + TRAILERS, 199, "makes no sense"),
    ],
)
def test_what_is_no_router_is_said(sides: list[Side], tmp_path: Path, sent: bytes, code: int, words: str) -> None:
    with lying(tmp_path, sent) as path:
        for side in sides:
            status, answer, stderr = side.ask("CHECK", {"socket": path})
            assert (status, answer["code"], stderr) == (1, code, ""), (side.client, answer)
            assert words in answer["msg"], side.client


def test_random_frames_get_an_answer(native: Side, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    for number in range(100):
        frames = [
            frame(rng.randrange(11), rng.randrange(256), rng.choice((0, 1, 1, 1, 3)), rng.randbytes(rng.randrange(40)))
            for _ in range(rng.randrange(1, 6))
        ]
        with lying(tmp_path, SETTINGS + rng.choice((b"", OPENED)) + b"".join(frames)) as path:
            status, answer, stderr = native.ask("CHECK", {"socket": path})
        assert (status, stderr) == (1, ""), (SEED, number)
        assert answer["code"] in (3, 11, 100, 103, 199), (SEED, number, answer)
        assert "panic" not in answer["msg"], (SEED, number, answer)


def test_a_router_that_does_not_answer_is_not_waited_for_without_end(sides: list[Side], tmp_path: Path) -> None:
    with lying(tmp_path, None) as path, ThreadPoolExecutor() as pool:
        began_s = time.monotonic()
        found = list(pool.map(lambda side: side.ask("CHECK", {"socket": path}), sides))
        assert 9 < time.monotonic() - began_s < 30
    assert found[0] == found[1]
    assert found[0][1]["code"] == 11
    assert "did not answer within 10 s" in found[0][1]["msg"]
