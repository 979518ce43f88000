"""JSON read by the scanner that the standard library has in C, without what surrounds it.

`import json` imports `re` and `enum`, a third of what a DEL with nothing to do takes in all. The scanner is the one that
json.JSONDecoder uses. Whatever it does not read, `json` reads, or says why not.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as mypy and ruff know it; `typing` itself costs 10 ms to import
if TYPE_CHECKING:
    from typing import Any

_BLANKS = " \t\n\r"
"""RFC 8259 section 2."""


def read(content: bytes) -> Any:
    """Return the value of a JSON text in UTF-8. ValueError when it is none, RecursionError when it is nested too deep."""
    text = content.decode()
    try:
        from _json import make_scanner

        found, end = make_scanner(_Settings)(text, len(text) - len(text.lstrip(_BLANKS)))  # type: ignore[arg-type]
        if not text[end:].strip(_BLANKS):
            return found
    except (ImportError, AttributeError, StopIteration, SystemError, ValueError):
        # No such scanner here, or no JSON. CPython 3.11 says the latter by SystemError: it finds the class of the error
        # it means only where json.decoder is imported already.
        pass
    from json import loads

    return loads(text, parse_constant=_Settings.parse_constant)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


class _Settings:
    """What the scanner asks of a json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_number)
