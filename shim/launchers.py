"""The executables a runtime starts: a few lines each, with the real interpreter in the first of them; or compiled.

A console script of pip's would start a virtual environment's Python, read `site` and every .pth file, and so take
several times as long as the call that it is started for (50 ms instead of 10). These skip all that (-I, -S), and put only
the directory of our packages on sys.path: what they import is in the standard library or ours.

The CNI plugin, which a runtime starts most often, there is compiled as well (shim/cni/native). It is built by
scripts/build-native.sh into the package itself, and is looked for nowhere else.
"""

from __future__ import annotations

import compileall
import os
import subprocess
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

CLIENTS = ("auto", "python", "native")
"""Which CNI plugin is asked for: one of the two, or the compiled one where it is built."""
PLUGIN = "podwire-cni"

_PARTS = ("", "lean", *(module.split(".")[1] for module in ENTRY_POINTS.values()))
_MOST_SHEBANG_BYTES = 255
"""BINPRM_BUF_SIZE - 1, linux/binfmts.h."""
_MODE = 0o755
_BUILT = Path("shim/cni/native", PLUGIN)
_START_S = 20


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


def content(name: str, python: str | None = None, client: str = "python") -> bytes:
    """Return the content of an executable; `client`, as `choose_client` returned it, says which CNI plugin. LauncherError, OSError."""
    if name == PLUGIN and client == "native":
        return _built().read_bytes()
    return text(name, python).encode()


def write(
    directory: Path, names: Sequence[str] = tuple(ENTRY_POINTS), python: str | None = None, client: str = "auto"
) -> list[Path]:
    """Write executables into a directory, each whole or not at all; return their paths. Raise OSError, LauncherError."""
    client = choose_client(client) if PLUGIN in names else client
    contents = {name: content(name, python, client) for name in names}
    directory.mkdir(parents=True, exist_ok=True)
    made = [directory / name for name in contents]
    for path, each in zip(made, contents.values(), strict=True):
        wholefile.write(path, each, _MODE)
    precompile()
    return made


def built_client() -> Path | None:
    """Return the compiled CNI plugin of this package; None where it is not built."""
    path = package_parent() / _BUILT
    return path if path.is_file() else None


def choose_client(asked: str) -> str:
    """Return "native" or "python". LauncherError when the compiled one is asked for and not built, or does not start."""
    if asked == "python" or (asked == "auto" and built_client() is None):
        return "python"
    path = _built()
    remedy = f"build it anew for this machine (scripts/build-native.sh), or use the one in Python instead of {path}"
    try:
        done = subprocess.run([path, "--help"], capture_output=True, timeout=_START_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"the compiled {PLUGIN} does not start ({error}): {remedy}") from None
    if done.returncode:
        raise LauncherError(f"the compiled {PLUGIN} does not start (exit status {done.returncode}): {remedy}")
    return "native"


def _built() -> Path:
    found = built_client()
    if found is None:
        raise LauncherError(
            f"the compiled {PLUGIN} is not built: there is no {package_parent() / _BUILT}. Run scripts/build-native.sh, "
            "which needs cargo, in Podwire's source directory"
        )
    return found


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
