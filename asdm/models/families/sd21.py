"""Stable Diffusion 2.1 at 768×768, v-prediction."""

from dataclasses import replace

from asdm.models.families.sd21_base import FAMILY as BASE

FAMILY = replace(
    BASE,
    name="sd21",
    title="Stable Diffusion 2.1",
    size=768,
    unet=BASE.unet | {"sample_size": 96, "upcast_attention": True},
    prediction_type="v_prediction",
)
