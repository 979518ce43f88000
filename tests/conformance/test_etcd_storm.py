"""Fifty routers at once, and kill -9 of them and of etcd meanwhile; `python -m tests.etcd_storm` does it for longer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.etcd_rig import PREFIX, ROOT
from tests.etcd_storm import Event, faults_of_beliefs, faults_of_store

ROUNDS = 1
"""Of each kind."""
KILL_FOR_S = 4


@pytest.mark.parametrize(("kind", "range_"), [("plain", ()), ("kills", ("--tight",))])
def test_no_subnet_is_ever_held_twice(kind: str, range_: tuple[str, ...]) -> None:
    # A process of its own: it forks, which no process may that has called gRPC.
    command = [sys.executable, "-m", "tests.etcd_storm", "--kind", kind, *range_]
    command += ["--rounds", str(ROUNDS), "--nodes", "50", "--kill-for", str(KILL_FOR_S)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no conflict") == ROUNDS


# That the witnesses see what they are there to see.


def row(name: str, subnet: str, lease: int, endpoint: str = "") -> list[Event]:
    value = f'{{"subnets": ["{subnet}"], "endpoint": "{endpoint or name}"}}'.encode()
    lock = f"{PREFIX}/leases/{subnet.replace('/', '-')}"
    return [(f"{PREFIX}/members/{name}", value, lease), (lock, name.encode(), lease)]


def test_the_store_is_searched_for_faults() -> None:
    one, two = row("a", "10.0.1.0/24", 1), row("b", "10.0.2.0/24", 2)
    assert faults_of_store([(1, one), (2, two)], ["a", "b"]) == []
    assert faults_of_store([(1, one)], ["a", "b"]) == ["b has no row in the end"]
    twice = faults_of_store([(1, one), (2, row("b", "10.0.1.0/24", 2)), (3, [(one[0][0], None, 0)])], ["b"])
    assert "revision 2: 10.0.1.0/24 is held by a and b" in twice
    (other,) = faults_of_store([(1, one), (2, row("b", "10.0.2.0/24", 2, endpoint="a"))], ["a", "b"])
    assert other == "revision 2: a is held by a and b"
    (lock,) = faults_of_store([(1, one), (2, [(one[1][0], None, 0)])], ["a"])
    assert lock == "revision 2: a has 10.0.1.0/24, whose lock is None"


def test_beliefs_are_searched_for_faults() -> None:
    def held(at_s: float, subnet: str, epoch: int = 1) -> dict[str, object]:
        return {"at_s": at_s, "held": True, "subnets": [subnet], "epoch": epoch}

    def lost(at_s: float, expires_s: float) -> dict[str, object]:
        return {"at_s": at_s, "held": False, "subnets": ["s"], "epoch": 1, "expires_s": expires_s}

    ended = {"at_s": 9.0, "ended": True}
    assert faults_of_beliefs({"a": [held(1, "s"), lost(3, 3)], "b": [held(4, "s"), ended]}) == []
    assert faults_of_beliefs({"a": [held(1, "s"), ended], "b": [held(2, "t"), ended]}) == []
    assert len(faults_of_beliefs({"a": [held(1, "s"), ended], "b": [held(4, "s"), ended]})) == 1
    assert len(faults_of_beliefs({"a": [held(1, "s"), lost(5, 3.5)], "b": [held(3, "s"), ended]})) == 1
    assert faults_of_beliefs({"a": [held(1, "s"), lost(5, 3.5)], "b": [held(4, "s"), ended]}) == []
    assert faults_of_beliefs({"a": [held(1, "s", 3), ended, held(9.5, "s", 2), {"at_s": 11.0, "ended": True}]}) == [
        "a went from epoch 3 back to 2"
    ]
