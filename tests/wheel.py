"""The wheel, built from a copy of the tree with what is installed here, and put into a venv of its own: no network."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_OFFLINE = ("--quiet", "--no-deps", "--no-index")
_NOT_SOURCE = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "results", "target", "*.so", "podwire-cni"
)


def run(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 60
) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, env: Mapping[str, str], timeout_s: float = 60) -> Path:
    """Return the wheel, in that folder."""
    shutil.copytree(ROOT, folder / "source", ignore=_NOT_SOURCE)
    command = (sys.executable, "-m", "pip", "wheel", *_OFFLINE, "--no-build-isolation", "-w", folder, folder / "source")
    run(*command, env=env, timeout_s=timeout_s)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, venv: Path) -> Path:
    """Make a venv with the wheel in it, and return its site-packages."""
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", *_OFFLINE, wheel)
    # Dependencies come from here. A path in a .pth file brings no editable install along.
    (folder,) = venv.glob("lib/python*/site-packages")
    (folder / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder
