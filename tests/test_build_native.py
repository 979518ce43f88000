"""scripts/build-native.sh where nothing can be built: one line that says so, and an error only where one is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "dirname", "mktemp", "rm", "cp", "mv", "grep", "sed", "cmp", "install")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The script and the crates, in a tree without anything built."""
    made = tmp_path / "tree"
    for part in ("scripts/build-native.sh", "Cargo.toml", "Cargo.lock"):
        (made / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, made / part)
    for crate in ("router/engine/native", "shim/cni/native"):
        shutil.copytree(ROOT / crate, made / crate, ignore=shutil.ignore_patterns("*.so", "podwire-cni", "__pycache__"))
    return made


def build(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [tree / "scripts/build-native.sh", *arguments]
    environ = os.environ | {"TMPDIR": str(tree), "CARGO_TARGET_DIR": str(tree / "target")} | environment
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def without_cargo(tmp_path: Path) -> dict[str, str]:
    """An environment with what the script itself runs, and no Rust."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    return {"PATH": str(tools), "CARGO_HOME": str(tmp_path / "nothing")}


def test_without_cargo_one_line_says_which_are_used(tree: Path, without_cargo: dict[str, str]) -> None:
    done = build(tree, **without_cargo)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert "there is no cargo; the ones in Python are used. To have them: install Rust" in line


def test_without_cargo_what_was_built_before_is_not_denied(tree: Path, without_cargo: dict[str, str]) -> None:
    (tree / "shim/cni/native/podwire-cni").write_text("")
    (line,) = build(tree, **without_cargo).stdout.splitlines()
    assert "what was built before stays in use" in line


def test_required_it_is_an_error(tree: Path, without_cargo: dict[str, str]) -> None:
    done = build(tree, "--require", **without_cargo)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "there is no cargo" in line


@pytest.mark.skipif(shutil.which("cargo") is None, reason="no cargo here: install Rust")
def test_without_crates_one_line_says_what_cargo_says(tree: Path, tmp_path: Path) -> None:
    environment = {"CARGO_HOME": str(tmp_path / "cargo"), "CARGO_NET_OFFLINE": "true"}
    done = build(tree, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert 'cargo says "error: ' in line
    assert build(tree, "--require", **environment).returncode == 1
    assert not (tree / "shim/cni/native/podwire-cni").exists()


def test_another_word_is_refused_with_an_explanation(tree: Path) -> None:
    done = build(tree, "--quick")
    assert done.returncode == 2
    assert "--require" in done.stderr
