"""The damage of inheriting across steps: along the teacher's trajectories, and of whole schedules to their end.

At every step of real trajectories, what a pass inherits comes from the teacher's own earlier steps, and its guided
output is compared with the teacher's. What an error at a step does to the image is its *gain*: the error of the final
latent per error of the output, from images that inherit at that step alone and run freely to their end. Random
schedules that run freely show how far single damages predict a final latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asdm.data.choice import data_for
from asdm.data.picked import picked_captions
from asdm.evaluate.generation import decode_latents
from asdm.measure import clocks, machine
from asdm.models import example_inputs, execution, loading, pipeline
from asdm.models.families import Family
from asdm.models.sources import resolve
from asdm.schedule import source
from asdm.schedule.kept import CONDITIONAL, Kept
from asdm.schedule.legality import HalfPass, resolve as resolve_schedule
from asdm.schedule.patches import patched
from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm.unet import blocks
from asdm.unet.inputs import check_caption_only
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of, utc_now
from asdm_prof.planner.schedule import draw as draw_schedules, passes as passes_of
from asdm_prof.records import StepsDamage
from asdm_prof.records.steps_damage import FewerSteps, PassDamage, StepsBatch, StepsRun
from asdm_prof.sensitivity import joint_schedules
from asdm_prof.sensitivity.forced import BOTH, Forced, Study, error_of
from asdm_prof.sensitivity.settings import AcrossSteps, SensitivitySettings
from asdm_prof.sensitivity.trajectories import Sampler

PROMPTS_AT_ONCE = 8
GAIN_POINTS = 12  # steps at which gains are measured; between them, their logarithms are interpolated
TIMED_CALLS = 8
FEWER = (0.8, 0.6, 0.4)


def measure_across_steps(
    name: str,
    settings: SensitivitySettings = SensitivitySettings(),
    across: AcrossSteps = AcrossSteps(),
    plans: int = 24,
    run_file: Path | None = None,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> StepsDamage:
    """The damage of inheriting for a teacher, its sampler and a number of steps; an unfinished run is resumed.

    Raises ValueError for settings out of bounds, too small a data set, and another run's file.
    """
    began = clocks.HostClock().mark()
    execution.check_setup(settings)
    family, weights = resolve(name, settings, needs="asdm-prof sensitivity")
    settings = replace(settings, weights=weights, data=data_for(settings.data, family, "asdm-prof sensitivity"))
    check_caption_only(family.unet, family.name, "asdm-prof sensitivity --across-steps")
    if plans and plans < 3:
        raise ValueError(f"plans must be 0 or at least 3 (a correlation needs three), got {plans}.")
    tell("loading", 0, None)
    teacher: Any = loading.load_teacher(family, settings)
    with machine.quiet_torch(settings.threads, settings.device) as threads:
        study = _open_study(family, teacher, settings, across, plans)
        captions = _captions(family, settings)
        sha256 = loading.weights_sha256(teacher)
        run = _open_run(run_file, sha256, study, settings, captions)
        run = _measure(study, settings, captions, run, run_file, tell)
        ours = passes_of.candidates(blocks.topology(teacher), study.sampler.guided, across.by_name)
        timed = _times(study, settings, captions, [name for name in study.passes if name not in ours])
    seconds = clocks.HostClock().mark() - began
    asked = {name: getattr(settings, name) for name in ("data", "split", "prompts", "seed", "dtype", "device")}
    sampler = study.sampler
    joint = joint_schedules.judge(study.schedules, _gains(run, sampler.calls), _damages(run, study), run.batches)
    return StepsDamage(
        **asked, **timed,
        created_utc=utc_now(), command=command, family=family.name,
        weights=loading.weights_name(family, weights), weights_sha256=sha256,
        teacher_config_sha256=loading.unet_config_sha256(teacher.config),
        threads=threads, size=settings.size or family.size, prediction_type=family.prediction_type,
        sampler=sampler.mark, steps=sampler.steps, calls=sampler.calls,
        guidance_scale=sampler.guidance_scale, networks=across.by_name,
        passes=dict(study.passes), damages=_damages(run, study), gains=_gains(run, sampler.calls),
        latent_power=_mean(run, "latent_power"),
        fewer_steps=tuple(
            FewerSteps(steps=n, calls=len(sampler.new(n).timesteps), damage=_mean(run, "fewer", n))
            for n in run.batches[0].fewer
        ),
        schedules=joint[0], additivity=joint[1], seconds=seconds,
        environment=machine.environment(settings.device, threads),
    )  # fmt: skip


def _open_study(
    family: Family, teacher: nn.Module, settings: SensitivitySettings, across: AcrossSteps, plans: int
) -> Study:
    students = {n: source.student_of(where, teacher, family, settings) for n, where in across.by_name.items()}
    networks = {TEACHER: teacher, **students}
    pipe = pipeline.pipeline(family, teacher, settings)
    scale = family.guidance_scale if across.guidance_scale is None else across.guidance_scale
    sampler = Sampler(pipe, across.steps, scale, across.scheduler)
    topologies = {n: blocks.topology(unet) for n, unet in networks.items()}
    passes = passes_of.candidates(topologies[TEACHER], sampler.guided, students, across.inherit or ())
    steps = {}
    for name, one in passes.items():
        first = {f"first {n}": Pass(network=n) for n in networks}
        order = (*first, name)
        schedule = Schedule(family=family.name, passes=first | {name: one}, steps=order, networks=across.by_name)
        steps[name] = resolve_schedule(topologies, schedule).steps[-1]
    rng = np.random.default_rng(settings.seed)
    schedules = draw_schedules.draw(family.name, passes, across.by_name, sampler.calls, across.ages, plans, rng)
    return Study(family, networks, passes, steps, sampler, across.ages, schedules)


def _captions(family: Family, settings: SensitivitySettings) -> list[str]:
    side = max(family.vae_factor * n for n in example_inputs.latent_sides(family, settings.size))
    generator = torch.Generator().manual_seed(settings.seed)
    return picked_captions(str(settings.data), settings.split, side, settings.prompts, generator)


def _open_run(
    run_file: Path | None, sha256: str, study: Study, settings: SensitivitySettings, captions: list[str]
) -> StepsRun:
    sampler = study.sampler
    deciding = [
        sha256, captions, settings.seed, settings.dtype, settings.size, sampler.mark, sampler.steps,
        sampler.guidance_scale, study.ages, PROMPTS_AT_ONCE, [one.model_dump(mode="json") for one in study.schedules],
    ]  # fmt: skip
    students = {name: loading.weights_sha256(unet) for name, unet in study.networks.items() if name != TEACHER}
    passes = {name: one.model_dump(mode="json") for name, one in study.passes.items()}
    run = StepsRun(run_sha256=sha256_of([*deciding, students, passes]))
    return run.resumed_from(run_file, "teacher", earlier=sha256_of(deciding))


def _measure(
    study: Study, settings: SensitivitySettings, captions: list[str], run: StepsRun, run_file: Path | None, tell: Tell
) -> StepsRun:
    slices = [captions[i : i + PROMPTS_AT_ONCE] for i in range(0, len(captions), PROMPTS_AT_ONCE)]
    clock, before = clocks.HostClock(), len(run.batches)
    began = clock.mark()
    for n, own in enumerate(slices[before:], before):
        each = clock.seconds(began, clock.mark()) / (n - before) if n > before else None
        left = None if each is None else each * (len(slices) - n)
        run = run.plus(_measure_batch(study, settings, own, n, tell, left), run_file)
    return run


@torch.inference_mode()
def _measure_batch(
    study: Study, settings: SensitivitySettings, captions: list[str], n: int, tell: Tell, left: float | None
) -> StepsBatch:
    side = example_inputs.latent_sides(study.family, settings.size)
    batch = study.sampler.batch(captions, side, settings.seed + n)
    stage = f"batch {n + 1}"
    forced = Forced(study, batch)
    final = forced.run(lambda step: tell(f"{stage}, step", step, left))
    gains = {}
    for i, step in enumerate(_gain_steps(study.sampler.calls)):
        tell(f"{stage}, gain", i, left)
        gains[step] = forced.gain(step, final)
    fewer = {}
    for share in FEWER:
        steps = round(share * study.sampler.steps)
        if 0 < steps < study.sampler.steps and steps not in fewer:
            tell(f"{stage}, {steps} steps", 0, left)
            fewer[steps] = error_of(study.sampler.draw(batch, forced.plain, steps), final).sum()
    joint = []
    for i, schedule in enumerate(study.schedules):
        tell(f"{stage}, schedule", i, left)
        joint.append(error_of(forced.scheduled(schedule), final).tolist())
    return StepsBatch(
        prompts=len(captions), errors=forced.errors, gains=gains, fewer=fewer, joint=joint,
        latent_power=float(final.cpu().double().square().mean((1, 2, 3)).sum()),
    )  # fmt: skip


def _gain_steps(calls: int) -> list[int]:
    return sorted({int(step) for step in np.linspace(1, calls - 1, min(GAIN_POINTS, max(calls - 1, 1))) if calls > 1})


# ---------------------------------------------------------------------------------------------- over batches


def _mean(run: StepsRun, name: str, key: Any = None) -> float:
    prompts = sum(batch.prompts for batch in run.batches)
    values = [getattr(batch, name) for batch in run.batches]
    return sum(value if key is None else value[key] for value in values) / prompts


def _gains(run: StepsRun, calls: int) -> tuple[float, ...]:
    """The gain of every step, from those measured."""
    steps = sorted(run.batches[0].gains)
    if not steps:
        return (1.0,) * calls
    ratios = []
    for step in steps:
        error, final = (sum(batch.gains[step][i] for batch in run.batches) for i in (0, 1))
        ratios.append(max(final, 1e-30) / max(error, 1e-30))
    return tuple(float(gain) for gain in np.exp(np.interp(range(calls), steps, np.log(ratios))))


def _damages(run: StepsRun, study: Study) -> tuple[PassDamage, ...]:
    prompts = sum(batch.prompts for batch in run.batches)

    def mean(values: list[Any]) -> Any:
        if isinstance(values[0], list):
            return tuple(mean(list(own)) for own in zip(*values, strict=True))
        return None if None in values else sum(values) / prompts

    return tuple(
        PassDamage(name=name, error=mean([batch.errors[name] for batch in run.batches])) for name in study.passes
    )


@torch.inference_mode()
def _times(study: Study, settings: SensitivitySettings, captions: list[str], named: Sequence[str]) -> dict[str, Any]:
    """Seconds of a full call, of one that keeps everything, of one half and of named passes, interleaved, at one
    picture a call."""
    side = example_inputs.latent_sides(study.family, settings.size)
    batch = study.sampler.batch(captions[:1], side, settings.seed)
    rows = torch.cat([batch.noise] * 2) if study.sampler.guided else batch.noise
    halves, t = BOTH if study.sampler.guided else (CONDITIONAL,), study.sampler.new().timesteps[0]
    unet = study.networks[TEACHER]
    kept = Kept(2)

    def full() -> None:
        unet(rows, t, batch.states, return_dict=False)

    def keeping(step: int = 0, kept: Kept | None = None) -> None:
        with patched(unet, HalfPass(TEACHER, frozenset()), study.places[TEACHER], kept or Kept(2), step, halves):
            full()

    def half() -> None:
        unet(rows[-1:], t, batch.states[-1:], return_dict=False)

    def rest() -> None:
        study.sampler.batch(captions[:1], side, settings.seed)
        decode_latents(study.sampler.pipe.vae, batch.noise)

    def inheriting(name: str) -> None:
        with patched(unet, study.steps[name].conditional, (), kept, 2, halves):
            full()

    for step in range(2 if named else 0):
        keeping(step, kept)
    clock = clocks.clock_for(settings.device)
    calls = {"full_seconds": full, "kept_seconds": keeping, "half_seconds": half, "rest_seconds": rest}
    calls |= {name: partial(inheriting, name) for name in named}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TIMED_CALLS):
        for name, call in calls.items():
            samples[name].append(clocks.timed(call, clock))
    seconds: dict[str, Any] = {name: float(np.median(own[1:])) for name, own in samples.items()}
    return seconds | {"pass_seconds": {name: seconds.pop(name) for name in named}}
