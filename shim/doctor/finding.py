"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique


@unique
class Verdict(StrEnum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"
    """Something does not work, or will not one day; Pods as such do."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and, unless it is well, how to mend it."""

    check: str
    verdict: Verdict
    what: str
    remedy: str = ""


def ok(check: str, what: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.OK, what)


def warn(check: str, what: str, remedy: str) -> Finding:
    """Return what is doubtful."""
    return Finding(check, Verdict.WARN, what, remedy)


def fail(check: str, what: str, remedy: str) -> Finding:
    """Return what is broken."""
    return Finding(check, Verdict.FAIL, what, remedy)
