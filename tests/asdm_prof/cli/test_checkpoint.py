"""A single-file checkpoint goes the whole way, and comes out as the folder that it was made of."""

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from asdm.mini import PIPELINE
from tests import single_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_profiled_planned_built_trained_and_drawn(run, tiny_pipeline, photos, tmp_path):
    file = single_files.write(single_files.ldm(tiny_pipeline, blocks=4), tmp_path / "tiny.safetensors")
    teacher = ("--teacher", file, "--config", tiny_pipeline)
    distil = ("--recipe", "bk_sdm", "--data", f"folder:{photos}", "--steps", 2, "--batch", 2)
    for words in (
        ("asdm-prof", "profile", file, "--config", tiny_pipeline, "--backend", "fake", "-o", "profile.json"),
        ("asdm-prof", "validate", file, "--config", tiny_pipeline, "--backend", "fake", "--plans", 3, "-o", "v.json"),
        ("asdm-prof", "plan", "--budget", "0.8", "--profile", "profile.json", "-o", "plan.json"),
        ("asdm", "build", "plan.json", "--config", tiny_pipeline, "-o", "of-file"),
        ("asdm", "build", "plan.json", "--teacher", tiny_pipeline, "-o", "of-folder"),
        ("asdm", "distill", "plan.json", *teacher, *distil, "-o", "trained"),
        ("asdm", "generate", "a heart", "--weights", file, *teacher[2:], "--steps", 2, "-o", "file.png"),
        ("asdm", "generate", "a heart", "--family", tiny_pipeline, "--steps", 2, "-o", "folder.png"),
    ):
        done = run(*words)
        assert done.code == 0, done.err
    assert Path("file.png").read_bytes() == Path("folder.png").read_bytes()
    one, other, trained = (load_file(f"{name}/{WEIGHTS}") for name in ("of-file", "of-folder", "trained"))
    assert one.keys() == other.keys() == trained.keys()
    assert all((one[key] == other[key]).all() for key in one)
    assert any((one[key] != trained[key]).any() for key in one)


def test_the_mini_goes_from_a_file_to_a_file(run, tmp_path):
    """Profiled, planned, built, distilled for ten steps and exported: diffusers draws the student's own picture."""
    file = single_files.write(single_files.ldm(PIPELINE, blocks=3), tmp_path / "mini.safetensors")
    loads = ("--loads-in", "diffusers")
    distil = ("--recipe", "without_incubation", "--steps", 10, "--batch", 1, "--size", 32, "--learning-rate", "1e-3")
    for words in (
        ("asdm-prof", "profile", file, "--backend", "fake", "-o", "profile.json"),
        ("asdm-prof", "plan", "--budget", "0.8", "--profile", "profile.json", *loads, "-o", "p.json"),
        ("asdm", "build", "p.json", "-o", "built"),
        ("asdm", "distill", "p.json", "--teacher", file, "--data", "emoji", *distil, "-o", "student"),
        ("asdm", "export", "student", "--to", "single_file", "-o", "student.safetensors"),
        ("asdm", "generate", "a heart", "--weights", file, "--student", "student", "--steps", 2, "-o", "folder.png"),
        ("asdm", "generate", "a heart", "--weights", "student.safetensors", "--steps", 2, "-o", "file.png"),
    ):
        done = run(*words)
        assert done.code == 0, done.err
    assert Path("file.png").read_bytes() == Path("folder.png").read_bytes()
    built, trained = (load_file(f"{name}/{WEIGHTS}") for name in ("built", "student"))
    assert any((built[key] != trained[key]).any() for key in built)
    shutil.copytree(PIPELINE, "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy("student/config.json", "configs/unet/config.json")
    pipe = StableDiffusionPipeline.from_single_file(tmp_path / "student.safetensors", config=str(tmp_path / "configs"))
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 96, "width": 96}
    picture = pipe("a heart", generator=torch.Generator().manual_seed(0), **options).images[0]
    assert (np.asarray(picture) == np.asarray(Image.open("file.png"))).all()
