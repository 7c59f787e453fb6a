"""Stable Diffusion 2.1 base at 512×512, ε-prediction."""

from asdm.models.families import Family
from asdm.models.families._parts import OPENCLIP_H, STABLE_DIFFUSION_UNET, STABLE_DIFFUSION_VAE

FAMILY = Family(
    name="sd21_base",
    title="Stable Diffusion 2.1 base",
    licence="openrail++",
    size=512,
    unet=STABLE_DIFFUSION_UNET
    | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    text_encoders=(OPENCLIP_H,),
    vae=STABLE_DIFFUSION_VAE,
)
