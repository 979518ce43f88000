"""A runtime that can be asked which containers it has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from shim.answers import Attachment


class SourceError(Exception):
    """A runtime that could not be asked: then nothing of it may be released. The message is one line."""


class Source(Protocol):
    """One runtime."""

    name: str
    """As the command line says it."""

    def claims(self, attachment: Attachment) -> bool:
        """Tell whether an attachment was made for this runtime, and is its to judge."""

    def unknown(self, attachments: Collection[Attachment]) -> list[Attachment]:
        """Return those of its attachments that it does not know. SourceError when it cannot be asked."""

    def is_leaked(self, netns_path: Path) -> bool:
        """Tell whether a namespace is one that it leaves behind when it dies in the middle, and never comes back for."""

    def forgotten(self, names: Collection[str]) -> list[str]:
        """Return those of its namespaces, by name, that belong to nothing it knows. SourceError when it cannot be asked."""
