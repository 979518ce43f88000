"""The wheel holds exactly the two packages, starts in a fresh venv, and the lock covers what it asks for."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.wheel import ROOT, build, install, run


def without_cargo() -> dict[str, str]:
    """Return the environment of a machine on which nothing can be compiled."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment.pop("PODWIRE_BUILD_NATIVE", None)
    assert shutil.which("cargo", path=environment["PATH"]) is None
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as on a machine without cargo."""
    return build(tmp_path_factory.mktemp("wheel"), without_cargo())


def test_the_wheel_holds_exactly_the_two_packages(wheel: Path) -> None:
    assert wheel.name == "podwire-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        top_level = archive.read("podwire-0.1.0.dist-info/top_level.txt").decode().split()
    assert top_level == ["router", "shim"]
    expected = {
        str(path.relative_to(ROOT))
        for package in ("router", "shim")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".pyi"} or path.name == "py.typed" or path.parent.name == "static"
    }
    assert {name for name in names if not name.startswith("podwire-0.1.0.dist-info/")} == expected
    assert {"router/py.typed", "shim/py.typed", "router/rpc/v1/router_pb2.pyi"} <= expected
    assert "podwire-0.1.0.dist-info/licenses/LICENSE" in names


def test_an_install_without_cargo_says_so_in_one_line(wheel: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT, env=without_cargo(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("podwire:")]
    assert len(said) == 1
    assert "there is no cargo: the engine and the CNI plugin in Python are installed" in said[0]
    assert wheel.name.endswith("-py3-none-any.whl")


def test_every_package_has_its_init() -> None:
    for package in ("router", "shim"):
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_command_starts_in_a_fresh_venv(wheel: Path, tmp_path: Path) -> None:
    install(wheel, tmp_path)
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    said = run(tmp_path / "bin/podwire", "--version", cwd=tmp_path, env=clean)
    assert "0.1.0" in said
    places = run(
        tmp_path / "bin/python",
        "-c",
        "import router, shim; print(router.__file__, shim.__file__)",
        cwd=tmp_path,
        env=clean,
    )
    assert all(Path(place).is_relative_to(tmp_path) for place in places.split())


def test_dependencies_are_bounded_and_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert not any("://" in line or "@" in line for line in lines), "a lock names versions, never hosts"
    pins = [Requirement(line) for line in lines]
    locked = {
        canonicalize_name(pin.name): str(pin.specifier) for pin in pins if pin.marker is None or pin.marker.evaluate()
    }
    assert all(version.startswith("==") for version in locked.values())
    for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in locked, f"constraints.txt does not lock {name}"
        assert requirement.specifier.contains(locked[name].removeprefix("==")), f"{text} against {locked[name]}"
        if not name.startswith("types-"):
            assert any(part.operator == "<" for part in requirement.specifier), f"{text} has no upper bound"


def test_what_is_tested_is_what_is_locked() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    strays = {}
    for pin in pins:
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        if not pin.specifier.contains(version):
            strays[pin.name] = version
    assert strays == {}, "installed, but not as constraints.txt has it; run: make setup"
