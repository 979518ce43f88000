"""Where cargo is, the wheel holds the compiled parts, and they run without the source tree."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.wheel import ROOT, build, install, run


@pytest.mark.timeout(600)
def test_a_wheel_built_with_cargo_brings_the_native_engine_and_plugin(tmp_path: Path) -> None:
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target"), "PODWIRE_BUILD_NATIVE": "1"}
    built = build(tmp_path, environment, timeout_s=580)
    assert built.name.startswith("podwire-0.1.0-cp311-abi3-linux_")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".rs", "Cargo.toml"))]

    folder = install(built, tmp_path / "venv")
    asks = "from router.engine.choose import choose; print(choose('auto')[0])"
    said = run(tmp_path / "venv/bin/python", "-c", asks, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    assert said.strip() == "native"
    plugin = folder / "shim/cni/native/podwire-cni"
    asked = subprocess.run(
        [str(plugin)], input='{"cniVersion": "1.0.0"}', env={"CNI_COMMAND": "VERSION"}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "supportedVersions" in asked.stdout
