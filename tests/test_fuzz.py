"""Hostile bytes, the short form; `make fuzz` runs the long one."""

from __future__ import annotations

import pytest

from router.engine.choose import available
from tests.fuzz import MOST_GROWTH_BYTES, WHERE, fuzz

PACKETS = 50_000


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("seed", [20260101, 4711])
def test_stands_hostile_bytes(engine: str, where: str, seed: int) -> None:
    report = fuzz(engine, where, PACKETS // 2, seed)
    assert report.sent == report.counted == PACKETS // 2
    assert report.grown_bytes < MOST_GROWTH_BYTES
    assert report.delivered
    assert len(report.dropped) >= 6, "the damage reached too little"
