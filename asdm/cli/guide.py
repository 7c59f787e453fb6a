"""What to do next, given the files that exist: what `asdm` and `asdm-prof` show without a command."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm.plan.edits import PruningPlan
from asdm.records.bench import BenchResult
from asdm.records.build import BuildResult
from asdm.utils.console import plain, quoted
from asdm.utils.record import read_json, sha256_of
from asdm.utils.runs import REPORTS, newest_first

WELCOME = "Find out where a Stable Diffusion UNet spends its time and what is redundant, and build a smaller one."
START = (
    ("asdm-prof profile sd15", "time every unit in place: 3 minutes on 2 cores, no weights needed"),
    ("asdm-prof profile mini", "time the small model that ships, with its real weights: a minute"),
    ("asdm-prof flops sd15", "count parameters and MACs only: a few seconds"),
)


@dataclass(frozen=True)
class Step:
    """A step of the chain: the file it wrote, or the command that writes it; `about` says what is in the file."""

    name: str
    command: str
    path: Path | None = None
    about: str = ""


def lines(now: float | None = None) -> list[str]:
    """What has been done, step by step, and the command to run next."""
    steps = chain(time.time() if now is None else now)
    if not steps:
        width = max(len(command) for command, _ in START)
        return [WELCOME, "", "Nothing is measured here yet. Start with one of:", *_columns(START, width), "", HELP]
    next_one = next((step for step in steps if step.path is None), None)
    shown = [
        f"  {'done' if step.path else 'next' if step is next_one else '    '}  {step.name:<8}{_what(step)}"
        for step in steps
    ]
    advice = f"Next:  {next_one.command}" if next_one else f"Everything is done. Open {steps[-1].path} in a browser."
    more = optional_commands(steps)
    width = max((len(command) for command, _ in more), default=0)
    offered = ["Also possible:", *_columns(more, width)] if more else []
    return [WELCOME, "", "What is here:", *shown, "", advice, *offered, HELP]


def optional_commands(steps: list[Step]) -> tuple[tuple[str, str], ...]:
    """Commands outside the chain: the frontier, and with real weights also damage and training."""
    profile = _profile(steps[0].path) if steps and steps[0].path else None
    plan = next((step.path for step in steps if step.name == "plan"), None)
    if profile is None or plan is None:
        return ()
    family, real = quoted(profile.get("family")), profile.get("weights") != "random"
    offers = [("asdm-prof frontier", "every plan that no other beats in both latency and damage", "frontier.json")]
    if real:
        offers += [
            (f"asdm-prof sensitivity {family}", "measured damage of every edit, for plan --damage", "damage.json"),
            (f"asdm distill {quoted(plan)} --teacher {family} -o trained/", "train the student from its teacher", ""),
        ]
    return tuple((command, why) for command, why, output in offers if not (output and any(REPORTS.glob(f"*/{output}"))))


HELP = "All commands: asdm-prof --help, asdm --help."


def _columns(rows: tuple[tuple[str, str], ...], width: int) -> list[str]:
    return [f"  {command:<{width}}   {why}" for command, why in rows]


def _what(step: Step) -> str:
    return step.command if step.path is None else f"{plain(str(step.path))}{f'  ({step.about})' if step.about else ''}"


def chain(now: float) -> list[Step]:
    """profile → plan → build → bench → report, matched by the hashes they record; empty if there is no profile."""
    profile = _first(REPORTS.glob("*/profile.json"), _profile)
    if profile is None:
        return []
    path, data = profile
    family = quoted(data.get("family"))
    about = ", ".join(plain(str(data.get(key))) for key in ("family", "backend", "dtype"))
    steps = [Step("profile", "", path, f"{about}, {_age(path, now)}")]

    sha256 = sha256_of(data)
    plan = _first(REPORTS.glob("*/plan*.json"), _loader(PruningPlan, lambda plan: plan.profile_sha256 == sha256))
    steps.append(Step("plan", "asdm-prof plan --budget 0.8", *((plan[0], _about_plan(plan[1])) if plan else ())))

    plan_sha256 = plan[1].sha256() if plan else None
    places = [*Path().glob("*/build.json"), *REPORTS.glob("*/build.json"), *REPORTS.glob("*/*/build.json")]
    student = _first(places, _loader(BuildResult, lambda student: student.plan_sha256 == plan_sha256))
    command = f"asdm build {quoted(plan[0]) if plan else 'plan.json'} -o student/"
    steps.append(Step("build", command, *((student[0].parent, _about_student(student[1])) if student else ())))

    bench = _first(
        REPORTS.glob("*/bench*.json"),
        _loader(BenchResult, lambda bench: any(s.plan_sha256 and s.plan_sha256 == plan_sha256 for s in bench.students)),
    )
    command = f"asdm bench --teacher {family} --student {quoted(student[0].parent) if student else 'student'}/"
    steps.append(Step("bench", command, *((bench[0], _about_bench(bench[1], plan_sha256)) if bench else ())))

    newest = max(step.path.stat().st_mtime for step in steps if step.path)
    report = _first(REPORTS.glob("*/report.html"), lambda path: path.stat().st_mtime >= newest or None)
    steps.append(Step("report", "asdm-prof report", report[0] if report else None))
    return steps


def _first(paths: Any, read: Callable[[Path], Any]) -> tuple[Path, Any] | None:
    """The newest file that `read` accepts, with what it read."""
    for path in newest_first(paths):
        if (content := read(path)) is not None:
            return path, content
    return None


def _profile(path: Path) -> dict[str, Any] | None:
    """A profile as plain values, without importing the profiler; None for any other file."""
    try:
        data = read_json(path)
        sha256_of(data)  # of which others know it; a number may be too large for JSON
    except ValueError:
        return None
    return data if isinstance(data, dict) and str(data.get("schema")).startswith("asdm.profile/") else None


def _loader(model: Any, fits: Callable[[Any], bool]) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        try:
            record = model.load(path)
        except ValueError:
            return None
        return record if fits(record) else None

    return read


def _about_plan(plan: PruningPlan) -> str:
    return plain(f"{plan.budget or plan.name}") + (f", predicted {plan.predicted.ratio:.2f}×" if plan.predicted else "")


def _about_student(student: BuildResult) -> str:
    return f"{student.teacher_params / 1e6:.1f} M → {student.params / 1e6:.1f} M parameters"


def _about_bench(bench: BenchResult, plan_sha256: str | None) -> str:
    own = next(student for student in bench.students if student.plan_sha256 == plan_sha256)
    return f"measured {own.unet_latency_ratio.median:.2f}× of {plain(bench.teacher.name)}"


def _age(path: Path, now: float) -> str:
    """How long ago a file was written, in the largest unit that gives at least 1."""
    seconds = max(now - path.stat().st_mtime, 0)
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {name}{'' if n == 1 else 's'} ago"
    return "just now"
