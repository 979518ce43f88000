"""What a CNI plugin answers when it cannot: a code and words (CNI specification, "Error")."""

from __future__ import annotations

from shim.lean.errors import RouterError

VERSION, FIELD, UNKNOWN_CONTAINER, ENVIRONMENT, IO, DECODE, CONFIG = 1, 2, 3, 4, 5, 6, 7
TRY_AGAIN = 11
UNAVAILABLE, LIMITED = 50, 51
REFUSED, EXHAUSTED, TOO_LATE, MISSING, BUG = 100, 101, 102, 103, 199
"""Our own: the router said no; no address is free; the sandbox was deleted meanwhile; CHECK found something missing."""


class CniError(Exception):
    """A verb that came to nothing."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


def of_router(error: RouterError) -> CniError:
    """Return what a runtime is told of a call that failed."""
    code = {
        "UNAVAILABLE": TRY_AGAIN,
        "DEADLINE_EXCEEDED": TRY_AGAIN,
        "INVALID_ARGUMENT": CONFIG,
        "NOT_FOUND": UNKNOWN_CONTAINER,
        "RESOURCE_EXHAUSTED": EXHAUSTED,
        "ABORTED": TOO_LATE,
        "INTERNAL": BUG,
    }.get(error.code, REFUSED)
    return CniError(code, error.message, f"gRPC status {error.code}")
