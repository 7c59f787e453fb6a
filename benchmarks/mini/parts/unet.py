"""The UNet, with Stable Diffusion 1.5's block types and 38 units, and the text tower that is trained with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from asdm.data.datasets.emoji import Emoji
from asdm.models.families._parts import STABLE_DIFFUSION_UNET
from benchmarks.mini.parts import load_drawings, to_half
from benchmarks.mini.parts.clip import save_vocabulary, tokenize
from benchmarks.mini.training import LossTerms, TrainingTask

CONFIG: dict[str, Any] = STABLE_DIFFUSION_UNET | {
    "sample_size": 16,
    "block_out_channels": [32, 64, 128, 128],
    "cross_attention_dim": 128,
    "attention_head_dim": 2,  # diffusers means the number of heads
    "norm_num_groups": 8,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SHIFTS = ((0, 0), (-2, 0), (2, 0), (0, -2), (0, 2))  # pixels; each drawing is also trained on with small shifts
CAPTION_DROPOUT = 0.1
MIN_SNR = 5.0  # γ of Min-SNR
DEFAULT_STEPS = 3000


def training_task(steps: int, folder: Path, start: Path | None = None, compiled: bool = False) -> TrainingTask:
    """Denoise the latents of the training drawings, conditioned on their captions.

    `start` is a trained pipeline to start from, instead of random weights and the CLIP's text tower.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextModel, CLIPTokenizerFast

    data = load_drawings("train")
    latents = encode_drawings(data, folder)  # (n, variants, 4, 16, 16)
    words = CLIPTokenizerFast.from_pretrained(folder / "clip")
    prompts = [variant for caption in data.captions for variant in caption_variants(caption)]
    tokens, no_caption = tokenize(words, prompts).view(len(data), 2, -1), tokenize(words, [""])
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    torch.manual_seed(0)
    unet: Any = (
        UNet2DConditionModel.from_pretrained(start / "unet") if start else UNet2DConditionModel.from_config(CONFIG)
    )
    text: Any = CLIPTextModel.from_pretrained(start / "text_encoder" if start else folder / "clip")
    unet, text = unet.float().train(), text.float()
    unet.set_attn_processor(AttnProcessor())  # faster than flash attention at 16 channels a head
    if compiled:
        unet.to(memory_format=torch.channels_last)
    predict = torch.compile(unet) if compiled else unet

    def loss(indices: torch.Tensor, generator: torch.Generator) -> LossTerms:
        b = len(indices)
        which = torch.randint(latents.shape[1], (b,), generator=generator)
        spelling = torch.randint(2, (b,), generator=generator)
        dropped = torch.rand(b, 1, generator=generator) < CAPTION_DROPOUT
        t = torch.randint(1000, (b,), generator=generator)
        noise = torch.randn(b, *latents.shape[2:], generator=generator)
        x = latents[indices, which]
        a = alphas[t].view(b, 1, 1, 1)
        noisy, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        states = text(torch.where(dropped, no_caption, tokens[indices, spelling])).last_hidden_state
        error = (predict(noisy, t, states, return_dict=False)[0] - v).square().mean((1, 2, 3))
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=MIN_SNR) / (snr + 1)
        return {"loss": (weight * error).mean(), "mse": error.mean()}

    module = nn.ModuleDict({"unet": unet, "text_encoder": text})
    return TrainingTask("unet", module, len(data), loss, steps, batch=64, learning_rate=1e-3)


def caption_variants(caption: str) -> tuple[str, str]:
    """A caption without and with its article: "red heart, …", "a red heart, …"."""
    return caption, f"{'an' if caption[0] in 'aeiouAEIOU' else 'a'} {caption}"


@torch.no_grad()
def encode_drawings(data: Emoji, folder: Path) -> torch.Tensor:
    """Latents (n, variants, 4, 16, 16) of every drawing, shifted, and mirrored where its name allows that.

    "sky & weather" is not mirrored: a first quarter moon would become a last quarter moon.
    """
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    images = data.images()
    may_mirror = torch.tensor([kind != "sky & weather" for kind in data.subcategories])[:, None, None, None]
    variants = []
    for version in (images, torch.where(may_mirror, images.flip(-1), images)):
        padded = F.pad(version, (2, 2, 2, 2), value=1.0)
        for dx, dy in SHIFTS:
            shifted = padded[:, :, 2 + dy : 2 + dy + images.shape[2], 2 + dx : 2 + dx + images.shape[3]]
            variants.append(torch.cat([vae.encode(part).latent_dist.mean for part in shifted.split(64)]))
    return torch.stack(variants, dim=1)


def ship(module: Any, folder: Path) -> None:
    """UNet, text encoder and scheduler beside the VAE, as one diffusers pipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizerFast

    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float16),
        text_encoder=to_half(module["text_encoder"]),
        tokenizer=CLIPTokenizerFast.from_pretrained(folder / "clip"),
        unet=to_half(module["unet"]),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "weights", safe_serialization=True)
    save_vocabulary(pipeline.tokenizer, folder / "weights" / "tokenizer")
