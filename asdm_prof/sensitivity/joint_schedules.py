"""Random schedules: how far single damages predict the final latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from asdm.measure import statistics
from asdm.schedule.schedule import Schedule
from asdm_prof.planner.schedule.model import Exponent, StepsModel
from asdm_prof.records import Interval
from asdm_prof.records.steps_damage import JointSchedule, PassDamage, StepsAdditivity
from asdm_prof.sensitivity.additivity import fit

WAYS: tuple[Exponent, ...] = ("sum", "amplitudes")


def judge(
    schedules: Sequence[Schedule], gains: Sequence[float], damages: Sequence[PassDamage], batches: Sequence[Any]
) -> tuple[tuple[JointSchedule, ...], StepsAdditivity | None]:
    """Both ways of adding against the measured errors of final latents."""
    if not schedules:
        return (), None
    model = StepsModel.of(schedules[0].passes, damages, gains)
    joint = []
    for i, schedule in enumerate(schedules):
        errors = [error for batch in batches for error in batch.joint[i]]
        mean = statistics.estimate(errors, np.mean)
        predicted = {}
        for used in WAYS:
            own = replace(model, used=used)
            predicted[used] = own.damage(sum(own.terms(schedule.steps)))
        joint.append(
            JointSchedule(
                steps=schedule.steps, summed=predicted["sum"], amplitudes=predicted["amplitudes"],
                damage=Interval(value=mean.median, low=mean.low, high=mean.high),
            )
        )  # fmt: skip
    return tuple(joint), _additivity(joint)


def _additivity(joint: Sequence[JointSchedule]) -> StepsAdditivity | None:
    usable = [one for one in joint if min(one.summed, one.damage.value) > 0]
    if len(usable) < 3:
        return None
    measured = np.log([one.damage.value for one in usable])
    predicted = {
        "sum": np.log([one.summed for one in usable]), "amplitudes": np.log([one.amplitudes for one in usable])
    }  # fmt: skip
    left_out = {name: _left_out(measured - own) for name, own in predicted.items()}
    used = min(left_out, key=lambda name: left_out[name])
    fits = {name: fit(list(own), list(measured)) for name, own in predicted.items()}
    return StepsAdditivity(
        used=cast(Exponent, used), factor=float(np.exp(np.mean(measured - predicted[used]))),
        left_out=float(np.expm1(left_out[used])), summed=fits["sum"], amplitudes=fits["amplitudes"],
    )  # fmt: skip


def _left_out(offsets: np.ndarray) -> float:
    """Mean absolute error of a logarithm by the mean offset of the others."""
    n = len(offsets)
    return float(np.mean(np.abs(offsets - (offsets.sum() - offsets) / (n - 1))))
