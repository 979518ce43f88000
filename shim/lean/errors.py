"""Why a call came to nothing."""

from __future__ import annotations

STATUS_NAMES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED "
    "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED"
).split()
"""Names of gRPC's status codes by number."""


class RouterError(Exception):
    """A call that failed. The message is one line that says what is wrong and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        """Name of the gRPC status code."""
        self.message = message

    @property
    def nobody_answered(self) -> bool:
        """Whether it is the router that was missing, and not the request that was refused."""
        return self.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
