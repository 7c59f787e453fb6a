"""One made-up profile of SD1.5 for all, and profiles that look at the machine's peaks only for a moment."""

from __future__ import annotations

import pytest

from asdm_prof.profiler import profile, roofline
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Profile


@pytest.fixture(autouse=True, scope="session")
def peaks_at_a_glance() -> None:
    """No test is about the peaks' values."""
    roofline.SECONDS_EACH = 0.01
    roofline.GEMM, roofline.CONV_CHANNELS, roofline.CONV_SIZE = 128, 16, 16
    roofline.CALLS, roofline.TRIAD_BYTES = 10, 1 << 20


@pytest.fixture(scope="session")
def faked() -> Profile:
    """SD1.5 with made-up times, with GRI and experts timed in its shallow pair."""
    return profile.profile("sd15", ProfileSettings(backend="fake"))
