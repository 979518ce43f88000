"""Which engine runs: the one asked for, or the best there is, said aloud. Imports no engine until one is chosen."""

from __future__ import annotations

from router.engine.interface import EngineFactory
from router.errors import Kind, Refusal

AUTO = "auto"


def available() -> tuple[str, ...]:
    """Return the names of the engines that can run here, best first."""
    return ("python",)


def choose(name: str) -> tuple[str, EngineFactory]:
    """Return the name and factory of the engine asked for (`auto`: the best there is).

    Raise Refusal(INVALID) for one that is not there, with what to do about it.
    """
    there = available()
    chosen = there[0] if name == AUTO else name
    if chosen not in there:
        raise Refusal(
            Kind.INVALID, f"there is no engine {name!r} in this build; choose one of: {AUTO}, {', '.join(there)}"
        )
    from router.engine.python import PythonEngine

    return chosen, PythonEngine
