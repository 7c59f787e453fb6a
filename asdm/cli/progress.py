"""A running distillation: shares of its loss terms, speed and time left; and the texts of its preview and result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asdm.distill.context import ProgressCallback, TrainProgress, is_main_process
from asdm.distill.settings import DistillSettings
from asdm.records.distill import DistillResult, MemoryEstimate, StagePlan, StageResult
from asdm.utils import console as terminal

BAR = 30


@contextmanager
def watching(title: str, console: Console | None = None) -> Iterator[ProgressCallback]:
    """A live table on a terminal, and a line now and then elsewhere; the first process alone shows anything."""
    console = console or terminal.log()
    if not is_main_process():
        yield lambda _: None
    elif not console.is_terminal:
        yield lines(title)
    else:
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            yield lambda status: live.update(view(title, status))


def lines(title: str, every_s: float = 10.0) -> ProgressCallback:
    """A line at the beginning of a stage, at its end, and now and then."""
    last_stage, last_at = "", 0.0

    def watch(status: TrainProgress) -> None:
        nonlocal last_stage, last_at
        now = time.monotonic()
        if status.stage != last_stage or now - last_at >= every_s or status.step == status.steps:
            last_stage, last_at = status.stage, now
            terminal.say(f"{title}: {headline(status)}")

    return watch


def view(title: str, status: TrainProgress) -> Group:
    """Stage and step, a bar, and a row per loss term with its share of the loss."""
    head = Text(f"{title}: {headline(status)}")
    bar = ProgressBar(total=max(status.steps, 1), completed=status.step, width=BAR * 2)
    table = Table(box=None, pad_edge=False, show_header=False)
    total = sum(status.terms.values())
    for name, value in status.terms.items():
        share = value / total if total else 0.0
        table.add_row(name, f"{value:.4g}", Text("█" * round(BAR * share), style="cyan"), f"{share:.0%}")
    return Group(head, bar, table)


def headline(status: TrainProgress) -> str:
    """`combined, step 120 of 500, 41.2 images/s, 3 min 10 s left, checkpoint at 100`."""
    parts = [status.stage]
    if status.step:
        parts += [f"step {status.step} of {status.steps}", f"{status.images_per_s:.3g} images/s{_bound(status)}"]
    if status.eta_s is not None:
        parts.append(f"{terminal.left_text(status.eta_s)} left")
    if status.saved_step:
        parts.append(f"checkpoint at {status.saved_step}")
    return ", ".join(parts)


def _bound(status: TrainProgress) -> str:
    """` (compute 91 %)`: what a step spends most of its time on."""
    bound, share = max(status.shares.items(), key=lambda item: item[1], default=("", 0.0))
    return f" ({bound} {share:.0%})" if bound else ""


# ---------------------------------------------------------------------------------------------- before and after


def preview_text(stages: Sequence[StagePlan], settings: DistillSettings) -> str:
    """What `--dry-run` prints: freeze audit, losses, memory and steps of every stage."""
    return "\n\n".join(_stage_text(stage, settings) for stage in stages)


def _stage_text(stage: StagePlan, settings: DistillSettings) -> str:
    lines = [f"{stage.name} ({stage.mode}): {stage.steps:,} steps of {settings.batch} pictures"]
    for group, what in (
        (stage.audit.trainable, "learn"),
        (stage.audit.frozen, "are frozen"),
        (stage.audit.shared_with_teacher, "share the teacher's memory"),
    ):
        lines.append(f"  {len(group.names)} tensors {what}: {group.params:,} parameters, {_size(group.bytes)}")
    terms = [f"{name} × {weight:g}{_places(stage, name)}" for name, weight in stage.weights.items()]
    lines.append(f"  losses: {', '.join(terms)}")
    if stage.left_out:
        lines.append(f"  left out, because this student has no layers for them: {', '.join(stage.left_out)}")
    lines.append(f"  memory: about {_size(stage.memory.total)} ({_memory(stage.memory)})")
    return "\n".join(lines)


def _places(stage: StagePlan, name: str) -> str:
    count = stage.places.get(name)
    return f" at {count} place{'s' if count > 1 else ''}" if count else ""


def _memory(memory: MemoryEstimate) -> str:
    first, *more = (f"{name} {_size(getattr(memory, name))}" for name in type(memory).model_fields)
    return f"{', '.join([first, *more[:2]])},\n          {', '.join(more[2:])}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def preview_json(stages: Sequence[StagePlan]) -> str:
    """`asdm.distill-preview/1`."""
    rows = [stage.model_dump(mode="json") | {"memory_bytes": stage.memory.total} for stage in stages]
    return json.dumps({"schema": "asdm.distill-preview/1", "stages": rows}, indent=1, allow_nan=False)


def result_text(result: DistillResult, output: Path) -> str:
    """Each stage's losses at its beginning and its end, and where the student is."""
    lines = []
    for stage in result.stages:
        lines.append(f"{stage.name} ({stage.mode}): {stage.steps:,} steps in {terminal.left_text(stage.seconds)}")
        ends = {name: [f"{part[name]:.4g}" if name in part else "—" for part in (stage.first, stage.last)]
                for name in stage.first | stage.last}  # fmt: skip
        lines += [f"  {name:<15} {first} → {last}" for name, (first, last) in ends.items()]
        lines += _skipped(stage)
    if held_out := result.held_out:
        lines.append(
            f"On {held_out.pictures} held-out pictures its error is {held_out.error:.4g}, "
            f"{held_out.error / held_out.untrained:.0%} of the untrained student's {held_out.untrained:.4g}."
        )
    if result.paused_at is not None:
        lines.append(
            f"Paused at step {result.paused_at}; the student so far is in {output}/paused. Repeat the command without "
            "--until to resume."
        )
    else:
        wrote = f"Wrote {output}, a student of {terminal.plain(result.family)}."
        lines.append(wrote if result.student_sha256 else "Run the remaining stages to finish the student.")
    return "\n".join(lines)


def _skipped(stage: StageResult) -> list[str]:
    """A line for each reason that examples were left out for."""
    if stage.why_skipped:
        lines = []
        for reason, count in stage.why_skipped.items():
            names = stage.first_skipped.get(reason)
            which = f" ({', '.join(names)}{', …' if count > len(names) else ''})" if names else ""
            lines.append(
                f"  {count} example{'' if count == 1 else 's'} left out: {terminal.plain(reason + which, 500)}"
            )
        return lines
    return [f"  {stage.broken_examples} examples could not be read and were skipped"] if stage.broken_examples else []
