"""Trains one student of a row and judges it."""

from __future__ import annotations

from pathlib import Path

from asdm.distill.context import TrainProgress
from asdm.distill.dry_run import preview_stage
from asdm.distill.run import distill
from asdm.distill.stages import ResolvedRecipe, resolve_recipe
from asdm.models import loading
from asdm.models.families import load_family
from asdm.utils.progress import Tell
from benchmarks.proof.judging import ProofJudge
from benchmarks.proof.plans import plan_file
from benchmarks.proof.records import ProofResult
from benchmarks.proof.rows import Row
from benchmarks.proof.settings import ProofSettings


def resolved_recipe(row: Row, settings: ProofSettings, folder: Path) -> ResolvedRecipe:
    """A row's recipe with its plan."""
    return resolve_recipe(str(plan_file(row, folder)), settings.family, settings.training(0), row.stages())


def train_and_judge(
    row: Row, seed: int, settings: ProofSettings, judge: ProofJudge, folder: Path, tell: Tell
) -> ProofResult:
    """Train one student, resuming an interrupted training, and judge what it draws."""
    training, student_folder = settings.training(seed), folder / "students" / row.name / f"seed-{seed}"
    recipe = resolved_recipe(row, settings, folder)
    previews = [preview_stage(recipe, stage, training) for stage in recipe.stages]

    def on_progress(status: TrainProgress) -> None:
        tell(f"training, {status.stage}", status.step, status.eta_s)

    result = distill(
        str(plan_file(row, folder)),
        settings.family,
        student_folder,
        training,
        row.stages(),
        on_progress=on_progress,
        command="benchmarks.proof.run",
    )
    student = loading.load_unet(load_family(str(student_folder)), str(student_folder))
    return ProofResult(
        seed=seed,
        seconds=sum(stage.seconds for stage in result.stages),
        pictures=sum(stage.steps for stage in result.stages) * settings.batch,
        peak_memory_bytes=max(preview.memory.total for preview in previews),
        trainable=result.stages[-1].audit.trainable.params,
        student_sha256=result.student_sha256,
        metrics=judge.metrics(student, tell),
    )
