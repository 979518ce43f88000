"""What was installed, so that exactly that can be undone: written before anything is changed, and again after it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shim.install.root import InstallError, Root

PATH = "/var/lib/podwire/install.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of ours."""

    sha256: tuple[str, ...]
    """Of what we wrote: while an installation is under way, of the old and the new."""
    before: bytes | None = None
    """What stood there before us."""
    before_mode: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file and directory that is there because of us, by the node's name for it."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    directories: tuple[str, ...] = ()

    def text(self) -> str:
        """Return it as it is kept."""
        files = {}
        for path, entry in sorted(self.entries.items()):
            files[path] = {"sha256": list(entry.sha256)}
            if entry.before is not None:
                files[path]["before_base64"] = base64.b64encode(entry.before).decode()  # type: ignore[assignment]
                files[path]["before_mode"] = oct(entry.before_mode)  # type: ignore[assignment]
        document = {"version": _VERSION, "files": files, "directories": list(self.directories)}
        return json.dumps(document, indent=2) + "\n"


def load(root: Root) -> Manifest:
    """Return what was installed; nothing when nothing was. Raise InstallError when it cannot be read."""
    try:
        document = json.loads(root.at(PATH).read_text("utf-8"))
        if document["version"] != _VERSION:
            raise InstallError(
                f"{PATH} is of version {document['version']}: use the Podwire that wrote it, or a newer one"
            )
        entries = {path: _entry(each) for path, each in document["files"].items()}
        return Manifest(entries, tuple(map(str, document["directories"])))
    except (FileNotFoundError, NotADirectoryError):
        return Manifest()
    except OSError as error:
        raise InstallError(f"cannot read {PATH}: {error.strerror}; run this as root") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InstallError(f"{PATH} is damaged: restore it, or remove it and what Podwire wrote by hand") from None


def digest(content: bytes) -> str:
    """Return what a file's content is known by."""
    return hashlib.sha256(content).hexdigest()


def union(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """Return all of both, each once, in order."""
    return tuple(dict.fromkeys((*one, *other)))


def _entry(found: Mapping[str, object]) -> Entry:
    sha256 = found["sha256"]
    if not isinstance(sha256, list):
        raise TypeError
    before = found.get("before_base64")
    content = base64.b64decode(str(before), validate=True) if before is not None else None
    return Entry(tuple(map(str, sha256)), content, int(str(found.get("before_mode", "0")), 8))
