"""Hostile bytes, the short form; `make fuzz` runs the long one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from router.engine.choose import available
from tests.fuzz import MOST_GROWTH_BYTES, WHERE, fuzz

PACKETS = 50_000
NATIVE_PACKETS = 5_000_000
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("engine", available())
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("seed", [20260101, 4711])
def test_stands_hostile_bytes(engine: str, where: str, seed: int) -> None:
    report = fuzz(engine, where, PACKETS // 2, seed)
    assert report.sent == report.counted == PACKETS // 2
    assert report.grown_bytes < MOST_GROWTH_BYTES
    assert report.delivered
    assert bool(report.probes) == (where == "udp") == ("stale_epoch" in report.dropped)
    assert len(report.dropped) >= 6, "the damage reached too little"


@pytest.mark.skipif(shutil.which("cargo") is None, reason="there is no cargo")
def test_the_compiled_data_path_stands_five_million() -> None:
    """With a kernel in memory that fails and bugs that strike at random: router/engine/native/examples/fuzz."""
    cargo = ["cargo", "run", "--quiet", "--locked", "--profile", "checked", "-p", "podwire-engine", "--example", "fuzz"]
    done = subprocess.run(
        [*cargo, "--", "--packets", str(NATIVE_PACKETS), "--seed", "20260101"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    for reached in (
        "delivered",
        "tunnelled",
        "rate_limited",
        "engine_failed",
        "super-packets joined",
        "trains sent",
        "stale_epoch",
        "peer_down",
        "probes answered",
    ):
        assert reached in last
