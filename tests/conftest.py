"""Labs that tests share, and what must hold of them after every test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from shim.lab import Lab
from tests.accounts import assert_balanced

LabMaker = Callable[..., Lab]


def unique_name() -> str:
    return f"t{os.getpid()}-{secrets.token_hex(2)}"


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[Lab]:
    """Three nodes with two Pods each and a host outside: for tests that leave it as they found it."""
    with Lab(nodes=3, pods=2, outside=True, name=unique_name()) as made:
        yield made


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    yield shared_lab
    assert_balanced(shared_lab)


@pytest.fixture(scope="module")
def make_lab() -> Iterator[LabMaker]:
    """Make labs of a module's own, each once for the same wishes."""
    with ExitStack() as stack:
        made: dict[str, Lab] = {}

        def make(**wishes: Any) -> Lab:
            key = repr(sorted(wishes.items()))
            if key not in made:
                made[key] = stack.enter_context(Lab(name=unique_name(), **wishes))
            return made[key]

        yield make
        for each in made.values():
            assert_balanced(each)
