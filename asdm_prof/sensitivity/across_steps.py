"""The damage of inheriting across steps: along the teacher's trajectories, and of whole schedules to their end.

At every step of real trajectories, what a pass inherits comes from the teacher's own earlier steps, and its guided
output is compared with the teacher's. What an error at a step does to the image is its *gain*: the error of the final
latent per error of the output, from images that inherit at that step alone and run freely to their end. Random
schedules that run freely show how far single damages predict a final latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from asdm.schedule import clean, forecast, source
from asdm.schedule.kept import CONDITIONAL, UNCONDITIONAL, Kept
from asdm.schedule.legality import HalfPass, Place, ResolvedSchedule, Step, resolve as resolve_schedule
from asdm.schedule.patches import patched
from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm.schedule.unet import CLEAN, WHOLE, ScheduledUNet
from asdm.unet import blocks
from asdm.unet.inputs import check_caption_only
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of, utc_now
from asdm_prof.planner.schedule import draw as draw_schedules, passes as passes_of
from asdm_prof.records import StepsDamage
from asdm_prof.records.steps_damage import FewerSteps, PassDamage, StepsBatch, StepsRun
from asdm_prof.sensitivity import joint_schedules
from asdm_prof.sensitivity.settings import AcrossSteps, SensitivitySettings
from asdm_prof.sensitivity.trajectories import Batch, Sampler

PROMPTS_AT_ONCE = 8
GAIN_POINTS = 12  # steps at which gains are measured; between them, their logarithms are interpolated
TIMED_CALLS = 8
FEWER = (0.8, 0.6, 0.4)
BOTH = (UNCONDITIONAL, CONDITIONAL)


@dataclass
class Study:
    """The networks, passes and sampler of a measurement."""

    family: Family
    networks: Mapping[str, nn.Module]
    passes: Mapping[str, Pass]
    steps: Mapping[str, Step]  # every pass, resolved
    sampler: Sampler
    ages: int
    schedules: list[Schedule]

    @property
    def places(self) -> dict[str, frozenset[Place]]:
        """All that any pass inherits, by network."""
        wanted: dict[str, frozenset[Place]] = dict.fromkeys(self.networks, frozenset({WHOLE}))
        for step in self.steps.values():
            name = step.conditional.network
            wanted[name] |= step.conditional.places | (step.unconditional.places if step.unconditional else frozenset())
        return wanted


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
            fewer[steps] = _error(study.sampler.draw(batch, forced.plain, steps), final).sum()
    joint = []
    for i, schedule in enumerate(study.schedules):
        tell(f"{stage}, schedule", i, left)
        joint.append(_error(forced.scheduled(schedule), final).tolist())
    return StepsBatch(
        prompts=len(captions), errors=forced.errors, gains=gains, fewer=fewer, joint=joint,
        latent_power=float(final.double().square().mean((1, 2, 3)).sum()),
    )  # fmt: skip


class Forced:
    """One batch's trajectory by the teacher, and every pass at every step of it, with what it inherits from there."""

    def __init__(self, study: Study, batch: Batch) -> None:
        self.study, self.batch = study, batch
        self.halves = BOTH if study.sampler.guided else (CONDITIONAL,)
        self.outputs: dict[str, list[torch.Tensor]] = {name: [] for name in study.networks}
        self.cleans: dict[str, list[torch.Tensor]] = {name: [] for name in study.networks}
        self.noise: list[tuple[tuple[float, float], str]] = []
        self.rows = torch.empty(0)
        self.starts: list[tuple[int, torch.Tensor, Any]] = []
        self.kept: dict[str, list[Kept]] = {name: [] for name in study.networks}
        self.errors: dict[str, list[Any]] = {name: [] for name in study.passes}

    def plain(self, step: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.study.networks[TEACHER](rows, t, self.batch.states, return_dict=False)[0]

    def run(self, tell: Any) -> torch.Tensor:
        """The teacher's final latents, with the errors of every pass on the way."""
        places = self.study.places

        def predict(step: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            tell(step)
            scheduler = self.starts[-1][2]
            self.rows = rows
            self.noise.append((clean.rates(scheduler, float(t)), scheduler.config.prediction_type))
            for name, unet in self.study.networks.items():
                kept, how = Kept(1), HalfPass(name, frozenset())
                with patched(unet, how, places[name], kept, step, self.halves):
                    output = unet(rows, t, self.batch.states, return_dict=False)[0]
                kept.put((name, WHOLE, 0), step, self.halves, output)
                self.outputs[name].append(output)
                self.cleans[name].append(clean.clean_of(output, rows, *self.noise[-1]))
                self.kept[name] = [*self.kept[name], kept][-2 * self.study.ages - 1 :]
            for name in self.study.passes:
                self.errors[name].append(self._errors(name, step, rows, t))
            return self.outputs[TEACHER][step]

        return self.study.sampler.draw(self.batch, predict, watch=self._watch)

    def _watch(self, step: int, latents: torch.Tensor, scheduler: Any) -> None:
        import copy

        self.starts.append((step, latents, copy.deepcopy(scheduler)))

    def _errors(self, name: str, step: int, rows: torch.Tensor, t: torch.Tensor) -> list[list[float | None]]:
        """Summed errors by age and gap; of a pass that inherits nothing, one."""
        one, how = self.study.passes[name], self.study.steps[name]
        if not how.conditional.places and (how.unconditional is None or not how.unconditional.places):
            return [[self._summed(self._without_age(how))]]
        ages = range(1, min(self.study.ages, step) + 1)
        if passes_of.inherits_only_output(one):
            return [[self._of_outputs(how, step, age, gap) for gap in range(1, self.study.ages + 1)] for age in ages]
        return [[self._of_network(how, step, age, rows, t)] for age in ages]

    def _without_age(self, how: Step) -> torch.Tensor:
        own = self.outputs[how.conditional.network][-1]
        if how.unconditional is None:
            conditional = own.chunk(2)[CONDITIONAL]
            return torch.cat([conditional, conditional])
        return own

    def _of_outputs(self, how: Step, step: int, age: int, gap: int) -> float | None:
        """From kept outputs alone: no network runs."""
        assert how.unconditional is not None
        network = how.conditional.network
        halves: list[torch.Tensor] = []
        for half, which in zip((how.unconditional, how.conditional), BOTH, strict=True):
            if half.runs:
                halves.append(self._half_of(self.outputs[network][step], which))
                continue
            reach = half.forecast.values if half.forecast else 1
            steps = [s for s in (step - age - i * gap for i in reversed(range(reach))) if s >= 0]
            if half.forecast and len(steps) < 2:
                return None
            weights = forecast.weights(half.forecast, steps, step)
            as_clean = CLEAN in half.places
            kept = self.cleans[network] if as_clean else self.outputs[network]
            values = [w * self._half_of(kept[s], which) for w, s in zip(weights, steps, strict=True)]
            value = torch.stack(values).sum(0)
            rows = self._half_of(self.rows, which)
            halves.append(clean.output_of(value, rows, *self.noise[step]) if as_clean else value)
        return self._summed(torch.cat(halves) if self.study.sampler.guided else halves[CONDITIONAL])

    def _half_of(self, output: torch.Tensor, half: int) -> torch.Tensor:
        return output.chunk(2)[half] if self.study.sampler.guided else output

    def _of_network(self, how: Step, step: int, age: int, rows: torch.Tensor, t: torch.Tensor) -> float:
        """A partial pass on the teacher's own input, with what the teacher kept `age` (and twice that) steps before."""
        half = how.conditional
        kept = Kept(2)
        for back in (2 * age, age):
            if step - back >= 0:
                own = self.kept[half.network][-1 - back]
                for (key, which), values in own.by_half.items():
                    kept.by_half.setdefault((key, which), []).extend(values)
        unet = self.study.networks[half.network]
        with patched(unet, half, (), kept, step, self.halves):
            output = unet(rows, t, self.batch.states, return_dict=False)[0]
        return self._summed(output)

    def _summed(self, output: torch.Tensor) -> float:
        guide = self.study.sampler.guide
        return float(_error(guide(output), guide(self.outputs[TEACHER][-1])).sum())

    # ------------------------------------------------------------------------------------------ free to the end

    def gain(self, step: int, final: torch.Tensor) -> tuple[float, float]:
        """Summed errors of the output at a step that inherits the one before it, and of the final latent after it."""
        guide = self.study.sampler.guide
        taken, own = self.outputs[TEACHER][step - 1], self.outputs[TEACHER][step]

        def predict(now: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return taken if now == step else self.plain(now, rows, t)

        ended = self.study.sampler.draw(self.batch, predict, start=self.starts[step])
        return float(_error(guide(taken), guide(own)).sum()), float(_error(ended, final).sum())

    def scheduled(self, schedule: Schedule | ResolvedSchedule) -> torch.Tensor:
        """Final latents by a schedule."""
        unet = ScheduledUNet(self.study.networks, schedule, self.study.sampler.new(), guided=self.study.sampler.guided)

        def predict(step: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return unet(rows, t, self.batch.states, return_dict=False)[0]

        return self.study.sampler.draw(self.batch, predict)


def _error(output: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean square per element of each picture: (n, 4, h, w) → (n,)."""
    return (output.double() - teacher.double()).square().mean((1, 2, 3)).cpu()


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
