"""The executables a runtime starts: a few lines each, with the real interpreter in the first of them.

A console script of pip's would start a virtual environment's Python, read `site` and every .pth file, and so take
several times as long as the call that it is started for (50 ms instead of 10). These skip all that (-I, -S), and put only
the directory of our packages on sys.path: what they import is in the standard library or ours.
"""

from __future__ import annotations

import compileall
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import cache_from_source
from pathlib import Path
from types import MappingProxyType

from shim import wholefile

ENTRY_POINTS: Mapping[str, str] = MappingProxyType(
    {
        "podwire-cni": "shim.cni.main",
        "containerd-shim-podwire-v2": "shim.containerd.main",
        "podwire-oci-hook": "shim.oci.main",
    }
)
"""Executable, and the module whose `main` it calls."""

_PARTS = ("", "lean", *(module.split(".")[1] for module in ENTRY_POINTS.values()))
_MOST_SHEBANG_BYTES = 255
"""BINPRM_BUF_SIZE - 1, linux/binfmts.h."""
_MODE = 0o755


class LauncherError(ValueError):
    """Why no launcher can be written. The message says what to do."""


def text(name: str, python: str | None = None) -> str:
    """Return the content of an executable. Raise LauncherError."""
    if name not in ENTRY_POINTS:
        raise LauncherError(f"no launcher is called {name!r}; there are {', '.join(ENTRY_POINTS)}")
    named = interpreter() if python is None else python
    _check(named)
    packages = package_parent()
    return (
        f"#!{named} -IS\n"
        f"# Made by `podwire install`, from {packages}; make it anew when that, or the interpreter, moves.\n"
        f"import sys\n\nsys.path.insert(0, {str(packages)!r})\nfrom {ENTRY_POINTS[name]} import main\n\nsys.exit(main())\n"
    )


def write(directory: Path, names: Sequence[str] = tuple(ENTRY_POINTS), python: str | None = None) -> list[Path]:
    """Write executables into a directory, each whole or not at all; return their paths. Raise OSError, LauncherError."""
    texts = {name: text(name, python) for name in names}
    directory.mkdir(parents=True, exist_ok=True)
    made = [directory / name for name in texts]
    for path, content in zip(made, texts.values(), strict=True):
        wholefile.write(path, content.encode(), _MODE)
    precompile()
    return made


def precompile() -> list[str]:
    """Compile what the executables import, for their start lives on it; return the directories that cannot be written."""
    return [
        str(directory)
        for directory in (package_parent() / "shim" / part for part in _PARTS)
        if directory.is_dir() and not compileall.compile_dir(directory, quiet=2, maxlevels=0)
    ]


def uncompiled() -> list[str]:
    """Return the directories of which a module is not compiled."""
    return [
        str(directory)
        for directory in (package_parent() / "shim" / part for part in _PARTS)
        if not all(Path(cache_from_source(str(module))).exists() for module in directory.glob("*.py"))
    ]


def package_parent() -> Path:
    """Return the directory from which `shim` is imported: site-packages, or a checkout."""
    return Path(__file__).resolve().parent.parent


def interpreter() -> str:
    """Return the path of the interpreter itself: not a venv's link, not a version manager's script."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _check(python: str) -> None:
    """Raise LauncherError unless the kernel starts this interpreter from a script's first line, and at once."""
    if not python.startswith("/") or python.split() != [python]:
        raise LauncherError(
            f"{python!r} cannot stand in a script's first line: name it by an absolute path without blanks"
        )
    if (size := len(os.fsencode(f"#!{python} -IS"))) > _MOST_SHEBANG_BYTES:
        raise LauncherError(
            f"a script's first line with {python} would have {size} bytes, and the kernel reads "
            f"{_MOST_SHEBANG_BYTES}: use an interpreter with a shorter path, or link it from one"
        )
    try:
        with Path(python).open("rb") as file:
            is_script = file.read(2) == b"#!"
    except OSError as error:
        raise LauncherError(f"cannot read the interpreter {python}: {error.strerror}") from None
    if not os.access(python, os.X_OK):
        raise LauncherError(f"the interpreter {python} is not executable")
    if is_script:  # of a version manager: it costs up to 90 ms at each start
        raise LauncherError(f"{python} is a script that starts an interpreter: name the interpreter itself")
