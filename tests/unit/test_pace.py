# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
"""How often somebody who waits looks again."""

import pytest

from cxm import pace


@pytest.mark.parametrize(
    ("looked_s", "least_s", "pause_s"),
    [
        (0.03, 0.5, 0.5),  # real hardware: the least pause
        (0.5, 0.5, 1.5),  # an emulated node: a quarter of the time
        (5.0, 0.5, 6.0),  # one that hardly moves is still looked at
        (5.0, 20.0, 20.0),
    ],
)
def test_a_pause(looked_s: float, least_s: float, pause_s: float) -> None:
    """Never shorter than what is asked for, else three times the look, up to a bound."""
    assert pace.pause(looked_s, least_s=least_s) == pause_s
