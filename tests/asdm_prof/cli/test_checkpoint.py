"""A single-file checkpoint goes the whole way, and comes out as the folder that it was made of."""

from pathlib import Path

from safetensors.torch import load_file

from tests import single_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_profiled_planned_built_trained_and_drawn(run, tiny_pipeline, photos, tmp_path):
    file = single_files.write(single_files.ldm(tiny_pipeline, blocks=4), tmp_path / "tiny.safetensors")
    teacher = ("--teacher", file, "--config", tiny_pipeline)
    distil = ("--recipe", "bk_sdm", "--data", f"folder:{photos}", "--steps", 2, "--batch", 2)
    for words in (
        ("asdm-prof", "profile", file, "--config", tiny_pipeline, "--backend", "fake", "-o", "profile.json"),
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
