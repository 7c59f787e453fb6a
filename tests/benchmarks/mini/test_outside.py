"""The judge from outside: it finds a drawing's own reconstruction, and tells a blurred set from a sharp one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from asdm.data.datasets import emoji
from asdm.evaluate.metrics import JudgedImages
from asdm.evaluate.metrics.frechet_distance import frechet_distance
from benchmarks.mini.evaluate import some, without
from benchmarks.mini.outside import OutsideJudge, frechet, judged_by, matches


@pytest.fixture(scope="module")
def judge() -> OutsideJudge:
    return OutsideJudge.load()


def test_blur_costs_little_and_other_drawings_everything(judge: OutsideJudge) -> None:
    images = some(emoji.open_data("train"), 10).images()
    real = JudgedImages(judge, images)
    blurred = judged_by(judge, F.avg_pool2d(images, 3, 1, 1), real, real, candidates=8)
    exchanged = judged_by(judge, images.roll(2, 0), real, real, candidates=8)
    assert blurred["found_from_outside"].value > 0.6 > 0.1 > exchanged["found_from_outside"].value
    assert blurred["frechet_from_outside"].value > 1 > exchanged["frechet_from_outside"].value


def test_the_distance_is_torchmetrics() -> None:
    a, b = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (20, 50))
    assert frechet(a, 2 * b + 1) == pytest.approx(frechet_distance(a, 2 * b + 1), rel=1e-4)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_it_looks_at_pictures_of_any_size_as_unit_vectors(judge: OutsideJudge) -> None:
    images = some(emoji.open_data("train"), 2).images()
    small, large = (judge.image_embedding(F.interpolate(images, (size, size), mode="bicubic")) for size in (64, 128))
    assert small.norm(dim=1) == pytest.approx([1, 1], abs=1e-5)
    assert (small * large).sum(1).min() > 0.9


def test_a_match_is_a_picture_nearer_to_its_own_than_to_any_other() -> None:
    real = torch.eye(4)
    drawn = torch.tensor([[0.9, 0.1, 0, 0], [0, 0.4, 0.6, 0], [0, 0, 1.0, 0]])
    assert matches(drawn, real[:3], real, candidates=4).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="5 pictures to choose from are needed, got 4"):
        matches(drawn, real[:3], real, candidates=5)


def test_some_drawings_are_spread_over_all_of_them() -> None:
    data = emoji.open_data("held_out")
    few = some(data, 10)
    assert len(few) == 10
    assert (few.names[0], few.names[-1]) == (data.names[0], data.names[-1])
    assert set(few.styles) == set(emoji.STYLES)
    assert torch.equal(few.pixels[0], data.pixels[0])
    assert len(some(data, 10_000)) == len(data)
    rest = without(data, set(few.captions))
    assert set(rest.captions) == set(data.captions) - set(few.captions)
    assert len(rest) == len(data) - len(few)
