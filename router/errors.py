"""Why the daemon refuses a request: one exception, with a kind that `control` turns into a gRPC status."""

from __future__ import annotations

from enum import Enum, unique


@unique
class Kind(Enum):
    """What sort of refusal; the value is the gRPC status code's name."""

    INVALID = "INVALID_ARGUMENT"
    """The request can never work as it is."""
    NOT_FOUND = "NOT_FOUND"
    EXISTS = "ALREADY_EXISTS"
    """Something else already holds what was asked for."""
    STATE = "FAILED_PRECONDITION"
    """Cannot be done as things stand; something else must change first."""
    CONFLICT = "ABORTED"
    """The version asked for is not the one in force; read it and try again."""
    EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    """Try again later."""


class Refusal(Exception):
    """A request that was refused and changed nothing. The message says what was wrong, where, and what to do."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
