"""Which engine runs, where the compiled one is not built, or does not load: nothing falls back in silence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from router.engine.choose import AUTO, BUILD, NAMES, available, choose
from router.errors import Kind, Refusal

_HIDE = "import sys; sys.modules['router.engine.native._core'] = None\n"
"""As if there were no such file (importlib)."""
_BREAK = "import sys; sys.modules['router.engine.native.engine'] = None\n"
_CHOOSE = """
from router.engine.choose import available, choose
from router.errors import Kind, Refusal
print(*available())
try:
    print(choose(sys.argv[1])[0])
except Refusal as refused:
    print(refused.kind.name, refused)
"""


def said(name: str, before: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", before + _CHOOSE, name], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_one_that_is_not_built_is_an_error_that_says_how_to_build_it() -> None:
    there, answer = said("native", _HIDE)
    assert there == "python"
    assert answer.startswith("INVALID ")
    assert "'native'" in answer
    assert BUILD in answer


@pytest.mark.parametrize("name", [AUTO, "python"])
def test_the_other_runs_without_it(name: str) -> None:
    assert said(name, _HIDE) == ["python", "python"]


@pytest.mark.skipif("native" not in available(), reason="the native engine is not built")
def test_one_that_does_not_load_is_an_error_too() -> None:
    """Whether asked for by name or found by `auto`: a broken build is not passed over."""
    for name in (AUTO, "native"):
        answer = said(name, _BREAK)[-1]
        assert answer.startswith("STATE ")
        assert BUILD in answer


def test_every_engine_says_its_name() -> None:
    assert set(available()) <= set(NAMES)
    for name in available():
        chosen, factory = choose(name)
        assert chosen == name == factory.name  # type: ignore[attr-defined]
    assert choose(AUTO)[0] == available()[0]
    with pytest.raises(Refusal, match="warp.*native, python") as refused:
        choose("warp")
    assert refused.value.kind is Kind.INVALID
