"""Token buckets: the rate is kept, sources do not disturb each other, and there is a bound to what is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine.rate import RateLimit


def test_a_burst_then_the_rate() -> None:
    limit = RateLimit(per_s=10, burst=5)
    assert [limit.allow("a", 100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not limit.allow("a", 100.05)
    assert limit.allow("a", 100.125)
    assert not limit.allow("a", 100.125)
    assert sum(limit.allow("a", 200.0) for _ in range(20)) == 5


@given(st.lists(st.floats(-1, 1), max_size=200), st.integers(1, 50), st.integers(1, 20))
def test_never_more_than_burst_and_rate(steps: list[float], per_s: int, burst: int) -> None:
    limit, now_s, allowed = RateLimit(per_s, burst), 0.0, 0
    latest_s = 0.0
    for step in steps:  # a clock that goes back gives nothing
        now_s += step
        latest_s = max(latest_s, now_s)
        allowed += limit.allow("a", now_s)
    assert allowed <= burst + per_s * (latest_s - min(0.0, *steps, 0.0)) + 1e-6


def test_sources_are_apart() -> None:
    limit = RateLimit(per_s=1, burst=1)
    assert limit.allow("a", 0.0)
    assert not limit.allow("a", 0.0)
    assert limit.allow(("b", 1), 0.0)


def test_remembers_no_more_sources_than_it_should() -> None:
    limit = RateLimit(per_s=1, burst=1, most_sources=3)
    for source in "abc":
        assert limit.allow(source, 0.0)
    assert not limit.allow("a", 0.1)  # seen again: now "b" is the one not seen for longest
    assert limit.allow("d", 0.1)
    assert len(limit) == 3
    assert not limit.allow("a", 0.1)
    assert limit.allow("b", 0.1)


def test_nothing_at_rate_and_burst_zero() -> None:
    limit = RateLimit(per_s=0, burst=0)
    assert not any(limit.allow("a", float(now)) for now in range(10))


@pytest.mark.parametrize(("per_s", "burst", "sources"), [(-1, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_refuses_what_cannot_be_kept_to(per_s: float, burst: float, sources: int) -> None:
    with pytest.raises(ValueError, match="cannot be kept to"):
        RateLimit(per_s, burst, sources)
