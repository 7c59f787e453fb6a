"""Search: many candidates are built, timed and trained a little, the better half longer, and so on.

    frontier ──► candidates ──► time, train, judge ──► the better half ──► time … ──► search.json
    k diverse plans             one trial of the study  trains on from its checkpoint

Any number of workers share a search, one process each. A candidate is one run of `asdm distill` that pauses at the end
of every rung, so a survivor equals, bit by bit, a student trained in one go. Latencies are ratios to the teacher,
measured in pairs in one process; a worker on another kind of machine is refused, so they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from asdm.data import datasets
from asdm.distill import recipes
from asdm.distill.settings import check_settings
from asdm.measure import machine
from asdm.models import loading
from asdm.models.families import Family, load_family
from asdm.records.bench import MEASURES
from asdm.utils import io
from asdm.utils.progress import Tell
from asdm.utils.settings import check_bounds
from asdm_prof.analysis.diff import MACHINE
from asdm_prof.records import Damage, Profile, Search
from asdm_prof.search.candidates import new_study
from asdm_prof.search.context import SearchContext
from asdm_prof.search.halving import Halving
from asdm_prof.search.result import conclude
from asdm_prof.search.settings import SearchSettings, WorkerSettings
from asdm_prof.search.storage import open_study, without_password
from asdm_prof.search.training import training_settings
from asdm_prof.search.worker import Worker

RESULT = "search.json"


def search(
    teacher: str,
    settings: SearchSettings,
    output: Path,
    make_profile: Callable[[], Profile],
    profile: Profile | None = None,
    damage: Damage | None = None,
    own: WorkerSettings = WorkerSettings(),
    progress: Callable[[], AbstractContextManager[Tell]] = lambda: nullcontext(lambda *_: None),
    command: str = "asdm-prof search",
) -> Search:
    """Work on a search until all of it is done, and write `search.json`; other workers may share it meanwhile.

    A new study plans its candidates on `profile`, or on `make_profile()` where none is named; an existing one must have
    been planned on `profile` and `damage`. Raises ValueError for bad settings, Infeasible where no plan is fast enough.
    """
    family = load_family(teacher)
    check(family, settings)
    io.make_folder(output)
    context = SearchContext(family, teacher, settings, output)
    shared = identity(context) | ({"profile_sha256": profile.sha256()} if profile else {})
    shared |= {"damage_sha256": damage.sha256()} if damage else {}
    name = own.study or f"{io.short_name(teacher)}-{settings.budget}"

    def begin() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with context.host.timing():
            planned_on = profile or make_profile()
        return new_study(family, settings, planned_on, damage)

    maximise = MEASURES[settings.metric].more_is_better
    with open_study(own.storage, name, output, shared, maximise, begin) as study:
        with progress() as tell:
            Worker(context, study, own.checkpoint_s, tell).run()
        with study.exclusive():
            public = command.replace(own.storage, without_password(own.storage)) if own.storage else command
            result = conclude(context, study, public)
            result.save(output / RESULT, force=True)
    return result


def check(family: Family, settings: SearchSettings) -> None:
    """Raises ValueError naming the first bad setting, its value and the choices."""
    check_bounds(settings)
    Halving(settings.candidates, settings.rungs, settings.steps)
    recipes.load(settings.recipe)
    check_settings(training_settings(settings, steps=1))
    if not family.text_encoders or not family.vae:
        raise ValueError(f"{family.name} is only a UNet, whose pictures cannot be judged; name a whole pipeline.")


def identity(context: SearchContext) -> dict[str, Any]:
    """What all workers of a study share: settings, teacher, pictures, and the kind of machine."""
    settings = context.settings
    teacher = loading.load_unet(context.family, context.weights, settings.device, "fp32", settings.seed)
    facts = machine.environment(settings.device, settings.threads or torch.get_num_threads())
    data = datasets.open_source(settings.data, settings.split, context.pixels())
    return {
        **{key: value for key, value in asdict(settings).items() if key != "weights"},
        "threads": facts["threads"],
        "teacher_config_sha256": loading.unet_config_sha256(loading.meta_unet(context.family).config),
        "teacher_sha256": loading.weights_sha256(teacher),
        "data_fingerprint": datasets.fingerprint(data),
        **{name: facts[name] for name in MACHINE if name in facts},
    }
