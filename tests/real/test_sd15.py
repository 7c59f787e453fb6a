"""At the size of Stable Diffusion 1.5: the students are real, load elsewhere, and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from asdm.models import example_inputs, loading, student as students
from asdm.models.families import load_family
from asdm.plan.edits import PruningPlan

pytestmark = pytest.mark.real
FAMILY = load_family("sd15")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return loading.load_unet(FAMILY)


def plan(name: str, teacher: nn.Module) -> PruningPlan:
    return students.read_plan(name, teacher, "sd15")


@torch.inference_mode()
def output(unet: nn.Module) -> torch.Tensor:
    return unet(**example_inputs.unet_inputs(FAMILY, size=256))[0]


def test_random_weights_give_plain_numbers(teacher: nn.Module) -> None:
    found = output(teacher)
    assert found.shape == (1, 4, 32, 32)
    assert torch.isfinite(found).all()
    assert 0.01 < found.std() < 100


def test_the_paper_s_assembly_reloads_bit_by_bit(teacher: nn.Module, tmp_path: Path) -> None:
    student, _ = students.build(teacher, plan("a_sdm", teacher))
    assert sum(p.numel() for p in student.parameters()) == 848_791_044
    student.save_pretrained(tmp_path / "student")
    again = students.StudentUNet.from_pretrained(tmp_path / "student").eval()
    assert torch.equal(output(again), output(student))


def test_bk_sdm_base_loads_with_plain_diffusers(teacher: nn.Module, tmp_path: Path) -> None:
    student, _ = students.build(teacher, plan("bk_sdm_base", teacher))
    student.save_pretrained(tmp_path / "student")
    code = (
        "import sys; from diffusers import UNet2DConditionModel as U; u = U.from_pretrained(sys.argv[1]);"
        "print(sum(p.numel() for p in u.parameters())); assert 'asdm' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "student")], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split()[-1] == "579384964"
