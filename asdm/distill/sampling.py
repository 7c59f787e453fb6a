"""What is random in a step, all of it by (seed, stage, step, place in the batch), and a lesson's inputs with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asdm.data.loader import seeded
from asdm.distill import losses
from asdm.distill.context import TrainContext
from asdm.models import example_inputs


@dataclass(frozen=True)
class RandomInputs:
    """What chance decides for one picture of one step: it follows from seed, stage, step and place alone."""

    timestep: int
    noise: torch.Tensor
    posterior: torch.Tensor  # the VAE's own noise
    drop_caption: bool

    @classmethod
    def of(cls, context: TrainContext, stage: int, step: int, position: int) -> RandomInputs:
        settings = context.settings
        generator = seeded(settings.seed, stage, step, position)
        side = example_inputs.latent_size(context.recipe.family, settings.size)
        shape = (context.recipe.family.unet.get("in_channels", 4), side, side)
        return cls(
            timestep=int(torch.randint(len(context.alphas), (1,), generator=generator)),
            drop_caption=bool(torch.rand(1, generator=generator) < settings.caption_dropout),
            noise=torch.randn(shape, generator=generator),
            posterior=torch.randn(shape, generator=generator),
        )


def task_inputs(
    part: Sequence[int],
    encoded: Sequence[Any],
    draws: Sequence[RandomInputs],
    nothing: torch.Tensor,
    context: TrainContext,
) -> tuple[torch.Tensor, ...]:
    """A lesson's arguments for some pictures of a batch: noisy latents, timesteps, states, target, ᾱ."""
    device = context.accelerator.device
    noise, posterior = (
        torch.stack([getattr(draws[i], name) for i in part]).to(device) for name in ("noise", "posterior")
    )
    mean, std = (torch.stack([getattr(encoded[i], name) for i in part]).to(device) for name in ("mean", "std"))
    states = torch.stack([nothing if draws[i].drop_caption else encoded[i].states for i in part])
    timesteps = torch.tensor([draws[i].timestep for i in part], device=device)
    alpha = context.alphas[timesteps]
    noisy, target = losses.noisy_and_target(mean + std * posterior, noise, alpha, context.prediction_type)
    return noisy, timesteps, states, target, alpha
