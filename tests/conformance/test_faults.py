"""Twenty and more faults, planted for real: `podwire trace` or `podwire why` names the cause of each, as docs/faults.md says."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from shim.lab import Lab
from tests.accounts import assert_balanced
from tests.faults import DOCUMENT, FAULTS, Fault, Ground, alike, ask, document, documented, row

pytestmark = pytest.mark.netns

LEAST = 20


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with Lab(nodes=3, pods=2, outside=True, name=f"f{os.getpid()}-{secrets.token_hex(2)}") as lab:
        yield Ground(lab)
        assert_balanced(lab)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Collect the table; write it when that is asked for, and all of it is there."""
    found: dict[str, str] = {}
    yield found
    if request.config.getoption("--write-faults") and len(found) == len(FAULTS):
        DOCUMENT.write_text(document(list(found.values())))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_cause_is_named(fault: Fault, ground: Ground, rows: dict[str, str], request: pytest.FixtureRequest) -> None:
    with fault.plant(ground) as about:
        answer = ask(ground.lab, fault, about)
    print(f"\n$ {fault.command.format(about)}\n{answer}")
    for cause in fault.cause:
        assert cause in answer, answer
    rows[fault.name] = row(fault, about, answer)
    if not request.config.getoption("--write-faults"):
        known = documented().get(fault.name, "")
        assert alike(known, rows[fault.name]), "docs/faults.md differs: make it anew with --write-faults"


def test_there_are_enough_and_the_document_has_no_others(request: pytest.FixtureRequest) -> None:
    assert len(FAULTS) >= LEAST
    if not request.config.getoption("--write-faults"):  # it is written when all of this is over
        assert list(documented()) == [fault.name for fault in FAULTS]
