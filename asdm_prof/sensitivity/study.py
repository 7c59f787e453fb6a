"""The steps of `asdm-prof sensitivity`: measure a teacher's damages and test whether they add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from asdm.data import datasets
from asdm.data.choice import data_for
from asdm.data.picked import open_captions
from asdm.evaluate import judges
from asdm.evaluate.generation import generate_images
from asdm.evaluate.metrics import JudgedImages
from asdm.evaluate.metrics.clip_score import clip_scores
from asdm.evaluate.real_pictures import usable_examples
from asdm.measure import machine, statistics
from asdm.models import loading, pipeline, student as students
from asdm.models.families import Family
from asdm.models.sources import resolve
from asdm.plan.edits import Edits, PruningPlan, RemoveUnit
from asdm.plan.legality import ResolvedPlan
from asdm.utils import sizes
from asdm.utils.progress import Tell
from asdm.utils.record import utc_now
from asdm.utils.sizes import Size
from asdm_prof.planner import plan
from asdm_prof.planner.choices import edits_key, make_choices
from asdm_prof.planner.problem import Problem
from asdm_prof.profiler import profile as profiler, progress
from asdm_prof.profiler.options import FAST
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Damage, EditDamage, Interval, Profile
from asdm_prof.sensitivity import additivity, measure as sensitivity, racing, variants
from asdm_prof.sensitivity.measure import DamageMeasurement
from asdm_prof.sensitivity.settings import SensitivitySettings

LOWEST, HIGHEST = 0.40, 0.95  # range of joint plans, as shares of the teacher's time


def measure_sensitivity(
    name: str,
    settings: SensitivitySettings = SensitivitySettings(),
    plans: int = 40,
    clip: int = 0,
    replacements: Sequence[str] | None = None,
    run_file: Path | None = None,
    tell: Tell = lambda *_: None,
    command: str = "",
    race: bool = False,
    profile: Profile | None = None,
) -> Damage:
    """The damage of every legal edit of a family and of `plans` random joint plans (0: none), as a record.

    With `race`, all options of a unit run on few pictures first, and those that another one beats in time (by
    `profile`; without one, in MACs) and in damage with confidence stay out of the rest.
    """
    family, weights = resolve(name, settings, needs="asdm-prof sensitivity")
    settings = replace(settings, weights=weights, data=data_for(settings.data, family, "asdm-prof sensitivity"))
    if clip and clip < 2:
        raise ValueError(f"clip must be 0 or at least 2 images (an interval needs two), got {clip}.")
    if plans and plans < 3:
        raise ValueError(f"plans must be 0 or at least 3 (a correlation needs three), got {plans}.")
    if clip:
        _clip_inputs(family, settings, clip)  # here, not after the hours that the measurement takes
    drawn_with = profile or profile_for(family, settings.size, replacements)
    singles: list[ResolvedPlan] = []
    dropped: list[EditDamage] = []
    if race:
        singles, dropped = racing.run(family, settings, replacements, drawn_with, run_file, tell)

    def sets(teacher: nn.Module) -> list[ResolvedPlan | Edits]:
        singles.extend([] if race else variants.measurable_edits(teacher, replacements))
        return [*singles, *draw_joint_plans(drawn_with, singles, plans, settings.seed)]

    measured = sensitivity.measure_damage(family, sets, settings, run_file, tell)
    n = len(singles)
    edits = [sensitivity.edit_damage(single.edits, measured.samples[i]) for i, single in enumerate(singles)]
    if clip:
        edits = list(with_clip_scores(family, edits, settings, clip, tell))
    pairs = additivity.neighbour_pairs(singles, measured.overlap[:n, :n])
    problem, place = _problem(drawn_with, singles), {edits_key(single.edits): i for i, single in enumerate(singles)}
    joint = []
    for one, samples in zip(measured.sets[n:], measured.samples[n:], strict=True):
        chosen = problem.chosen(one)
        assert chosen is not None, "plans are drawn from the problem's own choices"
        joint.append(([place[edits_key(problem.choices[i].edits)] for i in chosen], sensitivity.damage_of(samples)))
    verdict = additivity.judge(edits, pairs, joint) if joint else None
    asked = {name: getattr(settings, name) for name in ("data", "split", "prompts", "seed", "dtype", "device")}
    names = ("weights", "weights_sha256", "units_sha256", "timesteps", "threads", "prediction_type", "teacher_power")
    return Damage(
        **asked,
        **{name: getattr(measured, name) for name in (*names, "work")},
        created_utc=utc_now(),
        command=command,
        family=family.name,
        teacher_config_sha256=measured.config_sha256,
        size=sizes.parse(settings.size or family.size),
        edits=tuple(edits),
        dropped=tuple(dropped),
        pairs=tuple(pairs) if verdict and verdict.used == "pairs" else (),
        additivity=verdict,
        agreement=tuple(additivity.agreement(edits, _scores(drawn_with, measured))),
        environment=machine.environment(settings.device, measured.threads),
    )


def load_or_profile(
    path: Path,
    family: str,
    settings: ProfileSettings,
    fresh: bool = False,
    watch: progress.Watch | None = None,
    command: str = "",
) -> Profile:
    """The profile in `path` if it is of these weights, else a new one, which is saved there."""
    if path.exists() and not fresh:
        loaded, weights = resolve(family, settings)
        profile, teacher = Profile.load(path), loading.load_unet(loaded, weights)
        if (profile.config_sha256, profile.weights_sha256) in _identities(teacher, settings):
            return profile
    profile = profiler.profile(family, settings, watch, command=command)
    profile.save(path, force=True)
    return profile


def _identities(teacher: Any, settings: ProfileSettings) -> set[tuple[str, str | None]]:
    """(config, weights) of profiles of this teacher; a profile of the fake backend has no weights."""
    config = loading.unet_config_sha256(teacher.config)
    return {(config, loading.weights_sha256(teacher))} | ({(config, None)} if settings.backend == "fake" else set())


def load_or_measure_damage(
    path: Path,
    family: str,
    settings: SensitivitySettings,
    plans: int,
    weights_sha256: str | None,
    fresh: bool = False,
    tell: Tell = lambda *_: None,
    command: str = "",
) -> Damage:
    """The damage in `path` if it has these settings, data and weights (None: any), else a new one, saved there.

    An interrupted measurement is resumed.
    """
    if path.exists() and not fresh:
        damage = Damage.load(path)
        asked = (
            settings.prompts, settings.timesteps, settings.data or damage.data, settings.split, settings.seed,
            weights_sha256 or damage.weights_sha256,
        )  # fmt: skip
        known = (damage.prompts, len(damage.timesteps), damage.data, damage.split, damage.seed, damage.weights_sha256)
        if known == asked:
            return damage
    run_file = path.with_name(f"{path.name}.run")
    damage = measure_sensitivity(family, settings, plans, run_file=run_file, tell=tell, command=command)
    damage.save(path, force=True)
    run_file.unlink(missing_ok=True)
    return damage


# ---------------------------------------------------------------------------------------------- joint plans


def macs_profile(family: Family, size: Size | None = None, options: str = "fast") -> Profile:
    """A profile whose times are MACs: joint plans drawn from it do not depend on the machine."""
    return profiler.profile(family, ProfileSettings(backend="fake", size=size, options=options))


def profile_for(family: Family, size: Size | None, replacements: Sequence[str] | None) -> Profile:
    """The MACs of every edit that is to be measured."""
    names = variants.measured_names(replacements)
    return macs_profile(family, size, "fast" if not replacements or set(names) <= set(FAST) else ",".join(names))


def _problem(profile: Profile, singles: Sequence[ResolvedPlan]) -> Problem:
    """The choices of a profile that were measured."""
    measured = {edits_key(single.edits) for single in singles}
    return Problem(profile, tuple(c for c in make_choices(profile) if edits_key(c.edits) in measured))


def draw_joint_plans(profile: Profile, singles: Sequence[ResolvedPlan], n: int, seed: int) -> list[Edits]:
    """`n` random legal plans of measured edits, spread from 95 % of the teacher to 40 % or the lowest reachable."""
    if not n:
        return []
    problem = _problem(profile, singles)
    lowest = max(LOWEST, plan.reachable(problem, "latency"))
    if lowest >= HIGHEST:
        raise ValueError(f"no legal plan is below {lowest:.2f} of {profile.family}; skip joint plans (--plans 0).")
    rng = np.random.default_rng(seed)
    targets = HIGHEST - (HIGHEST - lowest) * (np.arange(n) + 0.5) / n
    return [plan.draw_plan(problem, float(target), rng) for target in targets]


# ---------------------------------------------------------------------------------------------- CLIP score

DRAWING_STEPS = 20


def with_clip_scores(
    family: Family, edits: Sequence[EditDamage], settings: SensitivitySettings, pictures: int, tell: Tell
) -> Iterator[EditDamage]:
    """Edits with the change in CLIP score of images drawn from the same captions and seeds (SnapFusion's criterion).

    The judge was never used to train a UNet; the interval is a bootstrap over images.
    """
    judge, captions = _clip_inputs(family, settings, pictures)
    teacher = loading.load_teacher(family, settings)
    pipe = pipeline.pipeline(family, teacher, settings)
    own = judge.text_embedding(captions).float().cpu()

    def scores(unet: nn.Module) -> np.ndarray:
        pipe.unet = unet
        images = generate_images(
            pipe, captions, settings.seed, DRAWING_STEPS, family.guidance_scale, size=settings.size
        )
        return clip_scores(JudgedImages.of(judge, images).embeddings, own)

    with machine.quiet_torch(settings.threads, settings.device):
        before = scores(teacher)
        for n, one in enumerate(edits):
            tell(f"drawing with edit {n + 1} of {len(edits)}", 0, None)
            student, _ = students.build(teacher, PruningPlan(family=family.name, edits=one.edits))
            change = statistics.estimate((scores(student) - before).tolist(), np.mean)
            interval = Interval(value=change.median, low=change.low, high=change.high)
            yield one.model_copy(update={"clip_score_change": interval})


def _clip_inputs(family: Family, settings: SensitivitySettings, pictures: int) -> tuple[Any, list[str]]:
    """The judge and the captions; raises ValueError where there is no judge, or too few captions."""
    assert settings.data is not None, "measure_sensitivity() fills it in"
    judge = judges.required(settings.judge, settings.data, "--clip")
    return judge, _captions(settings, max(sizes.sides(settings.size or family.size)), pictures)


def _captions(settings: SensitivitySettings, side: int, count: int) -> list[str]:
    """The captions of some examples; raises ValueError where there are fewer, or none has a caption."""
    assert settings.data is not None, "measure_sensitivity() fills it in"
    data = open_captions(settings.data, settings.split, side)
    if isinstance(data, datasets.Stream):
        captions = [example.caption for example in usable_examples(data, settings.data, count, "clip")]
    else:
        if count > len(data):
            raise ValueError(f"clip must be at most the {len(data)} images of {settings.data}, got {count}.")
        # Not `picked_captions`, whose draw is another one: a seed keeps the captions of earlier scores.
        picks = np.random.default_rng(settings.seed).permutation(len(data))[:count]
        captions = [data.captions[int(i)] for i in picks]
    if not any(captions):
        raise ValueError(f"{settings.data} has no captions, which a CLIP score needs; leave --clip out.")
    return captions


# ---------------------------------------------------------------------------------------------- cheap scores


def _scores(profile: Profile, measured: DamageMeasurement) -> dict[str, dict[frozenset[str], float]]:
    """Scores by edits that need neither weights nor data, or no measurement: the structural prior, and unit scores."""
    prior = {edits_key(c.edits): c.damage for c in make_choices(profile)}
    units_only = {k: v for k, v in prior.items() if len(k) == 1 and "remove_unit" in next(iter(k))}
    by_unit = {
        name: {edits_key((RemoveUnit(unit=fqn),)): value for fqn, value in values.items()}
        for name, values in measured.unit_scores.items()
    }
    return {"structural prior, all edits": prior, "structural prior": units_only} | by_unit
