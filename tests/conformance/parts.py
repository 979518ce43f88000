"""Where the real parts are that scripts/conformance-setup.sh has put there, and why one is not."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[2] / "build" / "conformance"
STOCK_PLUGINS = Path("/usr/lib/cni")
DRIVER = DIRECTORY / "libcni-driver"
PROMTOOL = DIRECTORY / "promtool"


class MissingPart(Exception):
    """A part that is not there; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Release:
    """One containerd: what is called what it is ("1.6"), and where its programs are."""

    name: str
    programs: Path

    @property
    def major(self) -> int:
        return int(self.name.partition(".")[0])

    def program(self, name: str) -> str:
        return str(self.programs / name)


def release(name: str) -> Release:
    """Return the containerd of that version; "1.6" is the installed one. MissingPart says why there is none."""
    unpacked = DIRECTORY / f"containerd-{name}"
    if (unpacked / "usr/bin/containerd").exists():
        return Release(name, unpacked / "usr/bin")
    if name == "1.6" and (installed := shutil.which("containerd")):
        return Release(name, Path(installed).parent)
    try:
        why = unpacked.with_name(f"{unpacked.name}.missing").read_text().strip()
    except FileNotFoundError:
        why = "scripts/conformance-setup.sh has not run"
    raise MissingPart(f"no containerd {name} here: {why}")


def need(*commands: str) -> None:
    """Raise MissingPart unless these commands are there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [command for command in commands if not shutil.which(command, path=path)]:
        raise MissingPart(f"not installed: {', '.join(missing)}; run scripts/conformance-setup.sh")
