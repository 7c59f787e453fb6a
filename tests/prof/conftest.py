"""Profiles of the tests look at the machine's peaks only for a moment: none of them is about the peaks' values."""

from __future__ import annotations

import pytest

from asdm_prof import roofline


@pytest.fixture(autouse=True, scope="session")
def peaks_at_a_glance() -> None:
    roofline.SECONDS_EACH = 0.01
    roofline.GEMM, roofline.CONV_CHANNELS, roofline.CONV_SIZE = 128, 16, 16
    roofline.CALLS, roofline.TRIAD_BYTES = 10, 1 << 20
