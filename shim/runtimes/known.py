"""The runtimes that can be asked, by the words of a command line or a setting."""

from __future__ import annotations

from shim.runtimes.containerd import Containerd
from shim.runtimes.podman import Podman
from shim.runtimes.source import Source


def open_source(text: str) -> Source:
    """Return the runtime that "containerd:SOCKET" or "podman" names. ValueError for anything else."""
    kind, _, path = text.partition(":")
    if kind == "containerd" and path.startswith("/"):
        return Containerd(path)
    if text == "podman":
        return Podman()
    raise ValueError(f"{text!r} is no runtime: write containerd:/PATH/OF/ITS/SOCKET, or podman")
