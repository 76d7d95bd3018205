"""The simulation notices each planted bug within a few seeds."""

from __future__ import annotations

import pytest

from tests.simulation.planted import BUGS, seeds_until_caught


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str) -> None:
    seeds_until_caught(name)
