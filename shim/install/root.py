"""The directory that stands for / : the node itself, or a tree that is to become one."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class InstallError(Exception):
    """What cannot be read, written or undone, in one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Root:
    """Where paths of the node are looked for; they are named as the node will see them."""

    directory: Path = Path("/")

    @property
    def is_node(self) -> bool:
        """Whether this is the running node, not a tree."""
        return self.directory == Path("/")

    def at(self, path: str | Path) -> Path:
        """Return where an absolute path of the node is from here."""
        return self.directory / str(path).lstrip("/")

    def named(self, path: Path) -> str:
        """Return the node's name for a path."""
        return "/" + str(path.relative_to(self.directory))

    def program(self, name: str) -> str:
        """Return the path of a program on the node; empty when it is not there."""
        directories = [*_PROGRAM_DIRECTORIES]
        if self.is_node:
            directories += [each for each in os.environ.get("PATH", "").split(":") if each.startswith("/")]
        for directory in directories:
            path = self.at(directory) / name
            if path.is_file() and os.access(path, os.X_OK):
                return f"{directory}/{name}"
        return ""

    def glob(self, pattern: str) -> list[str]:
        """Return the paths that a pattern of the node's stands for, in order."""
        return sorted(self.named(path) for path in self.directory.glob(pattern.lstrip("/")))

    def toml(self, path: str) -> dict[str, Any] | None:
        """Return what a TOML file of the node holds, None when it is not there. Raise InstallError."""
        try:
            return tomllib.loads(self.at(path).read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InstallError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise InstallError(f"{path} is not TOML: {error}; mend it first") from None


def table(document: dict[str, Any] | None, *keys: str) -> dict[str, Any]:
    """Return an inner table of a document, empty when it is not there."""
    found: Any = document or {}
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def texts(value: object) -> tuple[str, ...]:
    """Return the strings of a list, or the one string, that a setting holds."""
    each = value if isinstance(value, list) else [value]
    return tuple(item for item in each if isinstance(item, str) and item)
