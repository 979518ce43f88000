"""Which engine runs: the one asked for, or the best there is, said aloud. Imports no engine until one is chosen."""

from __future__ import annotations

from importlib.util import find_spec

from router.engine.interface import EngineFactory
from router.errors import Kind, Refusal

AUTO = "auto"
NAMES = ("native", "python")
"""Every engine there is, best first."""
BUILD = "scripts/build-native.sh, which needs cargo (Debian: rustup or cargo 1.88 and newer)"
"""What makes the native one."""


def available() -> tuple[str, ...]:
    """Return the names of the engines that can run here, best first."""
    return NAMES if find_spec("router.engine.native._core") is not None else NAMES[1:]


def choose(name: str) -> tuple[str, EngineFactory]:
    """Return the name and factory of the engine asked for (`auto`: the best there is).

    Raise Refusal(INVALID) for one that is not there, with what to do about it.
    """
    if name not in (AUTO, *NAMES):
        raise Refusal(Kind.INVALID, f"there is no engine {name!r}; choose one of: {', '.join((AUTO, *NAMES))}")
    there = available()
    chosen = there[0] if name == AUTO else name
    if chosen not in there:
        raise Refusal(
            Kind.INVALID, f"engine {name!r} is not built here; build it with {BUILD}, or choose: {AUTO}, python"
        )
    if chosen == "native":
        try:
            from router.engine.native.engine import NativeEngine
        except ImportError as error:
            raise Refusal(
                Kind.STATE, f"the native engine does not load ({error}); build it anew with {BUILD}, or choose: python"
            ) from None
        return chosen, NativeEngine
    from router.engine.python import PythonEngine

    return chosen, PythonEngine
