"""How much `asdm-prof sensitivity` would compute, counted on the meta device: no weights, no pictures, no forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from asdm.models import loading
from asdm.models.sources import family_of
from asdm.plan.edits import Edits
from asdm.plan.legality import ResolvedPlan
from asdm.unet import surgery
from asdm.unet.inputs import check_caption_only
from asdm.utils.progress import Tell
from asdm.utils.settings import check_bounds
from asdm_prof.records import Profile
from asdm_prof.sensitivity import racing, study, variants
from asdm_prof.sensitivity.settings import SensitivitySettings


@dataclass(frozen=True)
class Forecast:
    """Forwards are of one latent, in units of the teacher's; `forwards` is the most that a race leaves to compute."""

    family: str
    edits: int
    plans: int
    samples: int  # latents that every student is measured on
    race_edits: int  # that go on after the race at most; 0: there is none
    race_samples: int
    forwards: float
    plain_forwards: float  # with nothing computed once for several students
    forward_s: float | None  # of the profile that was named

    @property
    def seconds(self) -> float | None:
        return None if self.forward_s is None else self.forwards * self.forward_s


def forecast(
    name: str,
    settings: SensitivitySettings,
    plans: int,
    replacements: Sequence[str] | None,
    race: bool,
    profile: Profile | None,
    tell: Tell = lambda *_: None,
) -> Forecast:
    """What the same call of `measure_sensitivity` would compute; raises ValueError for settings out of bounds."""
    check_bounds(settings)
    family = family_of(name, settings)
    check_caption_only(family.unet, family.name, "asdm-prof sensitivity")
    teacher = loading.meta_unet(family)
    singles = variants.measurable_edits(teacher, replacements)
    joint: list[Edits] = []
    if plans:
        timed = profile or study.profile_for(family, settings.size, replacements)
        joint = study.draw_joint_plans(timed, singles, plans, settings.seed)
    samples, forwards, plain = settings.prompts * settings.timesteps, 0.0, 0.0
    tell("counting multiply-adds", 0, None)
    resolved = [*singles, *(surgery.resolved_on(teacher, one) for one in joint)]
    everyone = variants.make_variants(teacher, resolved)
    macs = variants.step_macs(family, settings.size, everyone)

    def count(places: Collection[int], samples: int) -> None:
        nonlocal forwards, plain
        ordered = variants.sharing([one for one in everyone if one.index < 0 or one.index in places])
        work = variants.work_of(ordered, macs, settings.reuse)
        forwards += samples * work["done_forwards"]
        plain += samples * work["plain_forwards"]

    left, race_samples = [*range(len(singles))], 0
    if race:
        few = racing.first_heat(settings)
        race_samples = few.prompts * few.timesteps
        count(range(len(singles)), race_samples)
        left = _first_of_each_unit(singles)
    count({*left, *range(len(singles), len(resolved))}, samples)
    return Forecast(
        family=family.name, edits=len(singles), plans=len(joint), samples=samples, race_edits=len(left) if race else 0,
        race_samples=race_samples, forwards=forwards, plain_forwards=plain,
        forward_s=profile.whole.latency_s.median / profile.batch if profile else None,
    )  # fmt: skip


def _first_of_each_unit(singles: Sequence[ResolvedPlan]) -> list[int]:
    """Places of as many edits as a race leaves at most."""
    seen: Counter[frozenset[str]] = Counter()
    left = []
    for place, single in enumerate(singles):
        seen[single.touched_units] += 1
        if seen[single.touched_units] <= racing.MOST:
            left.append(place)
    return left


def lines(found: Forecast) -> list[str]:
    """What a terminal says."""
    edits, on = f"{found.edits} edits of {found.family}", f"on {found.samples:,} noised pictures"
    what = f"{edits} and {found.plans} joint plans, {on}."
    if found.race_edits:
        first = f"{edits} on {found.race_samples:,} noised pictures each"
        what = f"{first}; then at most {found.race_edits} of them and {found.plans} joint plans {on}."
    told = [
        what,
        f"{'At most ' if found.race_edits else ''}{found.forwards:,.0f} forwards of the teacher's size "
        f"({found.plain_forwards:,.0f} if nothing were shared).",
    ]
    if found.seconds is not None:
        hours = found.seconds / 3600
        time = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.0f} min"
        told.append(f"At the profile's {found.forward_s:.3g} s a forward: {time}.")
    return told
