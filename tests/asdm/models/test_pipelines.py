"""A student in diffusers' other pipelines draws what the same surgery done by hand draws."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from torch import nn

from asdm.models import student as students
from asdm.models.adapters import fit_ip_adapter
from asdm.models.execution import RANDOM
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan, RemoveLayer, RemoveUnit
from tests.tiny import TINY_WHOLE, make_unet

EDITS = (
    RemoveLayer(block="down_blocks.0", layer=0),
    RemoveLayer(block="up_blocks.3", layer=1),
    RemoveUnit(unit="up_blocks.2.attentions.1"),
)
SIDE = 64


class Nothing(nn.Module):
    """What goes in comes out, as a block calls its Transformers."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (x,)


def by_hand(teacher: nn.Module) -> Any:
    """EDITS, on a copy, without this package."""
    unet: Any = copy.deepcopy(teacher)
    for block, layer in ((unet.down_blocks[0], 0), (unet.up_blocks[3], 1)):
        del block.resnets[layer]
        del block.attentions[layer]
    unet.up_blocks[2].attentions[1] = Nothing()
    return unet


def student_of(teacher: Any) -> tuple[Any, Any]:
    return students.build(teacher, PruningPlan(family="tiny", edits=EDITS))


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def drawn(pipe: Any, **options: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a heart", num_inference_steps=2, generator=generator, output_type="np", **options).images


def parts(unet: Any) -> Any:
    return pipeline(TINY_WHOLE, unet, Setup(weights=RANDOM))


def draws_as_by_hand(teacher: Any, cls: Any, extra: dict[str, Any], **options: Any) -> None:
    one, two = (
        drawn(cls(**parts(unet).components, **extra, requires_safety_checker=False), **options)
        for unet in (student_of(teacher)[0], by_hand(teacher))
    )
    whole = drawn(cls(**parts(teacher).components, **extra, requires_safety_checker=False), **options)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, whole)


def test_img2img(tiny_unet: Any) -> None:
    draws_as_by_hand(tiny_unet, StableDiffusionImg2ImgPipeline, {}, image=picture(), strength=0.9)


def test_inpaint() -> None:
    mask = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
    options = {"image": picture(), "mask_image": mask, "height": SIDE, "width": SIDE, "strength": 1.0}
    draws_as_by_hand(make_unet(in_channels=9), StableDiffusionInpaintPipeline, {}, **options)


def test_controlnet(tiny_unet: Any) -> None:
    """The teacher's ControlNet; by hand, the residual of the removed layer is left out."""
    torch.manual_seed(3)
    control = ControlNetModel.from_unet(tiny_unet).eval()
    for conv in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        nn.init.normal_(conv.weight, std=0.1)
    hand = by_hand(tiny_unet)

    def without_the_layer(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        down = kwargs["down_block_additional_residuals"]
        return args, kwargs | {"down_block_additional_residuals": [down[0], *down[2:]]}

    hand.register_forward_pre_hook(without_the_layer, with_kwargs=True)
    one, two = (
        drawn(StableDiffusionControlNetPipeline(
            **parts(unet).components, controlnet=control, requires_safety_checker=False
        ), image=picture(), controlnet_conditioning_scale=scale)
        for unet, scale in ((student_of(tiny_unet)[0], 1.0), (hand, 1.0))
    )  # fmt: skip
    assert np.array_equal(one, two)
    free = drawn(parts(student_of(tiny_unet)[0]), height=SIDE, width=SIDE)
    assert not np.array_equal(one, free)


def ip_adapter(unet: Any) -> dict[str, Any]:
    """Random IP-Adapter weights for every cross-attention of a UNet, by their positions, as they are published."""
    generator, weights = torch.Generator().manual_seed(5), {}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(names):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for which in ("k", "v"):
            shape = (attention.inner_dim, unet.config.cross_attention_dim)
            weights[f"{2 * i + 1}.to_{which}_ip.weight"] = torch.randn(shape, generator=generator)
    image_proj = {
        "proj.weight": torch.randn(4 * 32, 16, generator=generator), "proj.bias": torch.zeros(4 * 32),
        "norm.weight": torch.ones(32), "norm.bias": torch.zeros(32),
    }  # fmt: skip
    return {"image_proj": image_proj, "ip_adapter": weights}


def test_ip_adapter(tiny_unet: Any) -> None:
    """The teacher gets its adapter and then the surgery by hand; the student gets the adapter that was fitted to it."""
    adapter = ip_adapter(tiny_unet)
    embeds = [torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(7))]
    student, applied = student_of(tiny_unet)
    fitted = fit_ip_adapter(adapter, tiny_unet, student, applied)
    assert len(fitted["ip_adapter"]) == len(adapter["ip_adapter"]) - 2 * 3

    def loaded(unet: Any, weights: dict[str, Any]) -> Any:
        pipe = parts(unet)
        pipe.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)
        return pipe

    options = {"height": SIDE, "width": SIDE, "ip_adapter_image_embeds": embeds}
    one = drawn(loaded(student, fitted), **options)
    teacher = loaded(copy.deepcopy(tiny_unet), adapter)
    teacher.unet = by_hand(teacher.unet)
    assert np.array_equal(one, drawn(teacher, **options))
    with pytest.raises(ValueError, match="is for 13 cross-attentions, and the teacher has 16"):
        fit_ip_adapter(fitted, tiny_unet, student, applied)
