"""Metrics of the literature, as torchmetrics and torch-fidelity compute them, on pictures that stay on disk.

The real weights of Inception and CLIP are not here: tiny networks stand in for them, the same ones on both sides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from asdm.data.datasets import Example
from asdm.evaluate import quality
from asdm.evaluate.generation import StoredImages
from asdm.evaluate.metrics import (
    JudgedImages,
    Reference,
    _inception,
    clip_score,
    fid,
    inception_score,
    kid,
    lpips_to_teacher,
    per_half,
)
from asdm.evaluate.metrics.frechet_distance import frechet_distance
from asdm.evaluate.settings import BenchSettings, with_protocol
from asdm.mini import PIPELINE
from asdm.models.networks import ClipJudge

CLIP = PIPELINE.parent / "clip"


class Tiny(nn.Module):
    """Eight features and four logits of pictures of 8 bits, in place of Inception's 2,048 and 1,008."""

    logits = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Linear(3 * 16, 8), nn.Linear(8, 4, bias=False)
        self.num_features = 8

    @torch.no_grad()
    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        small = nn.functional.adaptive_avg_pool2d(levels.float(), 4).flatten(1)
        return self.features(small / 64)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        levels = images if images.dtype == torch.uint8 else _inception.in_8_bits(images)
        own = self.forward(levels)
        return own if images.dtype == torch.uint8 else torch.cat([own, self.head(own)], dim=1)


def pictures(folder: Path, count: int, seed: int, form: str = "png") -> StoredImages:
    """Smooth random pictures of 40×40 pixels in a folder."""
    rng, stored = np.random.default_rng(seed), StoredImages(folder, count, with_latents=False)
    folder.mkdir(parents=True)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(stored.picture_file(i), "PNG" if form == "png" else form)
    return stored


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredImages, StoredImages]:
    root = tmp_path_factory.mktemp("sets")
    return pictures(root / "real", 90, 0), pictures(root / "generated", 90, 1)


def reference(real: StoredImages, judge: Any = None, captions: Any = None) -> Reference:
    examples = [Example(torch.empty(0), caption) for caption in captions or [""] * len(real)]
    return Reference(judge, None, examples, [], {"inception": Tiny()}, real_pictures=real)


def levels(stored: StoredImages) -> torch.Tensor:
    return _inception.in_8_bits(stored.images_in(range(len(stored))))


def test_fid_kid_and_is_are_torchmetrics_own(sets: tuple[StoredImages, StoredImages]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    real, generated = sets
    given = reference(real)
    own = JudgedImages.of(None, generated)
    found = {module.__name__.rpartition(".")[2]: module.samples(own, given.real_images, given).value
             for module in (fid, kid, inception_score)}  # fmt: skip

    theirs: Any = FrechetInceptionDistance(feature=Tiny())
    for part, is_real in ((levels(real), True), (levels(generated), False)):
        theirs.update(part, real=is_real)
    assert found["fid"] == pytest.approx(float(theirs.compute()), rel=1e-4)
    assert found["fid"] > 0.01

    theirs = KernelInceptionDistance(feature=Tiny(), subsets=100, subset_size=45)
    for part, is_real in ((levels(real), True), (levels(generated), False)):
        theirs.update(part, real=is_real)
    torch.manual_seed(0)
    assert found["kid"] == pytest.approx(float(theirs.compute()[0]), rel=1e-5)

    theirs = InceptionScore(feature=nn.Identity())
    theirs.update(_inception.logits(own, given.networks["inception"]))
    torch.manual_seed(0)
    assert found["inception_score"] == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


@pytest.mark.parametrize("n", [40, 50, 70, 300])
def test_the_interval_of_kid_is_as_wide_as_kid_varies(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures than a subset has, as many, less than twice as many, and many more."""
    monkeypatch.setattr(kid, "SUBSET", 50)
    generator, values, widths = torch.Generator().manual_seed(0), [], []
    for _ in range(40):
        own, real = (torch.randn(n, 3, generator=generator) + shift for shift in (0.5, 0.0))
        subsets = kid.kernel_distances(own, real, min(n // 2 if n < 50 else 50, n))
        each = kid.as_halves(own, real, subsets)
        values.append(float(each.mean()))
        widths.append(float(each.std()))
        assert values[-1] == pytest.approx(float(subsets.mean()), rel=1e-4)
    assert 0.7 < np.mean(widths) / np.std(values) < 1.4


def test_the_interval_of_is_is_as_wide_as_it_varies() -> None:
    generator, values, widths = torch.Generator().manual_seed(0), [], []
    for _ in range(60):
        found = inception_score.surer(inception_score.inception_scores(2 * torch.randn(200, 4, generator=generator)))
        values.append(found.mean())
        widths.append(found.std(ddof=1))
    assert 0.7 < np.mean(widths) / np.std(values) < 1.4


def test_the_distances_are_torch_fidelitys_own(sets: tuple[StoredImages, StoredImages]) -> None:
    """On the same features; torch-fidelity adds its own Inception in front."""
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    scores = pytest.importorskip("torch_fidelity.metric_isc")
    real, generated = (_inception.features(JudgedImages.of(None, one), Tiny()) for one in sets)
    statistics = [
        {"mu": part.double().mean(0).numpy(), "sigma": np.cov(part.double().numpy(), rowvar=False)}
        for part in (generated, real)
    ]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(generated, real) == pytest.approx(next(iter(theirs.values())), rel=1e-3)
    logits = _inception.logits(JudgedImages.of(None, sets[1]), Tiny())
    isc = scores.isc_features_to_metric(logits, splits=1, shuffle=False)
    p = logits.double().softmax(1)
    by_hand = float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp())
    assert next(iter(isc.values())) == pytest.approx(by_hand, rel=1e-4)


def test_inception_is_torch_fidelitys_own_with_weights_from_a_safetensors_file(
    sets: tuple[StoredImages, StoredImages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights, as the real ones are a download; torchmetrics' with `antialias=False` is the same network."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from safetensors.torch import save_file
    from torchmetrics.image.fid import NoTrainInceptionV3

    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        weights = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    save_file(weights, tmp_path / "inception.safetensors")
    network = fid.load_network(str(tmp_path / "inception.safetensors"))
    torch.save(weights, tmp_path / "inception.pth")
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "inception.pth"), antialias=False)
    three = StoredImages(sets[0].folder, 3, with_latents=False)
    found = _inception.features(JudgedImages.of(None, three), network)
    assert found.shape == (3, 2048)
    assert torch.allclose(found, theirs(levels(three)), atol=1e-4)
    with pytest.raises(ValueError, match="is a pickle"):
        fid.load_network(str(tmp_path / "inception.pth"))


def test_fid_of_a_set_with_itself_is_nothing_and_jpeg_copies_are_told_apart(
    sets: tuple[StoredImages, StoredImages], tmp_path: Path
) -> None:
    real, _ = sets
    given, (png, jpeg) = reference(real), (tmp_path / "png", tmp_path / "jpeg")
    for folder, form, more in ((png, "PNG", {}), (jpeg, "JPEG", {"quality": 30})):
        folder.mkdir()
        for i in range(len(real)):
            with Image.open(real.picture_file(i)) as picture:
                picture.save(folder / f"{i:08d}.png", form, **more)
    values = {}
    for folder in (png, jpeg):
        own = JudgedImages.of(None, StoredImages(folder, len(real), with_latents=False))
        values[folder] = fid.samples(own, given.real_images, given).value
    assert values[png] == pytest.approx(0, abs=1e-6)
    assert values[jpeg] > 1e-4


def test_clip_score_is_torchmetrics_own(sets: tuple[StoredImages, StoredImages]) -> None:
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update
    from transformers import CLIPProcessor

    _, generated = sets
    judge = ClipJudge(str(CLIP))
    captions = [f"a red heart, number {n}" for n in range(len(generated))]
    given = reference(generated, judge, captions)
    own = clip_score.samples(JudgedImages.of(judge, generated), given.real_images, given)
    processor = CLIPProcessor(judge.processor, judge.tokenizer)

    class Model(nn.Module):
        """torchmetrics expects features as tensors."""

        config = judge.clip.config

        def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return judge.clip.visual_projection(judge.clip.vision_model(pixel_values=pixel_values).pooler_output)

        def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return judge.clip.text_projection(judge.clip.text_model(input_ids=ids, attention_mask=mask).pooler_output)

    with torch.inference_mode():
        theirs, _ = _clip_score_update(list(levels(generated)), captions, Model(), processor)
    assert own.each == pytest.approx(theirs.clamp(min=0).numpy(), abs=1e-3)


def test_long_captions_are_cut_and_that_is_said(capsys: Any) -> None:
    judge = ClipJudge(str(CLIP))
    words = judge.text_embedding(["heart " * 300, "heart " * 400])
    assert torch.allclose(words[0], words[1], atol=1e-5)
    assert f"2 of 2 captions are longer than the {judge.tokens} tokens" in capsys.readouterr().err


def test_lpips_is_torchmetrics_own(sets: tuple[StoredImages, StoredImages], tmp_path: Path) -> None:
    """With a trunk of random weights, in torchvision's names."""
    from safetensors.torch import save_file
    from torchmetrics.functional.image.lpips import _lpips_update
    from torchvision.models import vgg16

    torch.manual_seed(0)
    save_file(vgg16().features.state_dict(prefix="features."), tmp_path / "vgg.safetensors")
    network = lpips_to_teacher.load_network(str(tmp_path / "vgg.safetensors"))
    own, teacher = (StoredImages(one.folder, 3, with_latents=False) for one in sets)
    given = Reference(None, None, [], [], {"lpips": network})
    found = lpips_to_teacher.samples(JudgedImages.of(None, own), JudgedImages.of(None, teacher), given)
    images = [one.images_in(range(3)) for one in (own, teacher)]
    theirs: Any = _lpips_update(*images, network, normalize=False)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs  # of older releases
    assert found is not None
    assert found.each == pytest.approx(theirs.flatten().numpy(), rel=1e-5)
    assert (found.each > 0).all()


def test_fewer_pictures_than_features_are_marked() -> None:
    few, enough = torch.randn(20, 30), torch.randn(60, 30)
    assert per_half(frechet_distance, few, few + 1).note == "20 pictures are fewer than the 30 features"
    assert per_half(frechet_distance, enough, enough + 1).note is None


# ---------------------------------------------------------------------------------------------- which networks


def test_on_foreign_pictures_no_emoji_network_stands_in(capsys: Any) -> None:
    found = quality.open_networks(BenchSettings(), "folder:photos")
    assert found["judge"] is None
    assert found["vgg"] is None
    assert found["networks"] == {}
    said = capsys.readouterr().err
    assert "Left out: FID, KID, IS; " in said
    assert "Left out: LPIPS to teacher; torchvision's VGG-16 is not available" in said
    assert "is not in the hub's cache: metrics of a CLIP are left out" in said
    on_emoji = quality.open_networks(BenchSettings(), "emoji")
    assert type(on_emoji["judge"]).__name__ == "Judge"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": ["fid"]}, "torch-fidelity|Inception are not available"),
        ({"metric": ["beauty"]}, "unknown metric 'beauty'; choose from frechet_distance"),
        ({"metric": ["hps_v2"]}, "needs the package 'imscore'"),
        ({"network": ["inception"]}, "--network takes NAME=FILE"),
        ({"network": ["lpips=nowhere.safetensors"]}, r"nowhere\.safetensors, do not exist"),
        ({"judge": "./no/where"}, r"cannot load a CLIP from \./no/where"),
    ],
)
def test_what_was_named_must_be_there(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quality.open_networks(BenchSettings(**changes), "folder:photos")


def test_a_protocol_fills_in_what_is_not_given() -> None:
    found = with_protocol(BenchSettings(protocol="bk-sdm", pictures=10))
    assert (found.pictures, found.steps, found.judged_size, found.quality) == (10, 25, 256, True)
    assert found.judge == "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
    with pytest.raises(ValueError, match="unknown protocol 'bk'; choose from bk-sdm"):
        with_protocol(BenchSettings(protocol="bk"))


def test_the_teachers_pictures_are_drawn_once(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asdm.evaluate import generation

    drawn: list[int] = []
    draw = generation._draw
    monkeypatch.setattr(generation, "_draw", lambda *args: (drawn.append(len(args[1])), draw(*args))[1])
    line = ["asdm", "bench", "--teacher", "mini", "--student", "bk_sdm_tiny", "--quality", "--pictures", "3", "--steps"]
    line += ["2", "--guidance-scale", "1", "--time-budget", "0.2", "--seed", "77", "--metric", "latent_mse_to_teacher"]
    first = run(*line, "-o", "a.json", "--json")
    assert first.code == 0, first.err
    assert drawn == [3, 3, 3]  # the teacher twice, its student once
    again = run(*line, "-o", "b.json", "--json")
    assert drawn == [3, 3, 3, 3], "the student alone"
    qualities = [json.loads(done.out)["students"][0]["quality"] for done in (first, again)]
    assert qualities[0] == qualities[1]
    assert "The teacher's pictures are kept in" in again.err
