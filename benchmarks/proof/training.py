"""Trains one student of a row, and judges what it draws beside what the teacher draws from the same noise."""

from __future__ import annotations

import subprocess
import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from asdm.data import datasets
from asdm.distill.context import TrainProgress
from asdm.distill.dry_run import preview_stage
from asdm.distill.run import distill
from asdm.distill.run_folder import PAUSED, finished_stages
from asdm.distill.stages import ResolvedRecipe, resolve_recipe
from asdm.evaluate.generation import GeneratedImages, generate_images
from asdm.evaluate.quality import Judgement
from asdm.measure import machine
from asdm.models import loading, networks
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.models.sources import own_weights
from asdm.records.distill import DistillResult
from asdm.utils import registry
from asdm.utils.io import write_whole
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of
from benchmarks.equivalence import Judged
from benchmarks.proof.records import CurvePoint, Proof, ProofResult
from benchmarks.proof.rows import ProofSettings, Row, chosen_rows, plan_file

CHECKPOINTS = 4  # of a learning curve, the last one at its end


class ProofJudge:
    """A teacher, the networks that judge, and the captions that everyone draws from the same noise."""

    def __init__(self, settings: ProofSettings, folder: Path) -> None:
        """Load everything; raises ValueError for more captions than there are."""
        self.settings, self.folder, self.family = settings, folder, load_family(settings.family)
        dataset = registry.load("asdm.data.datasets", settings.data)
        splits = {split: dataset.open_data(split, self.family.size) for split in settings.judged_on.split(",")}
        everything = [(split, i) for split, data in splits.items() for i in range(len(data))]
        if settings.captions > len(everything):
            place = f"{settings.data} {settings.judged_on}"
            raise ValueError(f"captions must be at most {len(everything)} for {place}, got {settings.captions}.")
        fewer = {"curve": settings.curve, "ablation_captions": settings.ablation_captions}
        for name, count in fewer.items():
            if not 4 <= count <= settings.captions and (name, count) != ("curve", 0):
                allowed = "0 or " if name == "curve" else ""
                raise ValueError(f"{name} must be {allowed}between 4 and {settings.captions}, got {count}.")
        order = np.random.default_rng(0).permutation(len(everything))
        chosen = [everything[int(place)] for place in order[: settings.captions]]
        real = [splits[split][i] for split, i in chosen]
        self.splits = tuple(split for split, _ in chosen)
        others = dataset.open_data(settings.split, self.family.size)
        pool = sorted(
            {caption for data in (*splits.values(), others) for caption in datasets.captions_of(data, len(data))}
        )
        judge, vgg = networks.Judge.load(), networks.Vgg.load()
        counts = {settings.captions, *fewer.values()} - {0}
        self._judgements = {count: Judgement(judge, vgg, real[:count], pool) for count in counts}
        self.teacher = loading.load_unet(self.family, own_weights(self.family))
        self.weights_sha256 = loading.weights_sha256(self.teacher)

    @cached_property
    def _pipeline(self) -> Any:
        return pipeline(self.family, self.teacher, Setup())

    def resolved_recipe(self, row: Row) -> ResolvedRecipe:
        """A row's recipe with its plan."""
        plan, settings = str(plan_file(row, self.folder)), self.settings
        return resolve_recipe(plan, settings.family, settings.training(row, 0, self.folder), row.stages())

    def metrics(self, unet: Any, count: int, tell: Tell) -> tuple[dict[str, Judged], float]:
        """Every metric of what a UNet draws for the first `count` captions, and the seconds that it drew."""
        began = time.monotonic()
        images = self._draw(unet, 0, count, tell)
        seconds = time.monotonic() - began
        tell("judging", 0, None)
        return self._judged(images, self.teacher_images(tell)), seconds

    def with_teacher(self, proof: Proof, tell: Tell) -> Proof:
        """A proof with the teacher's own row, and with the teacher's images of other seeds as the noise floor."""
        images, again = self.teacher_images(tell), self.teacher_images(tell, self.settings.captions)
        result = ProofResult(student_sha256=self.weights_sha256, metrics=self._judged(images, images))
        first = proof.rows[0].model_copy(update={"results": (result,)})
        noise = self._judged(again, images)
        return proof.model_copy(update={"noise": noise, "rows": (first, *proof.rows[1:])})

    def teacher_images(self, tell: Tell, first_seed: int = 0) -> GeneratedImages:
        """What the teacher draws; drawn once and kept in the folder."""
        key = sha256_of([self.weights_sha256, self.settings.drawn_as(), first_seed])[:16]
        path = self.folder / "teacher" / f"{key}.safetensors"
        if path.exists():
            return GeneratedImages(**load_file(path))
        images = self._draw(
            self.teacher, first_seed, self.settings.captions, lambda _, n, eta_s: tell("the teacher draws", n, eta_s)
        )
        tensors = save({name: tensor.contiguous() for name, tensor in vars(images).items()})
        write_whole(path, tensors, force=True)  # another process may have drawn the same meanwhile
        return images

    def _draw(self, unet: Any, first_seed: int, count: int, tell: Tell) -> GeneratedImages:
        """One image for each of the first captions; the i-th starts from the same noise for every UNet."""
        self._pipeline.register_modules(unet=unet)
        captions = self._judgements[count].captions
        steps, guidance, progress = self.settings.drawing_steps, self.family.guidance_scale, partial(tell, "drawing")
        with machine.quiet_torch(self.settings.threads):
            return generate_images(self._pipeline, captions, first_seed, steps, guidance, progress)

    def _judged(self, images: GeneratedImages, teacher: GeneratedImages) -> dict[str, Judged]:
        """Every metric with its samples, beside the teacher's images of the same captions."""
        count = len(images.images)
        first = GeneratedImages(**{name: tensor[:count] for name, tensor in vars(teacher).items()})
        judgement = self._judgements[count]
        metrics = judgement.samples(images) | judgement.agreement(images, first)
        return {name: Judged.rounded(one) for name, one in metrics.items()}


def train_and_judge(row: Row, seed: int, judge: ProofJudge, tell: Tell) -> ProofResult:
    """Train one student, resuming an interrupted training, and judge what it draws."""
    settings, folder = judge.settings, judge.folder / "students" / row.name / f"seed-{seed}"
    recipe, training = judge.resolved_recipe(row), settings.training(row, seed, judge.folder)
    previews = [preview_stage(recipe, stage, training) for stage in recipe.stages]

    def progress(stage: str, count: int, eta_s: float | None) -> None:
        tell(f"{row.name}, seed {seed}: {stage}", count, eta_s)

    def on_progress(status: TrainProgress) -> None:
        progress(f"training, {status.stage}", status.step, status.eta_s)

    def train(until: int | None = None) -> DistillResult:
        return distill(str(plan_file(row, judge.folder)), settings.family, folder, training, row.stages(),
                       on_progress=on_progress, command="benchmarks.proof.run", until=until,
                       first_stage_from=_first_stage_from(row, seed, recipe, judge))  # fmt: skip

    def student_in(place: Path) -> Any:
        return loading.load_unet(load_family(str(place)), str(place))

    drawn_as = sha256_of([settings.data, settings.judged_on, settings.curve, settings.drawing_steps])[:8]
    captions = settings.captions if row.decisive else settings.ablation_captions

    def point(quarter: int) -> CurvePoint:
        until, kept = (
            quarter * training.steps // CHECKPOINTS,
            folder.with_name(f"{folder.name}-{quarter}-{drawn_as}.json"),
        )
        if not kept.exists():
            train(until if quarter < CHECKPOINTS else None)
            student = student_in(folder / PAUSED if quarter < CHECKPOINTS else folder)
            judged, _ = judge.metrics(student, settings.curve, progress)
            drawn = {name: one.value for name, one in judged.items()}
            write_whole(kept, CurvePoint(pictures=until * settings.batch, metrics=drawn).model_dump_json())
        return CurvePoint.model_validate_json(kept.read_text())

    quarters = range(1, CHECKPOINTS + 1) if row.decisive and settings.curve else ()
    curve, result, student = [point(quarter) for quarter in quarters], train(), student_in(folder)
    metrics, drawing_seconds = judge.metrics(student, captions, progress)
    return ProofResult(
        seed=seed,
        seconds=sum(stage.seconds for stage in result.stages),
        pictures=sum(stage.steps for stage in result.stages) * settings.batch,
        peak_memory_bytes=max(preview.memory.total for preview in previews),
        trainable=result.stages[-1].audit.trainable.params,
        student_sha256=result.student_sha256,
        metrics=metrics,
        curve=tuple(curve),
        drawing_seconds=round(drawing_seconds, 1),
        gates=result.stages[-1].gates,
        environment=machine.environment("cpu", settings.threads or torch.get_num_threads()) | {"commit": commit()},
    )


def _first_stage_from(row: Row, seed: int, recipe: ResolvedRecipe, judge: ProofJudge) -> Path | None:
    """The folder of what an ablation ablates, where that has trained the same first stage already."""
    first, place = recipe.stages[0], judge.folder / "students" / str(row.ablates) / f"seed-{seed}"
    if row.ablates is None or len(recipe.stages) == 1 or not finished_stages(place, [first]):
        return None
    _, base = chosen_rows(judge.settings, [row.ablates])
    own, theirs = ({**one.fingerprint(), "plan_sha256": list(map(str, one.plan.edits))}
                   for one in (first, judge.resolved_recipe(base).stages[0]))  # fmt: skip
    return place if own == theirs else None


def commit() -> str:
    """Of the working tree; "unknown" outside of one."""
    words = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12")
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
