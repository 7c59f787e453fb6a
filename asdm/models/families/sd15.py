"""Stable Diffusion 1.x (1.1 to 1.5 have one architecture) at 512×512."""

from asdm.models.families import Family
from asdm.models.families._parts import CLIP_L, STABLE_DIFFUSION_UNET, STABLE_DIFFUSION_VAE

FAMILY = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    licence="creativeml-openrail-m",
    size=512,
    unet=STABLE_DIFFUSION_UNET | {"cross_attention_dim": 768, "attention_head_dim": 8},
    text_encoders=(CLIP_L,),
    vae=STABLE_DIFFUSION_VAE,
)
