"""The commands of a slim run, as if typed by hand, and the files that they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm.cli.slim.settings import SlimSettings
from asdm.models.settings import BESIDE_THE_UNET, WholeCheckpoint
from asdm.utils.settings import flag, options

PROFILE, DAMAGE, PLAN, STUDENT, BENCH, REPORT = (
    "profile.json", "damage.json", "plan.json", "student", "bench.json", "report",
)  # fmt: skip
REPLACEMENTS = ("gri_attention", "kv_downsample")  # that do damage which can be measured before any training


@dataclass(frozen=True)
class Step:
    """A command: its words, and what it writes; `whole` says whether that is there only when it is complete."""

    name: str
    words: tuple[str, ...]
    output: Path
    whole: bool = True


def steps_of(
    checkpoint: str, settings: SlimSettings, data: str, pictures: int | None, folder: Path, training: Sequence[str] = ()
) -> list[Step]:
    """All steps; `pictures` is how many the data have (None: a stream), `training` what makes training fit."""
    weights = _typed(settings, *(name for name in options(WholeCheckpoint) if name not in BESIDE_THE_UNET))
    whole = _typed(settings, *options(WholeCheckpoint))
    machine = _typed(settings, "device", "size", "threads", "seed")
    few = len_at_most(pictures)
    measured = ("--data", data, "--prompts", str(few(settings.prompts)))
    profile, damage, plan = folder / PROFILE, folder / DAMAGE, folder / PLAN
    student, bench, report = folder / STUDENT, folder / BENCH, folder / REPORT
    replacements = settings.replacement or REPLACEMENTS  # timed and measured, or the planner has no use for them
    timed = "eager" if settings.backend == "fake" else settings.backend
    distil = (
        *("--teacher", checkpoint, *whole, "--data", data, *machine),
        *_typed(settings, "steps", "batch", "learning_rate", "recipe", "vgg", "hold_out", "dtype"),
    )
    judged = ("--quality", "--data", data, "--pictures", str(few(settings.pictures)), *_typed(settings, "judge"))
    lines: list[tuple[str, Path, bool, tuple[Any, ...]]] = [
        (
            "profile", profile, True,
            ("asdm-prof", "profile", checkpoint, *weights, *_typed(settings, "backend"), *machine,
             "--options", ",".join(replacements)),
        ),
        (
            "sensitivity", damage, True,
            ("asdm-prof", "sensitivity", checkpoint, *whole, *measured, *machine,
             *(word for name in replacements for word in ("--replacement", name))),
        ),
        (
            "plan", plan, True,
            ("asdm-prof", "plan", "--profile", profile, "--damage", damage, "--no-why",
             *_typed(settings, "budget", "max_damage", "loads_in")),
        ),
        ("distill", student, False, ("asdm", "distill", plan, *distil, *training)),
        (
            "bench", bench, False,
            ("asdm", "bench", "--teacher", checkpoint, *whole, "--student", student, *judged, "--backend", timed,
             *machine, "--force"),
        ),
        (
            "report", report, False,
            ("asdm-prof", "report", profile, "--plan", plan, "--bench", bench, "--damage", damage,
             "--log", student / "log.jsonl", "--force"),
        ),
    ]  # fmt: skip
    return [
        Step(name, (*map(str, words), "-o", str(output)), output, is_whole) for name, output, is_whole, words in lines
    ]


def len_at_most(pictures: int | None) -> Any:
    """A number that a user asked for, or all pictures where there are fewer."""
    return lambda asked: asked if pictures is None else min(asked, pictures)


def _typed(settings: SlimSettings, *names: str) -> tuple[str, ...]:
    """Settings as options of a command line; what is None or left at nothing is not typed."""
    known = options(SlimSettings)
    words: list[str] = []
    for name in names:
        value = getattr(settings, name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                words += [flag(name, known[name]), str(one)]
    return tuple(words)
