"""SDXL from end to end, on a tiny one: two text encoders, pooled text, sizes and crops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from asdm.data import cache, datasets
from asdm.data.encoder import Encoder
from asdm.data.loader import Slot
from asdm.data.settings import CacheSettings
from asdm.distill import recipes
from asdm.distill.dry_run import preview
from asdm.distill.units import UnitSettings, distill_units
from asdm.models.execution import RANDOM
from asdm.models.families import load_family
from asdm.models.loading import materialise, meta_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm_prof.sensitivity import calibration
from asdm_prof.sensitivity.settings import SensitivitySettings
from tests.asdm.distill.training import WEIGHTS, Stop, go, log_of, settings, stop_after
from tests.tiny import SMALL, TINY, TINY_TEXT_ENCODER, TINY_WHOLE

TEXT = TINY_TEXT_ENCODER | {"num_hidden_layers": 2, "projection_dim": 24}
TINY_XL = replace(
    TINY_WHOLE,
    size=64,
    unet=TINY
    | SMALL
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 32],
        "layers_per_block": 2,
        "sample_size": 8,
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    },
    text_encoders=(TEXT, TEXT | {"architectures": ["CLIPTextModelWithProjection"]}),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole SDXL of two levels and 64×64 pixels with random weights, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("sdxl") / "teacher"
    unet = materialise(meta_unet(TINY_XL), seed=1)
    pipeline(TINY_XL, unet, Setup(weights=RANDOM, seed=1)).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def latents(teacher: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sdxl-latents") / "latents"
    cache.cache_latents(f"folder:{photos}", str(teacher), output, CacheSettings(dtype="fp32"))
    return output


def distil(teacher: Path, photos: Path, output: Path, **more: Any) -> Any:
    defaults: dict[str, Any] = {"recipe": recipes.bk_sdm, "split": "train", "data": f"folder:{photos}", "steps": 4}
    return go(teacher, output, "a_sdm", **defaults | more)


def test_captions_become_what_sdxls_own_pipeline_makes_of_them(teacher: Path, photos: Path) -> None:
    pipe = pipeline(load_family(str(teacher)), None, Setup(weights=str(teacher)))
    encoder = Encoder(pipe)
    example = datasets.open_source(f"folder:{photos}", "train", 64)[3]
    (encoded,) = encoder.encode([Slot(0, example, 3)])
    states, nothing, pooled, no_pooled = pipe.encode_prompt(example.caption)
    assert encoded.pooled is not None
    assert torch.allclose(encoded.states, states[0], atol=1e-5)
    assert torch.allclose(encoded.pooled, pooled[0], atol=1e-5)
    assert torch.equal(encoder.nothing().states, nothing[0])  # zeros, with which SDXL draws
    assert torch.equal(encoder.nothing().pooled, no_pooled[0])
    height, width = 16, 20  # of the file, scaled by 4 and cut to 64 × 64
    assert encoded.time_ids is not None
    assert encoded.time_ids.tolist() == [height, width, 0, 8, 64, 64]


def test_distillation_lowers_the_loss_and_the_student_draws_and_exports(
    teacher: Path, photos: Path, tmp_path: Path, run: Any
) -> None:
    result = distil(teacher, photos, tmp_path / "s", steps=16, learning_rate=3e-3, ema=0.0, hold_out=0.3)
    (stage,) = result.stages
    assert stage.last["output"] < stage.first["output"]
    assert result.held_out.error < result.held_out.untrained
    assert UNet2DConditionModel.from_pretrained(tmp_path / "s").config.addition_embed_type == "text_time"
    drawn = run("asdm", "generate", "a cat", "--family", teacher, "--student", "s", "--steps", 2, "-o", "cat.png")
    assert drawn.code == 0, drawn.err
    exported = run("asdm", "export", "s", "--to", "diffusers", "-o", "exported")
    assert exported.code == 0, exported.err


def test_a_stopped_run_ends_with_the_same_bits_from_pictures_and_from_latents(
    teacher: Path, photos: Path, latents: Path, tmp_path: Path
) -> None:
    first = {}
    for kind, data in (("folder", f"folder:{photos}"), ("latents", f"latents:{latents}")):
        whole, stopped = tmp_path / f"{kind}-whole", tmp_path / f"{kind}-stopped"
        more: dict[str, Any] = {"recipe": recipes.without_incubation, "data": data, "steps": 2}
        distil(teacher, photos, whole, **more)
        with pytest.raises(Stop):
            distil(teacher, photos, stopped, on_progress=stop_after(1, "combined"), **more)
        distil(teacher, photos, stopped, **more)
        assert (stopped / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
        first[kind] = log_of(whole)[0]["denoising"]
    assert first["latents"] == pytest.approx(first["folder"], rel=1e-4)


def test_sizes_reach_the_unet(teacher: Path, photos: Path, tmp_path: Path) -> None:
    """Pictures of another size give another loss, though their pixels are the same."""
    from PIL import Image

    larger = tmp_path / "larger"
    larger.mkdir()
    for file in photos.glob("*.png"):
        picture = Image.open(file)
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(larger / file.name)
    (larger / "metadata.jsonl").write_text((photos / "metadata.jsonl").read_text())
    for folder, ids in ((photos, [16, 20, 0, 8, 64, 64]), (larger, [32, 40, 0, 8, 64, 64])):
        assert list(datasets.open_source(f"folder:{folder}", "train", 64)[0].time_ids) == ids


def test_damage_is_measured_with_sdxls_conditions(teacher: Path, photos: Path) -> None:
    family = load_family(str(teacher))
    few = SensitivitySettings(data=f"folder:{photos}", prompts=3, timesteps=2, weights=str(teacher))
    inputs = calibration.make_calibration(family, materialise(meta_unet(family)), few).inputs(slice(0, 3))
    added = inputs["added_cond_kwargs"]
    assert added["text_embeds"].shape == (6, 24)
    assert added["time_ids"].tolist() == [[16, 20, 0, 8, 64, 64]] * 6


def test_units_are_refitted_with_sdxls_conditions(teacher: Path, photos: Path, tmp_path: Path) -> None:
    settings = UnitSettings(options="no_feed_forward", data=f"folder:{photos}", calibration=8, batch=2)
    library = distill_units(str(teacher), tmp_path / "units", settings)
    assert library.units
    assert any(unit.fitted < unit.from_weights for unit in library.units)


def test_the_chain_as_typed(teacher: Path, photos: Path, tmp_path: Path, run: Any) -> None:
    """Profile, damage, plan, and a benchmark of the plan's student with pictures of both."""
    few = ("--prompts", 2, "--timesteps", 1, "--plans", 0, "--replacement", "gri_attention")
    judged = ("--quality", "--pictures", 2, "--steps", 1, "--time-budget", "0.2", "--metric", "latent_mse_to_teacher")
    for line in (
        ("asdm-prof", "profile", teacher, "--backend", "fake", "-o", "profile.json"),
        ("asdm-prof", "sensitivity", teacher, "--data", f"folder:{photos}", *few, "-o", "damage.json"),
        (
            "asdm-prof",
            "plan",
            "--profile",
            "profile.json",
            "--damage",
            "damage.json",
            "--budget",
            "0.9",
            "-o",
            "plan.json",
        ),
        (
            *("asdm", "bench", "--teacher", teacher, "--student", "plan.json", "--data", f"folder:{photos}"),
            *(*judged, "-o", "bench.json"),
        ),
    ):
        done = run(*line)
        assert done.code == 0, done.err
    quality = json.loads((tmp_path / "bench.json").read_text())["students"][0]["quality"]
    assert quality["latent_mse_to_teacher"]["value"] > 0


def test_the_memory_of_both_text_encoders_is_estimated(teacher: Path) -> None:
    (stage,) = preview("a_sdm", str(teacher), settings(), recipes.bk_sdm)
    one = sum(path.stat().st_size for path in (teacher / "text_encoder").glob("*.safetensors"))
    assert stage.memory.encoders > 2 * one
    assert stage.memory.activations > 0
    assert json.loads(stage.memory.model_dump_json())["weights"] > 0


def test_a_refiner_is_refused(teacher: Path, tmp_path: Path) -> None:
    refiner = {**TINY_XL.unet, "projection_class_embeddings_input_dim": 64 + 5 * 8}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **refiner}))
    with pytest.raises(ValueError, match=r"conditioned on a caption alone; .* also takes added conditions"):
        go(tmp_path / "config.json", tmp_path / "s", "a_sdm", recipes.bk_sdm)
