"""What is random in a step, seeded by (seed, stage, step, position in the batch), and the task's inputs with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from asdm.data.datasets import Encoded
from asdm.data.encoder import Collated
from asdm.data.loader import Batch, seeded
from asdm.distill import losses
from asdm.distill.context import TrainContext
from asdm.models import example_inputs


@dataclass(frozen=True)
class RandomInputs:
    """The random inputs of a step's images, a row each; a row depends on seed, stage, step and position alone."""

    timesteps: torch.Tensor  # (b,)
    noise: torch.Tensor  # (b, 4, h, w)
    posterior: torch.Tensor  # (b, 4, h, w): noise of the VAE's posterior
    drop_caption: tuple[bool, ...]

    @classmethod
    def draw(
        cls,
        context: TrainContext,
        stage: int,
        step: int,
        positions: Sequence[int],
        latent: tuple[int, int] | None = None,
    ) -> RandomInputs:
        """On the host, pinned where the device is a GPU: work for a thread beside the training loop.

        `latent` is the height and width of the latents, where it is not the run's size.
        """
        settings, pin = context.settings, context.accelerator.device.type == "cuda"
        side = example_inputs.latent_size(context.recipe.family, settings.size)
        shape = (len(positions), context.recipe.family.unet.get("in_channels", 4), *(latent or (side, side)))
        timesteps = torch.empty(len(positions), dtype=torch.long, pin_memory=pin)
        noise, posterior = (torch.empty(shape, pin_memory=pin) for _ in range(2))
        dropped = []
        for row, position in enumerate(positions):
            generator = seeded(settings.seed, stage, step, position)
            torch.randint(len(context.alphas), (1,), generator=generator, out=timesteps[row : row + 1])
            dropped.append(bool(torch.rand(1, generator=generator) < settings.caption_dropout))
            for noises in (noise, posterior):
                torch.randn(shape[1:], generator=generator, out=noises[row])
        return cls(timesteps, noise, posterior, tuple(dropped))

    def to(self, device: torch.device) -> RandomInputs:
        """The tensors on a device, without waiting for it."""
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True) for name in ("timesteps", "noise", "posterior")
        }
        return replace(self, **tensors)


def prepared(
    context: TrainContext, stage: int, step: int, batches: Iterator[Batch]
) -> Iterator[tuple[Batch, Collated, RandomInputs]]:
    """Batches from `step` on with all that the host does for them, for the prefetching thread."""
    for batch in batches:
        positions = [slot.position for slot in batch.slots]
        random_inputs = RandomInputs.draw(context, stage, step, positions, _latent_shape(context, batch))
        yield batch, context.encoder.collate(batch.slots), random_inputs
        step += 1


def _latent_shape(context: TrainContext, batch: Batch) -> tuple[int, int] | None:
    """Height and width of a batch's latents, which its bucket gives it."""
    if not batch.slots:
        return None
    example = batch.slots[0].example
    if isinstance(example, Encoded):
        return example.mean.shape[-2], example.mean.shape[-1]
    factor = context.recipe.family.vae_factor
    return example.image.shape[-2] // factor, example.image.shape[-1] // factor


def task_inputs(
    part: range, encoded: Sequence[Encoded], random_inputs: RandomInputs, no_caption: Encoded, context: Any
) -> tuple[torch.Tensor, ...]:
    """The task's arguments for part of a batch: noisy latents, timesteps, text states, target, ᾱ, and SDXL's more."""
    rows = slice(part.start, part.stop)
    mean, std = (torch.stack([getattr(encoded[i], name) for i in part]) for name in ("mean", "std"))
    texts = [no_caption if random_inputs.drop_caption[i] else encoded[i] for i in part]
    states = torch.stack([text.states for text in texts])
    timesteps, noise = random_inputs.timesteps[rows], random_inputs.noise[rows]
    alpha, clean = context.alphas[timesteps], mean + std * random_inputs.posterior[rows]
    noisy, target = losses.noisy_and_target(clean, noise, alpha, context.prediction_type)
    if no_caption.pooled is None:
        return noisy, timesteps, states, target, alpha
    pooled, time_ids = [text.pooled for text in texts], [encoded[i].time_ids for i in part]
    return noisy, timesteps, states, target, alpha, torch.stack(pooled), torch.stack(time_ids)  # type: ignore[arg-type]
