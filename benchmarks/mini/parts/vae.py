"""The VAE: 96×96 pixels to 24×24 latents of 4 channels (f = 4), each with mean 0 and variance 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from asdm.data.datasets import emoji
from benchmarks.mini.parts import SMALL, augment, load_drawings, to_half
from benchmarks.mini.training import LossTerms, TrainingTask

FOLDER = "vae"
CONFIG: dict[str, Any] = {
    "sample_size": emoji.SIZE,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 1.0,
}
COLOUR_WEIGHT = 2.0  # without it, the four channels encode outlines first and colours come out grey
KL_WEIGHT = 1e-4  # keeps the posterior's noise at a few per cent of the latents' spread
PICTURES = 36_000  # rebuilds drawings to 32 dB; after 12,000 (27 dB), green is olive: one axis of colour is missing


def training_task(pictures: int, folder: Path) -> TrainingTask:
    """Reconstruct every drawing that is not held out: half a batch are small drawings, half are crops of large ones."""
    from diffusers import AutoencoderKL

    small, large = (load_drawings("train", "others", size=size).images() for size in (SMALL, emoji.SIZE))
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(**CONFIG)

    def loss(indices: torch.Tensor, generator: torch.Generator) -> LossTerms:
        whole, cropped = indices.chunk(2)
        x = torch.cat(
            [augment(small[whole], generator, pixels=2), augment(large[cropped], generator, pixels=2, size=SMALL)]
        )
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        pixel, edge, colour = F.l1_loss(y, x), _edges(y, x), F.l1_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total = pixel + edge + COLOUR_WEIGHT * colour + KL_WEIGHT * kl
        return {"loss": total, "pixel": pixel, "edge": edge, "colour": colour, "kl": kl}

    return TrainingTask(
        "vae", vae, len(small), loss, pictures,
        batch=8, learning_rate=1e-3, weight_decay=0.0, warm_up=800, average_over=2_700,
    )  # fmt: skip


def _edges(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """L1 distance of the differences between neighbouring pixels, which keeps outlines sharp."""
    across = F.l1_loss(y[..., 1:] - y[..., :-1], x[..., 1:] - x[..., :-1])
    return across + F.l1_loss(y[..., 1:, :] - y[..., :-1, :], x[..., 1:, :] - x[..., :-1, :])


@torch.no_grad()
def whiten(vae: Any, images: torch.Tensor) -> None:
    """Fold the normalisation of each latent channel to mean 0 and variance 1 into the 1×1 convolutions around it.

    `scaling_factor` is then 1, so a plain diffusers pipeline works.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    n = len(mean)
    vae.quant_conv.weight[:n] /= std[:, None, None, None]
    vae.quant_conv.bias[:n] = (vae.quant_conv.bias[:n] - mean) / std
    vae.quant_conv.bias[n:] -= 2 * std.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std[None, :, None, None]


def ship(vae: Any, folder: Path) -> None:
    """A diffusers folder."""
    whiten(vae, load_drawings("train", size=emoji.SIZE).images())
    to_half(vae).save_pretrained(folder)
