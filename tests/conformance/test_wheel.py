"""Where cargo is, the wheel holds the compiled parts, and they run without the source tree."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "results", "target", "*.so", "podwire-cni"
)


@pytest.mark.timeout(600)
def test_a_wheel_built_with_cargo_brings_the_native_engine_and_plugin(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "source", ignore=NOT_SOURCE)
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target"), "PODWIRE_BUILD_NATIVE": "1"}
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    wheel = [sys.executable, "-m", "pip", "wheel", *offline, "-w", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(wheel, env=environment, check=True, timeout=580)
    (built,) = tmp_path.glob("*.whl")
    assert built.name.startswith("podwire-0.1.0-cp311-abi3-linux_")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".rs", "Cargo.toml"))]

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    install = ("install", "--quiet", "--no-deps", "--no-index", str(built))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    (folder,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (folder / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    said = subprocess.run(
        [str(python), "-c", "from router.engine.choose import choose; print(choose('auto')[0])"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.strip() == "native"
    plugin = folder / "shim/cni/native/podwire-cni"
    asked = subprocess.run(
        [str(plugin)],
        input='{"cniVersion": "1.0.0"}',
        env={"CNI_COMMAND": "VERSION"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "supportedVersions" in asked.stdout
