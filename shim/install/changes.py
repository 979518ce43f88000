"""What an installation would do to each file: compared with what is there, shown before anything is done."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path

from shim.install.manifest import Manifest, digest
from shim.install.root import InstallError, Root


@unique
class Kind(StrEnum):
    """What becomes of a file."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    BLOCKED = "blocked"
    """Somebody else's: nothing is installed before that is settled."""
    REMOVED = "removed"
    RESTORED = "restored"
    """What stood there before us comes back."""
    GONE = "gone"
    LEFT = "left"
    """Changed by somebody else since we wrote it: it stays."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as it is to be."""

    path: str
    content: bytes
    mode: int
    purpose: str


@dataclass(frozen=True, slots=True)
class Present:
    """A file as it is."""

    content: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one file."""

    path: str
    kind: Kind
    note: str
    """What it is for, or why it is blocked or left."""
    before: Present | None = None
    after: Wanted | None = None

    @property
    def diff(self) -> str:
        """Return how its lines change, if it is changed."""
        if self.kind is not Kind.CHANGED or self.before is None or self.after is None:
            return ""
        if _is_binary(self.before.content) or _is_binary(self.after.content):
            return f"{_described(self.before.content)} → {_described(self.after.content)}"
        old, new = (
            content.decode(errors="replace").splitlines() for content in (self.before.content, self.after.content)
        )
        lines = list(difflib.unified_diff(old, new, self.path, self.path, lineterm="", n=1))
        if self.before.mode != self.after.mode:
            lines.append(f"mode {self.before.mode:04o} → {self.after.mode:04o}")
        return "\n".join(lines)


def to_install(root: Root, wanted: Iterable[Wanted], manifest: Manifest, overwrite: bool) -> list[Change]:
    """Return what becomes of each wanted file. Raise InstallError when one cannot be read."""
    return [_installed(root, each, manifest, overwrite) for each in wanted]


def to_remove(root: Root, manifest: Manifest) -> list[Change]:
    """Return what becomes of each file of the manifest when all is undone. Raise InstallError."""
    found = []
    for path, entry in sorted(manifest.entries.items()):
        present = look(root.at(path))
        if present is None:
            found.append(Change(path, Kind.GONE, "it is not there any more"))
        elif isinstance(present, str) or digest(present.content) not in entry.sha256:
            found.append(
                Change(path, Kind.LEFT, "somebody else has changed it since: remove it by hand if it is of no use")
            )
        elif entry.before is not None:
            after = Wanted(path, entry.before, entry.before_mode, "")
            found.append(Change(path, Kind.RESTORED, "what stood there before comes back", present, after))
        else:
            found.append(Change(path, Kind.REMOVED, "", present))
    return found


def look(path: Path) -> Present | str | None:
    """Return a file, None when there is none, or what is there instead of a file. Raise InstallError."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            return "a link" if stat.S_ISLNK(found.st_mode) else "no file"
        return Present(path.read_bytes(), stat.S_IMODE(found.st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InstallError(f"cannot read {path}: {error.strerror}; run this as root") from None


def _is_binary(content: bytes) -> bool:
    return b"\0" in content


def _described(content: bytes) -> str:
    kind = "program" if _is_binary(content) else "script"
    return f"a {kind} of {len(content)} bytes, sha256 {digest(content)[:12]}"


def _installed(root: Root, wanted: Wanted, manifest: Manifest, overwrite: bool) -> Change:
    present = look(root.at(wanted.path))
    if present is None:
        return Change(wanted.path, Kind.NEW, wanted.purpose, None, wanted)
    if isinstance(present, str):
        return Change(wanted.path, Kind.BLOCKED, f"there is {present} of that name: remove it")
    if present == Present(wanted.content, wanted.mode):
        return Change(wanted.path, Kind.SAME, wanted.purpose, present, wanted)
    entry = manifest.entries.get(wanted.path)
    if overwrite or present.content == wanted.content or (entry and digest(present.content) in entry.sha256):
        return Change(wanted.path, Kind.CHANGED, wanted.purpose, present, wanted)
    whose = "somebody has changed it since Podwire wrote it" if entry else "Podwire did not write it"
    return Change(wanted.path, Kind.BLOCKED, f"{whose}: move it away, or replace it with --overwrite")
