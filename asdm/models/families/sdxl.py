"""Stable Diffusion XL base 1.0 at 1024×1024: no attention at the first level, deep transformers below."""

from asdm.models.families import Family
from asdm.models.families._parts import CLIP_L, OPENCLIP_BIG_G, STABLE_DIFFUSION_VAE

FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    licence="openrail++",
    size=1024,
    unet={
        "sample_size": 128, "in_channels": 4, "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "norm_num_groups": 32, "act_fn": "silu",
    },
    text_encoders=(CLIP_L, OPENCLIP_BIG_G),
    vae=STABLE_DIFFUSION_VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
)  # fmt: skip
