"""A single-file checkpoint of Stable Diffusion 1.5's true size goes the whole way, without training, within 12 GB."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from asdm.models import loading
from asdm.models.components import components_of
from asdm.models.families import load_family
from tests import single_files

pytestmark = pytest.mark.real
GB = 1e9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UNet, VAE and text encoder with random weights in one file of 4.3 GB."""
    family = load_family("sd15")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(family.vae)
    unet, text = loading.meta_unet(family), components_of(family)[0].module
    parts = [loading.materialise(part, seed=seed).state_dict() for seed, part in enumerate((unet, vae, text))]
    path = tmp_path_factory.mktemp("sd15") / "sd15.safetensors"
    return single_files.write(single_files.of_parts(*parts, blocks=4), path)


def test_a_checkpoint_of_true_size_takes_less_than_12_gb(checkpoint: Path) -> None:
    assert 4.2 * GB < checkpoint.stat().st_size < 4.4 * GB
    folder = checkpoint.parent
    programs = Path(sys.executable).parent
    for words in (
        ["asdm-prof", "profile", str(checkpoint), "--time-budget", "60", "-o", "profile.json"],
        ["asdm-prof", "plan", "--budget", "0.8", "--profile", "profile.json", "-o", "plan.json"],
        ["asdm", "build", "plan.json", "-o", "student"],
        ["asdm", "export", "student", "--to", "single_file", "--force", "-o", "student.safetensors"],
    ):
        done = subprocess.run([programs / words[0], *words[1:]], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 12 * GB, f"{peak / GB:.1f} GB"
    student = load_file(folder / "student" / "diffusion_pytorch_model.safetensors")
    teacher = loading.load_unet(load_family(str(checkpoint)), str(checkpoint)).state_dict()
    assert torch.equal(student["conv_in.weight"], teacher["conv_in.weight"])
    del student, teacher
    again = loading.load_unet(load_family(f"{folder}/student.safetensors"), f"{folder}/student.safetensors")
    expected = loading.load_unet(load_family(f"{folder}/student"), f"{folder}/student").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
