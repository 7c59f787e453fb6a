"""What is random in a step, seeded by (seed, stage, step, position in the batch), and the task's inputs with it."""

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
    """The random inputs of one image of one step; they depend on seed, stage, step and position alone."""

    timestep: int
    noise: torch.Tensor
    posterior: torch.Tensor  # noise of the VAE's posterior
    drop_caption: bool

    @classmethod
    def draw(cls, context: TrainContext, stage: int, step: int, position: int) -> RandomInputs:
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
    random_inputs: Sequence[RandomInputs],
    no_caption: torch.Tensor,
    context: TrainContext,
) -> tuple[torch.Tensor, ...]:
    """The task's arguments for part of a batch: noisy latents, timesteps, text states, target, ᾱ."""
    device = context.accelerator.device
    noise, posterior = (
        torch.stack([getattr(random_inputs[i], name) for i in part]).to(device) for name in ("noise", "posterior")
    )
    mean, std = (torch.stack([getattr(encoded[i], name) for i in part]).to(device) for name in ("mean", "std"))
    states = torch.stack([no_caption if random_inputs[i].drop_caption else encoded[i].states for i in part])
    timesteps = torch.tensor([random_inputs[i].timestep for i in part], device=device)
    alpha = context.alphas[timesteps]
    noisy, target = losses.noisy_and_target(mean + std * posterior, noise, alpha, context.prediction_type)
    return noisy, timesteps, states, target, alpha
