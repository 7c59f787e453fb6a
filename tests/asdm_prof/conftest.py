"""One made-up profile of SD1.5 for all."""

from __future__ import annotations

import pytest

from asdm_prof.profiler import profile
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Profile


@pytest.fixture(scope="session")
def faked() -> Profile:
    """SD1.5 with made-up times, with GRI and experts timed in its shallow pair."""
    return profile.profile("sd15", ProfileSettings(backend="fake"))
