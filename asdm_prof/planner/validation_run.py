"""What a validation of a profile does around its measuring, whether of plans or of schedules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from asdm.measure import machine
from asdm.models import execution, loading
from asdm.models.families import Family
from asdm.utils.record import Frozen, utc_now
from asdm_prof.planner.plan import measured_at
from asdm_prof.records import Profile
from asdm_prof.records.unfinished import UnfinishedRun

R = TypeVar("R", bound=UnfinishedRun)


def check_profile(profile: Profile, family: Family) -> None:
    """Raises ValueError for a profile of another model, or of a device that is not here."""
    if loading.unet_config_sha256(loading.meta_unet(family).config) != profile.config_sha256:
        raise ValueError(f"the profile is of {profile.family}, not of {family.name}; profile {family.name} first.")
    execution.check_device(profile.device)


def complete(
    run: R, results: Iterable[Frozen], run_file: Path | None, profile: Profile, family: Family
) -> tuple[R, dict[str, Any]]:
    """The run with the rest of its results, each saved as it is measured, in the settings of the profile.

    Returns with it the fields of the validation's record that say what was run, when and on which machine.
    """
    with machine.quiet_torch(profile.threads, profile.device) as threads:
        for result in results:
            run = run.plus(result, run_file)
        environment = machine.environment(profile.device, threads)
    return run, measured_at(profile).model_dump() | {
        "created_utc": utc_now(),
        "family": family.name,
        "profile_sha256": profile.sha256(),
        "threads": threads,
        "environment": environment,
    }
