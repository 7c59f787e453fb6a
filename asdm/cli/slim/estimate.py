"""What a slim run will take, before it begins: time, memory and disk, and the training options that fit a card."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from asdm.cli.slim.prepare import Prepared
from asdm.cli.slim.steps import len_at_most
from asdm.distill import recipes
from asdm.distill.dry_run import preview_stage
from asdm.distill.settings import DistillSettings
from asdm.distill.stages import ResolvedRecipe, resolve_recipe
from asdm.evaluate.settings import BenchSettings
from asdm.measure import machine
from asdm.models import build, example_inputs, loading
from asdm.models.components import components_of
from asdm.models.settings import checkpoint_of
from asdm.plan.legality import legal_edits
from asdm.plan.presets import PRESETS
from asdm.unet.blocks import topology

GIB = 2**30
CARDS = (8, 12, 24)  # GiB
ON_A_CARD: dict[str, Any] = {"device": "cuda", "dtype": "fp16"}
# What saves memory, the cheapest first; each line adds to those before it.
LADDER: tuple[dict[str, Any], ...] = (
    {},
    {"micro_batch": 1},
    {"gradient_checkpointing": True},
    {"optimizer": "adamw8bit"},
    {"ema": 0.0},
)
EFFICIENCY = 0.5  # of a matrix product's speed that a UNet reaches, roughly
TEACHER_AND_STUDENT = 4  # forwards' worth of work in a training step: the teacher's, the student's, its backward
JOINT_PLANS, SECONDS_TO_START = 40, 15


@dataclass(frozen=True)
class StepEstimate:
    """Roughly what a step takes."""

    name: str
    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Fit:
    """Whether training fits a card, and with which options."""

    gib: int
    options: tuple[str, ...] | None  # None: it does not
    needs_bytes: int


def ladder() -> list[dict[str, Any]]:
    """The settings of each rung, with those of the rungs before it."""
    rungs: list[dict[str, Any]] = []
    for more in LADDER:
        rungs.append({**(rungs[-1] if rungs else {}), **more})
    return rungs


def typed(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings of `asdm distill` as its options."""
    words: list[str] = []
    for name, value in changes.items():
        words += [f"--{name.replace('_', '-')}"] + (
            [] if value is True else [f"{value:g}" if isinstance(value, float) else str(value)]
        )
    return tuple(words)


def settings_of(prepared: Prepared) -> DistillSettings:
    """How the run trains, without what saves memory."""
    own = prepared.settings
    names = ("steps", "batch", "learning_rate", "vgg", "hold_out", "device", "dtype", "size", "threads", "seed")
    shared = {name: getattr(own, name) for name in names} | checkpoint_of(own)
    return DistillSettings(data=prepared.data, **shared)


def _recipe(prepared: Prepared, plan: str) -> ResolvedRecipe:
    weights = recipes.parse_weights([word for word in prepared.left_out if "=" in word])
    recipe = recipes.adjust(recipes.load(prepared.settings.recipe), weights=weights)
    return resolve_recipe(plan, prepared.checkpoint, settings_of(prepared), recipe)


def _stage_bytes(recipe: ResolvedRecipe, settings: DistillSettings) -> int:
    return max(preview_stage(recipe, stage, settings).memory.total for stage in recipe.stages)


def fitting_options(prepared: Prepared, plan: str) -> tuple[str, ...]:
    """The first options with which training fits into free memory; raises ValueError where none does."""
    recipe, settings = _recipe(prepared, plan), settings_of(prepared)
    free, needs = machine.free_memory_bytes(settings.device), 0
    for changes in _rungs(settings):
        needs = _stage_bytes(recipe, replace(settings, **changes))
        if needs <= free:
            return typed(changes)
    remedies = {
        "choose --recipe without_incubation": prepared.settings.recipe != "without_incubation",
        "choose a smaller --size": True,
        "install bitsandbytes for 8-bit moments": settings.device != "cpu" and find_spec("bitsandbytes") is None,
    }
    raise ValueError(
        f"training needs at least {needs / GIB:.1f} GiB on {settings.device}, and {free / GIB:.1f} GiB are free; "
        f"{' or '.join(remedy for remedy, helps in remedies.items() if helps)}."
    )


def _rungs(settings: DistillSettings) -> list[dict[str, Any]]:
    """The rungs that can be climbed: 8-bit moments are bitsandbytes', on a GPU."""
    has_8_bits = settings.device != "cpu" and find_spec("bitsandbytes") is not None
    return [{name: value for name, value in rung.items() if name != "optimizer" or has_8_bits} for rung in ladder()]


def fits(prepared: Prepared, plan: str) -> list[Fit]:
    """Whether 8, 12 and 24 GiB suffice for training in fp16, each with the first options that do."""
    recipe, settings = _recipe(prepared, plan), replace(settings_of(prepared), **ON_A_CARD)
    left, fitting, needs = list(reversed(CARDS)), [], 0
    for changes in ladder():
        needs = _stage_bytes(recipe, replace(settings, **changes))
        while left and needs <= left[0] * GIB:
            fitting.append(Fit(left.pop(0), typed(changes), needs))
        if not left:
            break
    return sorted([*fitting, *(Fit(gib, None, needs) for gib in left)], key=lambda fit: fit.gib)


def stand_in(prepared: Prepared, folder: Path) -> str:
    """The plan to estimate with: the run's own, or the first preset that fits the model."""
    if (folder / "plan.json").exists():
        return str(folder / "plan.json")
    for name in PRESETS:
        try:
            _recipe(prepared, name)
        except ValueError:
            continue
        return name
    raise ValueError(f"no preset fits {prepared.family.name}; plan first, and train with `asdm distill`.")


# ---------------------------------------------------------------------------------------------- time and disk


def estimates(prepared: Prepared, plan: str, forward_s: float) -> list[StepEstimate]:
    """Roughly what each step takes, where a forward of the teacher takes `forward_s`."""
    settings, family = prepared.settings, prepared.family
    few = len_at_most(prepared.pictures)
    recipe = _recipe(prepared, plan)
    teacher = build.count(family, recipe.meta_teacher, size=settings.size)
    weights, activations = teacher.parameter_bytes, teacher.peak_activation_bytes
    parts = sum(sum(p.nbytes for p in part.module.parameters()) for part in components_of(family))
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    students = len(legal_edits(topology(recipe.meta_teacher), [])) + JOINT_PLANS
    bench, prompts, pictures = BenchSettings(), few(settings.prompts), few(settings.pictures)
    damage_s = students * prompts * 8 * forward_s / 2  # eight levels; half of a forward is shared with another student
    training_s = settings.steps * settings.batch * TEACHER_AND_STUDENT * forward_s
    drawing_s = 3 * pictures * bench.steps * 2 * forward_s
    saved = 4 * sum(p.numel() for p in recipe.meta_teacher.parameters())
    rows = [
        ("profile", 60 + 20 * forward_s, weights + activations, 2**20),
        ("sensitivity", damage_s, weights + parts + min(64, 8 * prompts) * activations, 2**20),
        ("plan", 5.0, 2**29, 2**16),
        ("distill", training_s, _stage_bytes(recipe, settings_of(prepared)), saved * (len(recipe.stages) + 8)),
        (
            "bench",
            drawing_s + 2 * bench.time_budget_s,
            2 * weights + parts + 16 * activations,
            4 * pictures * side**2 * 3,
        ),
        ("report", 10.0, 2**29, 2**22),
    ]
    return [StepEstimate(name, SECONDS_TO_START + seconds, memory, disk) for name, seconds, memory, disk in rows]


def forward_seconds(prepared: Prepared) -> float:
    """About how long a forward takes here, from its MACs and the speed of a matrix product."""
    settings = prepared.settings
    macs = build.count(prepared.family, loading.meta_unet(prepared.family), size=settings.size).total.macs
    a = torch.randn(1024, 1024, device=settings.device)
    a @ a
    began = time.perf_counter()
    for _ in range(8):
        b = a @ a
    float(b[0, 0])
    per_mac = (time.perf_counter() - began) / (8 * 1024**3)
    return macs * per_mac / EFFICIENCY
