"""The executables a runtime starts: a few lines each, with the real interpreter in the first of them.

A console script of pip's would start a virtual environment's Python, read `site` and every .pth file, and so take
several times as long as the call that it is started for. These skip all that (-I, -S), and put only this package's
parent directory on sys.path.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "podwire-cni": "shim.cni.main",
        "containerd-shim-podwire-v2": "shim.containerd.main",
        "podwire-oci-hook": "shim.oci.main",
    }
)
"""Executable, and the module whose `main` it calls."""

_MAX_SHEBANG_BYTES = 255
"""BINPRM_BUF_SIZE - 1, linux/binfmts.h."""
_MODE = 0o755


class LauncherError(ValueError):
    """Why no launcher can be written. The message says what to do."""


def package_parent() -> Path:
    """Return the directory from which `shim` is imported: site-packages, or a checkout."""
    import shim

    return Path(shim.__file__).resolve().parent.parent


def interpreter() -> str:
    """Return the path of the real interpreter: the one that a virtual environment's links lead to."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def text(name: str, python: str | None = None) -> str:
    """Return what stands in a launcher. Raises LauncherError."""
    if name not in NAMES:
        raise LauncherError(f"no launcher is called {name!r}; there are {', '.join(NAMES)}")
    python = interpreter() if python is None else python
    shebang = f"#!{python} -IS"
    if not python.startswith("/") or python.split() != [python]:
        raise LauncherError(
            f"a first line cannot name the interpreter {python!r}: give an absolute path without spaces"
        )
    if (size := len(os.fsencode(shebang))) > _MAX_SHEBANG_BYTES:
        why = f"the first line would have {size} bytes, and the kernel reads {_MAX_SHEBANG_BYTES}"
        raise LauncherError(f"the interpreter's path {python} is too long: {why}; link it from a shorter path")
    return (
        f"{shebang}\n"
        f"# Written by Podwire; `podwire install` writes it anew.\n"
        f"import sys\n\n"
        f"sys.path.insert(0, {str(package_parent())!r})\n"
        f"from {NAMES[name]} import main\n\n"
        f"sys.exit(main())\n"
    )


def write(directory: Path, names: Sequence[str] = tuple(NAMES), python: str | None = None) -> list[Path]:
    """Write launchers into a directory, each at once and whole; return their paths. Raises LauncherError, OSError."""
    texts = {name: text(name, python) for name in names}
    _check_interpreter(interpreter() if python is None else python)
    directory.mkdir(parents=True, exist_ok=True)
    return [_write(directory / name, content) for name, content in texts.items()]


def precompile() -> list[str]:
    """Compile the modules that launchers import, for their quick start; return what is in the way, as sentences."""
    package = package_parent() / "shim"
    blocked = []
    for directory in (package, *(package / module.split(".")[1] for module in NAMES.values()), package / "lean"):
        if not directory.is_dir():
            continue
        # A file at a time is quick: what is up to date is left. A directory that cannot be written is told, once.
        compileall.compile_dir(directory, maxlevels=0, quiet=2)
        missing = [path for path in sorted(directory.glob("*.py")) if not _is_compiled(path)]
        if missing:
            blocked.append(
                f"{directory} has no compiled {missing[0].stem} (is it writable?), so that every start of a launcher "
                f"compiles it again; run `{interpreter()} -m compileall {directory}` as who may write there"
            )
    return blocked


def _check_interpreter(python: str) -> None:
    try:
        with Path(python).open("rb") as file:
            is_script = file.read(2) == b"#!"
    except OSError as error:
        raise LauncherError(f"cannot read the interpreter {python}: {error.strerror}") from error
    if not os.access(python, os.X_OK):
        raise LauncherError(f"the interpreter {python} is not executable")
    if is_script:  # of a version manager: each start would cost another process or two
        raise LauncherError(f"{python} is a script that starts an interpreter; name the interpreter itself")


def _write(path: Path, content: str) -> Path:
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            os.fchmod(file.fileno(), _MODE)
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
    return path


def _is_compiled(path: Path) -> bool:
    try:
        compiled = os.stat(importlib.util.cache_from_source(str(path)))  # noqa: PTH116 - beside the source's
    except OSError:
        return False
    return stat.S_ISREG(compiled.st_mode) and compiled.st_mtime >= path.stat().st_mtime - 1
