"""Trains one student of a row, and judges what it draws for held-out captions beside the teacher."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save

from asdm.data import datasets
from asdm.distill.context import TrainProgress
from asdm.distill.dry_run import preview_stage
from asdm.distill.run import distill
from asdm.distill.stages import ResolvedRecipe, resolve_recipe
from asdm.evaluate.generation import GeneratedImages, generate_images
from asdm.evaluate.quality import Judgement
from asdm.measure import machine
from asdm.models import loading, networks
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.models.sources import own_weights
from asdm.utils import registry
from asdm.utils.io import sha256_of, write_whole
from asdm.utils.progress import Tell
from benchmarks.proof.records import Judged, Proof, ProofResult
from benchmarks.proof.rows import ProofSettings, Row, plan_file


class ProofJudge:
    """A teacher, the networks that judge, and the captions that everyone draws from the same noise."""

    def __init__(self, settings: ProofSettings, folder: Path) -> None:
        """Load everything; raises ValueError for more captions than there are."""
        self.settings, self.folder, self.family = settings, folder, load_family(settings.family)
        dataset = registry.load("asdm.data.datasets", settings.data)
        data, others = (dataset.open_data(split, self.family.size) for split in (settings.judged_on, settings.split))
        count = settings.captions or len(data)
        if count > len(data):
            place = f"{settings.data} {settings.judged_on}"
            raise ValueError(f"captions must be at most {len(data)} for {place}, got {count}.")
        picks = np.random.default_rng(0).permutation(len(data))[:count]
        real = [data[int(i)] for i in picks]
        pool = sorted({*datasets.captions_of(data, len(data)), *datasets.captions_of(others, len(others))})
        self.judgement = Judgement(networks.Judge.load(), networks.Vgg.load(), real, pool)
        self.teacher = loading.load_unet(self.family, own_weights(self.family))
        self.weights_sha256 = loading.weights_sha256(self.teacher)

    @cached_property
    def _pipeline(self) -> Any:
        return pipeline(self.family, self.teacher, Setup())

    def resolved_recipe(self, row: Row) -> ResolvedRecipe:
        """A row's recipe with its plan."""
        plan, settings = str(plan_file(row, self.folder)), self.settings
        return resolve_recipe(plan, settings.family, settings.training(0), row.stages())

    def metrics(self, unet: Any, tell: Tell) -> dict[str, Judged]:
        """Every metric of what a UNet draws."""
        images = self._draw(unet, 0, tell)
        tell("judging", 0, None)
        return self._judged(images, self.teacher_images(tell))

    def with_teacher(self, proof: Proof, tell: Tell) -> Proof:
        """A proof with the teacher's own row, and with the teacher's images of other seeds as the noise floor."""
        images, again = self.teacher_images(tell), self.teacher_images(tell, len(self.judgement.real))
        result = ProofResult(student_sha256=self.weights_sha256, metrics=self._judged(images, images))
        first = proof.rows[0].model_copy(update={"results": (result,)})
        noise = self._judged(again, images)
        return proof.model_copy(update={"noise": noise, "rows": (first, *proof.rows[1:])})

    def teacher_images(self, tell: Tell, first_seed: int = 0) -> GeneratedImages:
        """What the teacher draws; drawn once and kept in the folder."""
        key = sha256_of([self.weights_sha256, self.settings.identity(), first_seed])[:16]
        path = self.folder / "teacher" / f"{key}.safetensors"
        if path.exists():
            return GeneratedImages(**load_file(path))
        images = self._draw(self.teacher, first_seed, lambda _, n, eta_s: tell("the teacher draws", n, eta_s))
        tensors = save({name: tensor.contiguous() for name, tensor in vars(images).items()})
        write_whole(path, tensors, force=True)  # another process may have drawn the same meanwhile
        return images

    def _draw(self, unet: Any, first_seed: int, tell: Tell) -> GeneratedImages:
        """One image per caption; the i-th starts from the same noise for every UNet."""
        self._pipeline.register_modules(unet=unet)
        steps, guidance, progress = self.settings.drawing_steps, self.family.guidance_scale, partial(tell, "drawing")
        with machine.quiet_torch(self.settings.threads):
            return generate_images(self._pipeline, self.judgement.captions, first_seed, steps, guidance, progress)

    def _judged(self, images: GeneratedImages, teacher: GeneratedImages) -> dict[str, Judged]:
        """Every metric, its samples to six figures, which is more than a judge can tell."""
        metrics = self.judgement.samples(images) | self.judgement.agreement(images, teacher)
        return {
            name: Judged(value=one.value, of=one.of, samples=tuple(float(f"{value:.6g}") for value in one.each))
            for name, one in metrics.items()
        }


def train_and_judge(row: Row, seed: int, judge: ProofJudge, tell: Tell) -> ProofResult:
    """Train one student, resuming an interrupted training, and judge what it draws."""
    settings, folder = judge.settings, judge.folder / "students" / row.name / f"seed-{seed}"
    recipe, training = judge.resolved_recipe(row), settings.training(seed)
    previews = [preview_stage(recipe, stage, training) for stage in recipe.stages]

    def progress(stage: str, count: int, eta_s: float | None) -> None:
        tell(f"{row.name}, seed {seed}: {stage}", count, eta_s)

    def on_progress(status: TrainProgress) -> None:
        progress(f"training, {status.stage}", status.step, status.eta_s)

    plan, command = str(plan_file(row, judge.folder)), "benchmarks.proof.run"
    result = distill(plan, settings.family, folder, training, row.stages(), on_progress=on_progress, command=command)
    student = loading.load_unet(load_family(str(folder)), str(folder))
    return ProofResult(
        seed=seed,
        seconds=sum(stage.seconds for stage in result.stages),
        pictures=sum(stage.steps for stage in result.stages) * settings.batch,
        peak_memory_bytes=max(preview.memory.total for preview in previews),
        trainable=result.stages[-1].audit.trainable.params,
        student_sha256=result.student_sha256,
        metrics=judge.metrics(student, progress),
    )
