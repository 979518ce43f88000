"""As tests/test_path_mtu.py, over an IPv6 underlay."""

from __future__ import annotations

import pytest

from tests.conftest import LabMaker
from tests.test_path_mtu import see_it_through

pytestmark = pytest.mark.netns


def test_a_hole_is_noticed_told_and_shown_and_tcp_goes_on(make_lab: LabMaker) -> None:
    see_it_through(make_lab(nodes=2, pods=1, underlay_family=6), 6)
