"""A cluster of bare network namespaces on one machine: `from shim.lab import Lab`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shim.lab.lab import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    """Import Lab only when it is asked for: it brings grpc, which `podwire --help` does not need."""
    if name == "Lab":
        from shim.lab.lab import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
