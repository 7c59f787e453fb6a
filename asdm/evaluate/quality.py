"""Judge the images of a teacher and its students with every metric, each beside a noise floor.

The judge is passed in, so that no model is judged by the network that trained it. The noise floor of a metric is what
the teacher's own value changes by when it generates from other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from asdm.evaluate import metrics
from asdm.evaluate.generation import GeneratedImages
from asdm.evaluate.metrics import JudgedImages, Reference, Samples
from asdm.records.bench import Metric


class Judgement(Reference):
    """Judges images beside the teacher's and beside real ones."""

    def of(self, everyone: Sequence[GeneratedImages], again: GeneratedImages) -> list[dict[str, Metric]]:
        """Every metric of the teacher, which comes first, and of its students.

        `again` are the teacher's images from other seeds.
        """
        judge = self.beside(everyone[0], again)
        return [judge(images) for images in everyone]

    def beside(
        self, teacher: GeneratedImages, again: GeneratedImages
    ) -> Callable[[GeneratedImages], dict[str, Metric]]:
        """A function that judges a student beside one teacher, which is itself judged only once."""
        teacher_values, noise = self.alone(teacher), self.alone(again)
        floors = _metrics(self.agreement(again, teacher))

        def judge(images: GeneratedImages) -> dict[str, Metric]:
            own = teacher_values if images is teacher else self.alone(images)
            alone = {
                name: _beside(metric, teacher_values[name].value, abs(teacher_values[name].value - noise[name].value))
                for name, metric in own.items()
            }
            agreed = _metrics(self.agreement(images, teacher))
            return alone | {name: _beside(metric, 0.0, floors[name].value) for name, metric in agreed.items()}

        return judge

    def alone(self, images: GeneratedImages) -> dict[str, Metric]:
        """Metrics against the real images and captions."""
        return _metrics(self.samples(images))

    def samples(self, images: GeneratedImages) -> dict[str, Samples]:
        """Samples of the metrics against the real images and captions."""
        judged = JudgedImages.of(self.judge, images)
        rows = {name: m.samples(judged, self.real_images, self) for name, m in metrics.modules("real").items()}
        return {name: samples for name, samples in rows.items() if samples is not None}

    @torch.inference_mode()
    def agreement(self, images: GeneratedImages, teacher: GeneratedImages) -> dict[str, Samples]:
        """Samples of the metrics against the teacher's images, which a student generates from the same seeds."""
        judged, target = (JudgedImages.of(self.judge, one) for one in (images, teacher))
        rows = {name: m.samples(judged, target, self) for name, m in metrics.modules("teacher").items()}
        return {name: samples for name, samples in rows.items() if samples is not None}


def _metrics(samples: dict[str, Samples]) -> dict[str, Metric]:
    return {name: one.metric() for name, one in samples.items()}


def _beside(metric: Metric, teacher: float, noise_floor: float) -> Metric:
    return metric.model_copy(update={"teacher": teacher, "noise_floor": noise_floor})
