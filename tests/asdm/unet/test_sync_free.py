"""No forward waits for a device: on the meta device, where no value can be read, every preset runs as on a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import asdm.unet.replacements as replacements
from asdm.models import student as students
from asdm.models.loading import meta_unet
from asdm.plan.presets import PRESETS
from asdm.unet.replacements.cond_conv import CondConv2d, Timesteps, _in_groups, convolve, fold
from tests.asdm.unet.test_replacements import open_gates
from tests.tiny import SMALL, TINY, TINY_FAMILY, make_unet, unet_args

LAYERS = SMALL | {"layers_per_block": 2}


def built(preset: str):
    teacher = make_unet(**LAYERS)
    return open_gates(students.build(teacher, students.read_plan(preset, teacher, "tiny"))[0])


@pytest.fixture(scope="module")
def gated():
    return built("a_sdm_clme_timestep")


def on_meta(unet, timestep: torch.Tensor) -> torch.Tensor:
    """One guided call with everything, the timestep too, where nothing can be read."""
    args = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in unet_args(batch=2).items()}
    with torch.no_grad():
        return unet.to("meta")(**args | {"timestep": timestep.to("meta")})[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_forward_looks_at_no_value(preset):
    family = TINY_FAMILY if preset == "bk_sdm_tiny" else replace(TINY_FAMILY, unet=TINY | LAYERS)
    teacher = meta_unet(family)
    student, _ = students.build(teacher, students.read_plan(preset, teacher, "tiny"))
    for timestep in (torch.tensor(500), torch.tensor([500, 20])):
        assert on_meta(student, timestep).shape == (2, 4, 16, 16)


def test_a_folded_students_forward_looks_at_no_value(gated):
    for timestep in (torch.tensor(21), torch.tensor([981, 21])):
        assert on_meta(fold(gated, [981, 21]), timestep).shape == (2, 4, 16, 16)


def test_a_forward_that_looks_is_caught(monkeypatch):
    opened = CondConv2d.opened
    monkeypatch.setattr(CondConv2d, "opened", lambda conv, seen: opened(conv, seen) if bool((seen > 0).all()) else None)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        on_meta(built("a_sdm_clme"), torch.tensor(500))


def test_no_replacement_treats_the_meta_device_in_a_way_of_its_own():
    files = sorted(Path(replacements.__file__).parent.glob("*.py"))
    assert len(files) > 4
    assert [file.name for file in files if "is_meta" in file.read_text()] == []


# ---------------------------------------------------------------------------------------------- what is computed there


def test_images_in_groups_are_images_one_by_one():
    torch.manual_seed(0)
    conv, x, kernels = torch.nn.Conv2d(4, 6, 3, padding=1), torch.randn(3, 4, 5, 7), torch.randn(3, 6, 4, 3, 3)
    expected = convolve(conv, x, kernels)
    torch.testing.assert_close(_in_groups(conv, x, kernels), expected)
    last = torch.channels_last
    kernels = kernels.flatten(0, 1).contiguous(memory_format=last).unflatten(0, (3, 6))
    torch.testing.assert_close(_in_groups(conv, x.contiguous(memory_format=last), kernels), expected)


def test_a_folded_timestep_is_found_by_the_device_as_by_the_host(gated):
    chosen = Timesteps([981, 500.5, 21])
    for timestep, places in (
        (torch.tensor(981), [0]),
        (torch.tensor([21.0]), [2]),
        (torch.tensor(500.5).half().expand(2), [1]),
        (torch.tensor([21, 981]), [2, 0]),
    ):
        assert chosen.choose_there(timestep).tolist() == [0.0] * len(places)
        assert chosen.places.tolist() == places
    assert chosen.choose_there(torch.tensor([21, 22]))[1].isnan()
    assert chosen.choose_there(torch.tensor(500)).isnan().all()

    folded, args = fold(gated, [981, 21]), unet_args(batch=2)
    for timestep in (torch.tensor(21), torch.tensor([981, 21])):
        with torch.no_grad():
            expected = folded(**args | {"timestep": timestep})[0]
            (hook,) = [hook for hook in folded._forward_pre_hooks.values() if hasattr(hook, "__self__")]
            hook.__self__.choose, kept = hook.__self__.choose_there, hook.__self__.choose
            found = folded(**args | {"timestep": timestep})[0]
            hook.__self__.choose = kept
        assert torch.equal(found, expected)


# ---------------------------------------------------------------------------------------------- memory formats


@pytest.mark.parametrize("preset", ["a_sdm", "a_sdm_clme", "a_sdm_clme_timestep"])
def test_channels_last_computes_the_same(preset):
    unet, args = built(preset), unet_args(batch=2)
    apart = args | {"timestep": torch.tensor([7.0, 900.0])}
    with torch.no_grad():
        expected = [unet(**one)[0] for one in (args, apart)]
        unet.to(memory_format=torch.channels_last)
        args["sample"] = apart["sample"] = args["sample"].contiguous(memory_format=torch.channels_last)
        found = [unet(**one)[0] for one in (args, apart)]
    for mine, yours in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-3, atol=1e-4)
    assert all(
        conv.experts[0].is_contiguous(memory_format=torch.channels_last)
        for conv in unet.modules()
        if isinstance(conv, CondConv2d)
    )


def test_folded_kernels_are_channels_last_too(gated):
    folded, args = fold(gated, [981, 21]), unet_args(batch=2) | {"timestep": torch.tensor([981, 21])}
    with torch.no_grad():
        expected = folded(**args)[0]
        torch.testing.assert_close(folded.to(memory_format=torch.channels_last)(**args)[0], expected)
