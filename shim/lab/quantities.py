"""Amounts as people type them: 5%, 20ms, 50mbit, 1400; as types for click."""

from __future__ import annotations

import re
from collections.abc import Mapping

import click

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ%]*)", re.IGNORECASE)
_FRACTION = {"%": 0.01, "": 1.0}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"": 1.0, "b": 1.0}
_BITS_PER_S = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def fraction(typed: str | float) -> float:
    """Read 5% or 0.05."""
    return _read(typed, _FRACTION, "5% or 0.05")


def seconds(typed: str | float) -> float:
    """Read 20ms."""
    return _read(typed, _SECONDS, "20ms")


def bits_per_s(typed: str | float) -> float:
    """Read 50mbit."""
    return _read(typed, _BITS_PER_S, "50mbit")


def whole_bytes(typed: str | float) -> float:
    """Read 1400."""
    return _read(typed, _BYTES, "1400")


def _read(typed: str | float, units: Mapping[str, float], example: str) -> float:
    if isinstance(typed, float):  # a default
        return typed
    found = _NUMBER.fullmatch(typed.strip())
    if found is None or found[2].lower() not in units:
        raise click.BadParameter(f"{typed!r} is not an amount; say for example {example}.")
    return float(found[1]) * units[found[2].lower()]
