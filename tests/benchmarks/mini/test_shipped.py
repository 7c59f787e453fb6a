"""The mini as it ships: what its folders hold, and that it draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPModel

from asdm.data.datasets import emoji
from asdm.evaluate.generation import decode_latents, generate_images
from asdm.evaluate.metrics import JudgedImages
from asdm.evaluate.metrics.recall_at_1 import CANDIDATES, recalls
from asdm.mini import PIPELINE
from asdm.models.families import load_family
from asdm.models.loading import load_unet, meta_unet
from asdm.models.networks import ClipJudge, Judge, Vgg
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.unet import blocks
from benchmarks.mini.evaluate import some
from benchmarks.mini.parts import unet as unet_part
from benchmarks.mini.ship import HERE, LIMIT_BYTES, ship


@pytest.fixture(scope="module")
def mini():
    family = load_family("mini")
    return pipeline(family, load_unet(family, str(PIPELINE)), Setup())


def test_it_has_stable_diffusions_topology():
    shapes, sd15 = meta_unet(load_family("mini")), meta_unet(load_family("sd15"))
    assert [unit.fqn for unit in blocks.iter_units(shapes)] == [unit.fqn for unit in blocks.iter_units(sd15)]
    assert len(list(blocks.iter_units(shapes))) == 38
    assert all(
        load_family("mini").unet[key] == value for key, value in unet_part.CONFIG.items() if key != "sample_size"
    )


def test_plain_diffusers_loads_and_runs_it():
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red heart, twemoji style", num_inference_steps=2, height=96, width=96, output_type="np").images[0]
    assert image.shape == (96, 96, 3)


def test_weights_are_fp16_safetensors_and_few():
    from safetensors import safe_open

    files = sorted(HERE.rglob("*.safetensors"))
    assert {file.relative_to(HERE).parts[0] for file in files} == {"weights", "clip", "vgg", "judge"}
    assert sum(file.stat().st_size for file in files) <= LIMIT_BYTES
    assert not [file for suffix in ("bin", "pt", "pth", "ckpt", "pkl") for file in HERE.rglob(f"*.{suffix}")]
    for file in files:
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds == {"F16"}, file


def test_the_vae_rebuilds_held_out_drawings_to_24_db_from_centred_latents():
    vae = AutoencoderKL.from_pretrained(PIPELINE / "vae", torch_dtype=torch.float32).eval()
    images = some(emoji.open_data("held_out"), 60).images()
    with torch.inference_mode():
        latents = vae.encode(images).latent_dist.mean
        rebuilt = decode_latents(vae, latents)
    mse = (rebuilt - images).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / mse)).mean() >= 24
    assert latents.mean((0, 2, 3)).abs().max() < 0.2
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_the_judge_finds_the_caption_of_real_drawings_far_more_often_than_chance():
    data, judge = some(emoji.open_data("train"), 300), Judge.load()
    embeddings = JudgedImages(judge, data.images()).embeddings
    hits = recalls(judge, embeddings, data.captions, data.captions)
    assert hits.mean() >= 0.9
    assert len(set(data.captions)) > CANDIDATES


def test_the_judge_sees_pictures_of_any_size_at_its_own():
    judge = Judge.load()
    small, large = (some(emoji.open_data("train", size), 40).images() for size in (Judge.SIZE, emoji.SIZE))
    with torch.inference_mode():
        same, other = (judge.image_embedding(images) for images in (small, large))
        assert torch.equal(judge.features(large), judge.features(judge.scaled(large)))
    assert (same * other).sum(1).min() > 0.9


def test_the_clip_is_transformers_own_and_judges_too():
    assert CLIPModel.from_pretrained(HERE / "clip").config.text_config.hidden_size == 128
    judge, data = ClipJudge(str(HERE / "clip")), emoji.open_data("train")
    assert judge.text_embedding(list(data.captions[:3])).norm(dim=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert judge.image_embedding(data.images()[:2]).shape[0] == 2


def test_the_vgg_knows_subcategories_and_names_its_layers():
    data, vgg = some(emoji.open_data("train", 64), 300), Vgg.load()
    with torch.inference_mode():
        scores = vgg(data.images())
        shapes = [tuple(f.shape[1:]) for f in vgg.features(data.images()[:1], ("relu1_2", "relu4_3"))]
    right = [vgg.config["classes"][i] == kind for i, kind in zip(scores.argmax(1), data.subcategories, strict=True)]
    assert sum(right) / len(right) > 0.1  # of 90 kinds
    assert shapes == [(16, 64, 64), (96, 8, 8)]


def test_a_picture_shows_its_caption_rather_than_another(mini):
    captions = ["red heart, twemoji style", "blue square, twemoji style", "evergreen tree, openmoji style"]
    drawn = generate_images(mini, captions, first_seed=0, steps=10, guidance_scale=3.0)
    judge = Judge.load()
    with torch.inference_mode():
        scores = judge.image_embedding(drawn.images) @ judge.text_embedding(captions).T
    assert scores.argmax(1).tolist() == [0, 1, 2]


def test_training_logs_ship_with_every_part():
    for part in ("vae", "clip", "unet", "vgg", "judge"):
        lines = [json.loads(line) for line in (HERE / "logs" / f"{part}.jsonl").read_text().splitlines()]
        assert lines[-1]["loss"] < lines[0]["loss"]


def test_no_config_tells_where_it_was_made():
    for file in HERE.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text()), file


def test_too_many_weights_do_not_ship(tmp_path: Path):
    (tmp_path / "from" / "vgg").mkdir(parents=True)
    (tmp_path / "from" / "vgg" / "model.safetensors").write_bytes(b"0" * (LIMIT_BYTES + 1))
    with pytest.raises(ValueError, match=r"take 25\.0 MB; at most 25 MB ship"):
        ship(tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to").exists()
    with pytest.raises(ValueError, match="holds none of weights, clip, vgg, judge"):
        ship(tmp_path, tmp_path / "to")
