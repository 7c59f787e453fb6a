"""The damage of edits, measured on real weights and data: E‖output of the student − output of the teacher‖².

Images and captions of a data set, as latents noised at timesteps spread over the schedule, pass through teacher and
students; no student is trained. The output is the UNet's prediction (ε, or v for v-prediction), the error its mean
square per element, the interval a bootstrap over prompts (LAPTOP-Diff's criterion).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asdm.data.choice import data_for
from asdm.data.drawn import drawn
from asdm.measure import clocks, machine, statistics
from asdm.models import example_inputs, execution, loading
from asdm.models.families import Family
from asdm.models.settings import WholeCheckpoint
from asdm.models.sources import resolve
from asdm.models.units import UnitLibrary
from asdm.plan.edits import Edits
from asdm.plan.legality import ResolvedPlan
from asdm.unet import surgery
from asdm.unet.inputs import check_caption_only
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of
from asdm_prof.records import EditDamage, Interval, Work
from asdm_prof.records.damage import DamageBatch, DamageRun
from asdm_prof.sensitivity.calibration import Calibration, make_calibration, unit_scores
from asdm_prof.sensitivity.settings import SensitivitySettings
from asdm_prof.sensitivity.variants import Variant, make_variants, outputs, step_macs, work_of

SAMPLES_AT_ONCE = 64  # latents in one call


@dataclass(frozen=True)
class DamageMeasurement:
    """The errors of every set of edits, and the work that measuring them took."""

    samples: np.ndarray  # (sets, prompts, timesteps): mean square per element
    overlap: np.ndarray  # (sets, sets): mean product per element of two sets' output errors; the diagonal is the damage
    teacher_power: float  # mean square per element of the teacher's output
    timesteps: tuple[int, ...]
    captions: tuple[str, ...]
    prediction_type: str
    weights: str
    weights_sha256: str
    config_sha256: str
    threads: int
    work: Work
    sets: tuple[Edits, ...]
    units_sha256: str | None  # of the library that replaced units were taken from
    unit_scores: dict[str, dict[str, float]]  # score → unit that may become an identity → value


def damage_of(samples: np.ndarray) -> Interval:
    """Mean over (prompts, timesteps) with its 95 % bootstrap interval over prompts."""
    mean = statistics.estimate(samples.mean(axis=1).tolist(), np.mean)
    return Interval(value=mean.median, low=mean.low, high=mean.high)


def edit_damage(edits: Edits, samples: np.ndarray) -> EditDamage:
    """One set of edits with its errors (prompts, timesteps)."""
    return EditDamage(
        edit=edits[0],
        also=edits[1:],
        damage=damage_of(samples),
        by_prompt=tuple(samples.mean(axis=1).tolist()),
        by_timestep=tuple(samples.mean(axis=0).tolist()),
    )


def measure_damage(
    family: str | Family,
    sets: Sequence[ResolvedPlan | Edits] | Callable[[nn.Module], Sequence[ResolvedPlan | Edits]],
    settings: SensitivitySettings = SensitivitySettings(),
    run_file: Path | None = None,
    tell: Tell = lambda *_: None,
) -> DamageMeasurement:
    """The errors of the students that sets of edits make of a teacher; an unfinished run in `run_file` is resumed.

    `sets` may be a function of the teacher. Raises ValueError for invalid settings, an edit that does not fit, too
    little memory, or another run's file.
    """
    clock = clocks.HostClock()
    began = clock.mark()
    execution.check_setup(settings)
    family, weights = resolve(family, settings, needs="asdm-prof sensitivity")
    data_name = data_for(settings.data, family, "asdm-prof sensitivity")
    settings = replace(settings, weights=weights)
    side = family.vae_factor * max(example_inputs.latent_sides(family, settings.size))
    settings = replace(settings, data=drawn(data_name, family, settings, side, settings.device, tell))
    check_caption_only(family.unet, family.name, "asdm-prof sensitivity")
    tell("building the students", 0, None)
    teacher: Any = loading.load_teacher(family, settings)
    plans = [surgery.resolved_on(teacher, edits) for edits in (sets(teacher) if callable(sets) else sets)]
    with machine.quiet_torch(settings.threads, settings.device) as threads:
        library = UnitLibrary(settings.units, teacher) if settings.units else None
        ordered = make_variants(teacher, plans, library or surgery.replacement_for)
        tell("preparing the data", 0, None)
        data = make_calibration(family, teacher, settings)
        sha256 = loading.weights_sha256(teacher)
        run = _open_run(run_file, sha256, plans, settings, library, data.source)
        resumed = len(run.batches)
        step = max(1, SAMPLES_AT_ONCE // settings.timesteps)
        slices = [slice(i, min(i + step, settings.prompts)) for i in range(0, settings.prompts, step)]
        for n, prompts in enumerate(slices[resumed:], resumed):
            each = float(np.mean([b.seconds for b in run.batches])) if run.batches else None
            left = None if each is None else each * (len(slices) - n)
            tell(f"batch {n + 1} of {len(slices)}, {len(plans)} students", 0, left)
            run = run.plus(_batch(ordered, data, prompts, settings.reuse), run_file)
        scores = unit_scores(teacher, data.inputs(slices[0]))
    macs = step_macs(family, settings.size, ordered)
    forwards = work_of(ordered, macs, settings.reuse)
    forward_s = sum(batch.forward_s for batch in run.batches)
    least_s = forward_s * forwards["least_forwards"] / forwards["done_forwards"]
    seconds = clock.seconds(began, clock.mark()) + sum(batch.seconds for batch in run.batches[:resumed])
    overlap = np.sum([batch.overlap for batch in run.batches], axis=0) / settings.prompts
    return DamageMeasurement(
        samples=np.concatenate([np.array(batch.samples) for batch in run.batches], axis=1),
        overlap=overlap,
        teacher_power=sum(batch.teacher_power for batch in run.batches) / settings.prompts,
        timesteps=tuple(data.timesteps.tolist()),
        captions=data.captions,
        prediction_type=family.prediction_type,
        weights=loading.weights_name(family, weights),
        weights_sha256=sha256,
        config_sha256=loading.unet_config_sha256(teacher.config),
        threads=threads,
        sets=tuple(plan.edits for plan in plans),
        units_sha256=library.record.sha256() if library else None,
        unit_scores=scores,
        work=Work(
            students=len(plans),
            seconds=seconds,
            forward_s=forward_s,
            least_s=least_s,
            reached=least_s / seconds,
            **forwards,
        ),
    )


def _open_run(
    run_file: Path | None,
    sha256: str,
    plans: Sequence[ResolvedPlan],
    settings: SensitivitySettings,
    library: UnitLibrary | None,
    data: dict[str, Any],
) -> DamageRun:
    """The unfinished run in `run_file` if it is of the same teacher, edits, data and settings, else a new one.

    What the teacher's hash tells, `threads` and how the data are spelled do not count.
    """
    units = [library.record.sha256()] if library else []
    left_out = ("units", "weights", "config", "variant", "lora", "threads", "batch", "reuse", "judge")
    encoders = [field.name for field in fields(WholeCheckpoint)]
    deciding = {k: v for k, v in vars(settings).items() if k not in left_out and (v is not None or k not in encoders)}
    edits = [[edit.model_dump(mode="json", by_alias=True) for edit in plan.edits] for plan in plans]
    earlier = sha256_of([sha256, edits, deciding, *units])
    run_sha256 = sha256_of([sha256, edits, deciding | {"data": data}, *units])
    return DamageRun(run_sha256=run_sha256).resumed_from(run_file, "teacher", earlier)


def _batch(ordered: Sequence[Variant], data: Calibration, prompts: slice, reuse: bool) -> DamageBatch:
    clock = clocks.HostClock()
    began = mark = clock.mark()
    inputs = data.inputs(prompts)
    n, t = prompts.stop - prompts.start, len(data.timesteps)
    teacher, forward_s = None, 0.0
    errors: list[torch.Tensor] = [torch.empty(0)] * (len(ordered) - 1)
    for variant, out in outputs(ordered, inputs, reuse):
        out = out.float().cpu()
        forward_s += clock.seconds(mark, clock.mark())
        if teacher is None:
            teacher = out
        else:
            errors[variant.index] = out - teacher
        mark = clock.mark()
    assert teacher is not None
    samples = torch.stack([squared(error).view(n, t) for error in errors]) if errors else torch.empty(0, n, t)
    flat = torch.stack([error.flatten() for error in errors]) if errors else torch.empty(0, 1)
    overlap = (flat @ flat.T).double() / (t * teacher[0].numel())
    return DamageBatch(
        samples=samples.tolist(),
        overlap=overlap.tolist(),
        teacher_power=float(squared(teacher).view(n, t).mean(1).sum()),
        seconds=clock.seconds(began, clock.mark()),
        forward_s=forward_s,
    )


def squared(error: torch.Tensor) -> torch.Tensor:
    """Mean square per element of each latent: (n, 4, h, w) → (n,), in double precision."""
    return error.double().square().mean((1, 2, 3))
