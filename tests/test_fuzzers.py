"""Hostile input to every parser, the short form; and that what fuzzes them would see a bug. `make fuzz` runs the long one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from router.config import load_settings
from router.errors import Refusal
from router.subnets import file
from router.subnets.etcd import layout
from router.subnets.etcd.transaction import Stored
from tests.fuzzers import __main__ as main
from tests.fuzzers import run as runs
from tests.fuzzers.answers import TombstoneFiles
from tests.fuzzers.relay import RelayRequests
from tests.fuzzers.target import Target
from tests.fuzzers.targets import targets

ROOT = Path(__file__).parent.parent
SEED = 20260101
INPUTS = {"cni": 40, "grpc": 150}
"""Where each takes long; of the others:"""
MOST = 300
WITH_A_TEST_OF_ITS_OWN = "engine-"  # tests/test_fuzz.py
NAMES = [each.name for each in targets() if not each.name.startswith(WITH_A_TEST_OF_ITS_OWN)]


def by_name(name: str) -> Target:
    return next(each for each in targets() if each.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_stands_hostile_input(name: str) -> None:
    outcome = runs.run(by_name(name), SEED, 20, INPUTS.get(name, MOST))
    assert [finding.trace for finding in outcome.findings] == []
    assert outcome.inputs > 10


@pytest.mark.parametrize("name", NAMES)
def test_an_input_is_the_same_for_the_same_seed(name: str) -> None:
    """Whatever was made before: else nothing that is found could be found again."""
    first, second = by_name(name), by_name(name)
    wanted = [first.make(Random(f"{SEED} {number}")) for number in range(30)]
    assert [second.make(Random(f"{SEED} {number}")) for number in reversed(range(30))] == wanted[::-1]
    assert len(set(wanted)) > 15


class _Planted(Target):
    """Stands every input but those that begin with a byte below 8."""

    name = "planted"
    reached_by = "this test"

    def make(self, random: Random) -> bytes:
        return random.randbytes(4)

    def feed(self, given: bytes) -> None:
        if given[0] < 8:
            raise KeyError(given[0])


class _Slow(_Planted):
    def feed(self, given: bytes) -> None:
        try:
            time.sleep(30)
        except Exception:  # noqa: BLE001 - a parser that takes everything for bad input
            return


class _Greedy(_Planted):
    held: list[bytes]

    def feed(self, given: bytes) -> None:
        self.held = [*getattr(self, "held", []), bytes([given[0]]) * (1 << 20)]
        time.sleep(0.001)


def test_a_planted_bug_is_found_once_and_again() -> None:
    outcome = runs.run(_Planted(), 1, 20, 2000)
    (finding,) = outcome.findings
    assert "KeyError" in finding.trace
    assert finding.given[0] < 8
    again = runs.replay(_Planted(), finding.given)
    assert again is not None
    assert again.given == finding.given
    assert runs.run(_Planted(), 1, 20, 2000).findings[0].number == finding.number
    assert runs.replay(_Planted(), b"\xff") is None


def test_an_input_without_an_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HANG_S", 0.2)
    (finding,) = runs.run(_Slow(), 1, 20, 1).findings
    assert "no end after" in finding.trace


def test_memory_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = runs.run(_Greedy(), 1, 1.0, 1000).findings
    assert finding.trace.startswith("memory grew by")


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    words = ("--seconds", "0.2", "--seed", "5", "--only", "subnets-file", "--findings", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzers", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed 5" in done.stdout
    assert "subnets-file" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_finding_is_kept_and_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "targets", lambda: [_Planted()])
    kept = tmp_path / "findings"
    assert main.main(["--seconds", "1", "--seed", "1", "--findings", str(kept)]) == 1
    (path,) = kept.iterdir()
    assert path.read_bytes()[0] < 8
    assert f"--only planted --replay {path}" in capsys.readouterr().out.replace("\n", "")
    assert main.main(["--only", "planted", "--replay", str(path)]) == 1
    assert "KeyError" in capsys.readouterr().out
    path.write_bytes(b"\xff")
    assert main.main(["--only", "planted", "--replay", str(path)]) == 0
    assert main.main(["--only", "another"]) == 2
    assert "--list names them" in capsys.readouterr().err


# What it found


@pytest.mark.parametrize("nasty", ["epoch = " + "9" * 5000, "subnets = " + "[" * 5000])
def test_a_subnet_table_with_a_huge_number_or_depth_is_refused(nasty: str, tmp_path: Path) -> None:
    text = f'[[node]]\nname = "a"\n{nasty}\n'
    with pytest.raises(Refusal, match="is not TOML"):
        file.parse_table(text, Path("table.toml"))
    settings = tmp_path / "podwire.toml"
    settings.write_text(text)
    with pytest.raises(Refusal, match="is not TOML"):
        load_settings({}, {}, settings)


def test_a_key_of_etcd_cannot_write_lines_of_its_own_into_the_log() -> None:
    key = "/podwire/members/alpha\n2026-01-01 INFO router: all is well"
    with pytest.raises(Refusal, match="is not JSON") as refused:
        layout.read_row(Stored(key, b"nonsense", 1), layout.Layout("/podwire"))
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("change", [{"mac": "0200"}, {"mac": ""}, {"target": "\ud800"}, {"seed": []}])
def test_a_relay_lives_on_after_a_line_that_is_none(change: dict[str, object]) -> None:
    line = {"source": "n1", "target": "n2", "mac": "020000000001", "faults": {}, "seed": 3}
    with RelayRequests() as target:
        target.feed(json.dumps({"lines": [line], "cut": []}).encode())
        target.feed(json.dumps({"lines": [line, line | change], "cut": []}).encode("utf-8", "surrogatepass"))
        assert target._relay._answer(b"{}")["error"] == ""
        assert [(each["source"], each["target"]) for each in target._relay._answer(b"{}")["lines"]] == [("n1", "n2")]


def test_a_tombstone_of_nothing_but_brackets_is_removed() -> None:
    with TombstoneFiles() as target:
        target.feed(b"[" * 4096)
