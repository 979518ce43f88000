"""Small executables that start an entry point of ours without a moment lost, for runtimes to run by path.

Their interpreter is the real one (a venv's or a version manager's costs up to 90 ms more), isolated and without site (-IS:
10 ms instead of 50), told where our packages are. What the three of them import is in the standard library or ours.
"""

from __future__ import annotations

import compileall
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ENTRY_POINTS = {
    "podwire-cni": "shim.cni.main",
    "containerd-shim-podwire-v2": "shim.containerd.main",
    "podwire-oci-hook": "shim.oci.main",
}
"""Executable to the module whose `main` it calls."""

_PACKAGES = Path(__file__).resolve().parent.parent
_MOST_SHEBANG_BYTES = 255
"""BINPRM_BUF_SIZE - 1, linux/binfmts.h."""


def text(name: str, python: str | None = None) -> str:
    """Return the content of an executable. ValueError when the interpreter's path is too long for a first line."""
    interpreter = python or real_interpreter()
    shebang = f"#!{interpreter} -IS"
    if len(os.fsencode(shebang)) > _MOST_SHEBANG_BYTES or " " in interpreter:
        raise ValueError(
            f"{interpreter} cannot stand in a script's first line: use one with a shorter path, without blanks"
        )
    module = ENTRY_POINTS[name]
    return (
        f"{shebang}\n# Made by `podwire install`, from {_PACKAGES}; make it anew when that, or the interpreter, moves.\n"
        f"import sys\n\nsys.path.insert(0, {str(_PACKAGES)!r})\nfrom {module} import main\n\nsys.exit(main())\n"
    )


def write(directory: Path, names: Sequence[str] = tuple(ENTRY_POINTS), python: str | None = None) -> list[Path]:
    """Write executables into a directory, each whole or not at all; return their paths. Raise OSError, ValueError."""
    made = []
    for name in names:
        path = directory / name
        draft = directory / f".{name}.{os.getpid()}"
        draft.write_text(text(name, python))
        draft.chmod(0o755)
        draft.replace(path)
        made.append(path)
    precompile()
    return made


def precompile() -> bool:
    """Compile what the executables import, for their start lives on it; False when the place cannot be written."""
    done = [
        compileall.compile_dir(_PACKAGES / "shim" / part, quiet=2, maxlevels=0)
        for part in ("", "lean", "cni", "containerd", "oci")
        if (_PACKAGES / "shim" / part).is_dir()
    ]
    return all(done)


def real_interpreter() -> str:
    """Return the path of the interpreter itself: not a venv's link, not a version manager's script."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
