"""Both engines, the same traffic: the short form; `make fuzz` runs the long one."""

from __future__ import annotations

import pytest

from router.engine.choose import available
from tests.differential import OFFLOADS, Comparison

PACKETS = 2_000


@pytest.mark.skipif("native" not in available(), reason="the native engine is not built")
@pytest.mark.parametrize("seed", range(20260100, 20260100 + 2 * len(OFFLOADS)))
def test_nobody_can_tell_them_apart(seed: int) -> None:
    """Each set of offloads, by one thread and by two."""
    with Comparison(seed, threads=1 + seed // len(OFFLOADS) % 2) as comparison:
        comparison.run(PACKETS)
