"""The teacher with the judge and the held-out captions: it draws, and what students draw is judged beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save

from asdm.data import datasets
from asdm.evaluate.generation import GeneratedImages, generate_images
from asdm.evaluate.metrics import Samples
from asdm.evaluate.quality import Judgement
from asdm.measure import machine
from asdm.models import loading, networks
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.utils import registry
from asdm.utils.io import sha256_of, write_whole
from asdm.utils.progress import Tell
from benchmarks.proof.records import Judged, Proof, ProofResult
from benchmarks.proof.settings import ProofSettings


@dataclass(frozen=True)
class ProofJudge:
    """A teacher, the networks that judge, and the captions that everyone draws from the same noise."""

    settings: ProofSettings
    folder: Path
    family: Any
    shapes: Any  # the teacher's UNet on the meta device
    teacher: Any
    judgement: Judgement

    @classmethod
    def of(cls, settings: ProofSettings, folder: Path) -> ProofJudge:
        """Load everything; raises ValueError for more captions than there are."""
        family = load_family(settings.family)
        dataset = registry.load("asdm.data.datasets", settings.data)
        data, others = (dataset.open_data(split, family.size) for split in (settings.judged_on, settings.split))
        count = settings.captions or len(data)
        if count > len(data):
            raise ValueError(
                f"captions must be at most {len(data)} for {settings.data} {settings.judged_on}, got {count}."
            )
        picks = np.random.default_rng(0).permutation(len(data))[:count]
        real = [data[int(i)] for i in picks]
        pool = sorted({*datasets.captions_of(data, len(data)), *datasets.captions_of(others, len(others))})
        teacher = loading.load_unet(family, loading.default_weights(family))
        judgement = Judgement(networks.Judge.load(), networks.Vgg.load(), real, pool)
        return cls(settings, folder, family, loading.meta_unet(family), teacher, judgement)

    @cached_property
    def weights_sha256(self) -> str:
        return loading.weights_sha256(self.teacher)

    @cached_property
    def _pipeline(self) -> Any:
        return pipeline(self.family, self.teacher, Setup())

    def metrics(self, unet: Any, tell: Tell) -> dict[str, Judged]:
        """Every metric of what a UNet draws."""
        images = self._draw(unet, 0, tell)
        tell("judging", 0, None)
        return self._judged(images, self.teacher_images(tell))

    def with_teacher(self, proof: Proof, tell: Tell) -> Proof:
        """A proof with the teacher's own row, and with the teacher's images of other seeds as the noise floor."""
        images, again = self.teacher_images(tell), self.teacher_images(tell, len(self.judgement.real))
        result = ProofResult(
            seed=None,
            seconds=0.0,
            pictures=0,
            peak_memory_bytes=0,
            trainable=0,
            student_sha256=self.weights_sha256,
            metrics=self._judged(images, images),
        )
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
        captions = [example.caption for example in self.judgement.real]
        steps, guidance = self.settings.drawing_steps, self.family.guidance_scale
        with machine.quiet_torch(self.settings.threads):
            return generate_images(self._pipeline, captions, first_seed, steps, guidance, partial(tell, "drawing"))

    def _judged(self, images: GeneratedImages, teacher: GeneratedImages) -> dict[str, Judged]:
        return _rounded(self.judgement.samples(images) | self.judgement.agreement(images, teacher))


def _rounded(metrics: Mapping[str, Samples]) -> dict[str, Judged]:
    """Samples to six figures, which is more than a judge can tell."""
    return {
        name: Judged(value=samples.value, of=samples.of, samples=tuple(float(f"{value:.6g}") for value in samples.each))
        for name, samples in metrics.items()
    }
