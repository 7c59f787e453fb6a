"""Quality metrics against closed forms, and a judgement of a student that is its teacher."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from asdm.data.datasets import Example
from asdm.evaluate import metrics, quality
from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.generation import GeneratedImages, generate_images
from asdm.evaluate.metrics import JudgedImages, Reference, per_half
from asdm.evaluate.metrics.clip_score import clip_scores
from asdm.evaluate.metrics.frechet_distance import frechet_distance
from asdm.evaluate.metrics.kernel_distance import kernel_distance
from asdm.evaluate.metrics.perceptual_to_teacher import perceptual_distances
from asdm.evaluate.metrics.recall_at_1 import recalls
from asdm.evaluate.quality import Judgement
from asdm.evaluate.settings import BenchSettings
from asdm.models.networks import Vgg
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.bench import MEASURES
from asdm.utils import registry
from tests.tiny import TINY_WHOLE, make_unet


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class WordJudge:
    """Knows pictures by their mean colour, and captions by the colour that they name."""

    COLOURS, NAMES = torch.eye(3), ("red", "green", "blue")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    def image_embedding(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.features(images), dim=-1)

    def text_embedding(self, captions: Sequence[str]) -> torch.Tensor:
        unknown = torch.full((3,), -1 / 3**0.5)
        known = [self.COLOURS[self.NAMES.index(c)] if c in self.NAMES else unknown for c in captions]
        return torch.stack(known)


# ---------------------------------------------------------------------------------------------- the seam

METRICS = "asdm.evaluate.metrics"


def coloured(noise: float) -> tuple[torch.Tensor, list[str]]:
    """36 images of one colour each, more or less, and the name of that colour."""
    captions = ["red", "green", "blue"] * 12
    colours = WordJudge.COLOURS[[WordJudge.NAMES.index(caption) for caption in captions]]
    images = colours[:, :, None, None] + noise * points(36, 3 * 32 * 32, seed=3).view(36, 3, 32, 32)
    return images.clamp(-1, 1), captions


def reference(pool: Sequence[str]) -> Reference:
    images, captions = coloured(0.1)
    torch.manual_seed(0)
    real = [Example(*one) for one in zip(images, captions, strict=True)]
    return Reference(WordJudge(), Vgg(["a", "b"]).eval(), real, pool, NETWORKS)


class TinyInception:
    """Mean colours as features; how much of each colour there is as logits."""

    logits = 3

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        colours = images.mean((2, 3))
        return torch.cat([colours, 4 * colours], dim=1)


def colour_score(images: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
    """A preference for the colour that the caption names."""
    return (WordJudge().image_embedding(images) * WordJudge().text_embedding(captions)).sum(1)


NETWORKS = {
    "inception": TinyInception(),
    "lpips": lambda a, b: (a - b).square().mean((1, 2, 3)),
    **dict.fromkeys(("pick_score", "hps_v2", "image_reward"), colour_score),
}


@pytest.mark.parametrize("name", registry.names(METRICS))
@torch.inference_mode()
def test_every_metric_tells_better_images_from_worse_ones(name):
    """With its samples, the same ones every time, and in the direction that `MEASURES` says."""
    metric, given = (
        registry.load(METRICS, name),
        reference(["red", "green", "blue", *(f"other {i}" for i in range(200))]),
    )
    assert metric.AGAINST in ("real", "teacher")
    assert metric.__doc__
    real = given.real_images
    target = JudgedImages(given.judge, real.images, real.images[:, :, ::8, ::8])
    worse = target.images.roll(1, 0) if metric.AGAINST == "real" else -target.images
    if name in ("frechet_distance", "kernel_distance", "fid", "kid", "inception_score"):
        worse = target.images * 0.3
    near = metric.samples(JudgedImages(given.judge, target.images, target.latents), target, given)
    far = metric.samples(JudgedImages(given.judge, worse, worse[:, :, ::8, ::8]), target, given)
    again = metric.samples(JudgedImages(given.judge, worse, worse[:, :, ::8, ::8]), target, given)
    assert (near.value > far.value) == MEASURES[name].more_is_better
    assert near.value != far.value
    assert min(near.value, far.value) >= MEASURES[name].lowest - 1e-6
    assert far.value == again.value
    assert (far.each == again.each).all()
    parts = {"kid": 100, "inception_score": 9}.get(name, 200)
    assert len(far.each) == {"pictures": 36, "halves": parts}[far.of]
    assert far.metric().low <= far.value <= far.metric().high


def test_the_catalogue_of_metrics_names_every_file_of_the_seam():
    assert sorted(MEASURES) == registry.names(METRICS)


def test_a_metric_that_the_reference_does_not_allow_is_left_out():
    images, _ = coloured(0.1)
    few = Judgement(**vars(reference(["red", "green", "blue"])) | {"networks": {}})
    assert set(few.alone(GeneratedImages(images, images))) == {"frechet_distance", "kernel_distance", "clip_score"}


# ---------------------------------------------------------------------------------------------- closed forms


def test_the_frechet_distance_of_a_moved_set_is_the_move_squared():
    real = points(500, 6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    move = torch.tensor([1.0, 0, 0, 2.0, 0, 0])
    assert frechet_distance(real + move, real) == pytest.approx(1 + 4, rel=1e-4)


def test_the_kernel_distance_sees_a_move_and_is_unbiased_without_one():
    real, same, moved = points(300, 6), points(300, 6, seed=1), points(300, 6, seed=2) + 1
    assert abs(kernel_distance(same, real)) < 0.02
    assert kernel_distance(moved, real) > 0.5


def test_a_distance_lies_in_its_interval_and_more_pictures_narrow_it():
    def width(n: int) -> float:
        found = per_half(frechet_distance, points(n, 4, seed=1) + 0.5, points(n, 4)).metric()
        assert found.low <= found.value <= found.high
        return found.high - found.low

    assert width(2000) < width(100) / 2


def test_the_clip_score_is_the_cosine_in_per_cent_and_never_negative():
    own = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    seen = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert clip_scores(seen, own) == pytest.approx([100, 60, 0])


def test_recall_counts_pictures_whose_own_caption_is_nearest():
    pool = ["red", "green", "blue", *(f"other {i}" for i in range(200))]
    vectors = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    found = recalls(WordJudge(), vectors, ["red", "green", "other 7"], pool)
    assert found.tolist() == [1, 1, 0]


def test_recall_needs_enough_captions():
    with pytest.raises(ValueError, match="needs at least 200 different captions to choose from, got 2"):
        recalls(WordJudge(), torch.eye(3)[:1], ["red"], ["red", "green"])


def test_perceptual_distance_is_nothing_for_the_same_picture_and_grows_with_change():
    torch.manual_seed(0)
    vgg, image = Vgg(["a", "b"]).eval(), points(2, 3 * 32 * 32).view(2, 3, 32, 32).clamp(-1, 1)
    with torch.inference_mode():
        same = perceptual_distances(vgg, image, image)
        near = perceptual_distances(vgg, image, image * 0.9)
        far = perceptual_distances(vgg, image, -image)
    assert same == pytest.approx([0, 0], abs=1e-6)
    assert (near > 0).all()
    assert (far > near).all()


@pytest.fixture(scope="module")
def painter():
    return pipeline(TINY_WHOLE, make_unet(), Setup(size=64))


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(painter):
    captions = ["red", "green", "blue"]
    together = generate_images(painter, captions, first_seed=5, steps=2, guidance_scale=2.0, batch=3)
    apart = generate_images(painter, captions, first_seed=5, steps=2, guidance_scale=2.0, batch=1)
    assert together.images.shape == (3, 3, *together.images.shape[2:])
    assert torch.allclose(together.latents, apart.latents, atol=1e-4)
    assert together.images.abs().max() <= 1
    other = generate_images(painter, captions[:1], first_seed=6, steps=2, guidance_scale=2.0)
    assert not torch.allclose(other.latents, together.latents[:1], atol=1e-2)


class CountingJudge(WordJudge):
    """Counts how many pictures it is shown."""

    def __init__(self) -> None:
        self.pictures = 0

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.pictures += len(images)
        return super().features(images)


@pytest.fixture(scope="module")
def drawn(painter) -> tuple[GeneratedImages, GeneratedImages]:
    """The teacher's pictures of two series of seeds."""
    captions = ["red", "green", "blue"] * 4
    first, again = (generate_images(painter, captions, seed, 2, 1.0) for seed in (0, 100))
    return first, again


def judgement(judge: WordJudge, pictures: GeneratedImages) -> Judgement:
    torch.manual_seed(0)
    captions = ["red", "green", "blue"] * 4
    real = [Example(image, caption) for image, caption in zip(torch.rand_like(pictures.images), captions, strict=True)]
    pool = ["red", "green", "blue", *(f"other {i}" for i in range(200))]
    return Judgement(judge, Vgg(["a", "b"]).eval(), real, pool)


def test_a_student_that_is_its_teacher_is_judged_like_him(drawn):
    teacher, again = drawn
    himself, found = judgement(WordJudge(), teacher).judge_each([teacher, teacher], again)
    assert found == himself
    assert set(found) == {
        "frechet_distance", "kernel_distance", "clip_score", "recall_at_1",
        "perceptual_to_teacher", "latent_mse_to_teacher",
    }  # fmt: skip
    for name in ("perceptual_to_teacher", "latent_mse_to_teacher"):
        assert found[name].value == pytest.approx(0, abs=1e-6)
        assert found[name].noise_floor > 0
    for metric in found.values():
        assert metric.value == pytest.approx(metric.teacher, abs=1e-6)
        assert np.isfinite([metric.low, metric.high, metric.noise_floor]).all()


@pytest.mark.parametrize("of", ["pictures", "halves"])
def test_a_noise_floor_holds_95_of_100_differences(of):
    """By simulation: what two sets of pictures of one model differ by is within the floor that either pair tells."""
    rng, n = np.random.default_rng(0), 150

    def drawn():
        each = rng.normal(0, 1, n)
        if of == "pictures":
            return metrics.per_image(each)
        halves = np.array([each[rng.permutation(n)[: n // 2]].mean() for _ in range(200)])
        return metrics.Samples(each.mean(), "halves", halves)

    pairs = [(drawn(), drawn()) for _ in range(300)]
    within = [abs(one.value - other.value) <= metrics.apart(one, other) for one, other in pairs]
    assert 0.92 <= np.mean(within) <= 0.98


def test_a_student_is_judged_beside_its_teacher_whoever_else_is(drawn):
    """Another student changes nothing, and the teacher and the real pictures are looked at once for all of them."""
    teacher, again = drawn
    other = GeneratedImages(-teacher.images, teacher.latents + 1)
    one, two = CountingJudge(), CountingJudge()
    alone = judgement(one, teacher).judge_each([teacher, other], again)
    darker = GeneratedImages(teacher.images / 2, teacher.latents)
    both = judgement(two, teacher).judge_each([teacher, other, darker], again)
    assert both[:2] == alone
    assert alone[1]["latent_mse_to_teacher"].value == pytest.approx(1)
    assert alone[1]["clip_score"].teacher == alone[0]["clip_score"].value
    n = len(teacher.images)
    assert one.pictures == n + 2 * (n + n + n)  # real: features; teacher, again, student: embeddings too
    assert two.pictures == one.pictures + 2 * n


def test_metrics_of_halves_are_those_that_are_listed() -> None:
    """The least number of pictures follows from the list; an Inception score is defined for a single picture."""
    modules = {name: module for against in metrics.AGAINST for name, module in metrics.modules(against).items()}
    listed = {name for name, module in modules.items() if re.search('per_half|"halves"', inspect.getsource(module))}
    assert listed - {"inception_score"} == {*metrics.BY_HALVES}


def test_pictures_of_another_vae_text_encoder_or_sampler_are_drawn_again():
    pipe = pipeline(TINY_WHOLE, make_unet(), Setup())
    teacher = ComparedUNet("tiny", "random", pipe.unet, pipe.unet)

    def key():
        return quality._key(
            quality._surroundings(pipe), teacher, ["a cat"], 0, TINY_WHOLE, BenchSettings(guidance_scale=3.0)
        )

    keys = [key()]
    assert key() == keys[0]
    with torch.no_grad():
        for part in (pipe.vae, pipe.text_encoder):
            next(part.parameters()).add_(1e-3)
            keys.append(key())
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert len({*keys, key()}) == 4
