"""The noised latents and captions on which teacher and students are compared, and scores of single units on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.transforms.v2.functional import center_crop

from asdm.models import example_inputs, pipeline
from asdm.models.families import Family
from asdm.plan.legality import why_no_identity
from asdm.unet import blocks as units
from asdm.utils import registry
from asdm_prof.sensitivity.settings import SensitivitySettings


@dataclass(frozen=True)
class Calibration:
    """Noised latents of prompts at timesteps, (prompts, timesteps, 4, h, w), with the UNet's other inputs."""

    noisy: torch.Tensor
    timesteps: torch.Tensor  # (timesteps,)
    states: torch.Tensor  # (prompts, tokens, width)
    captions: tuple[str, ...]

    def inputs(self, prompts: slice) -> dict[str, Any]:
        """Arguments of one call for some prompts at every timestep: prompt by prompt."""
        noisy, states = self.noisy[prompts], self.states[prompts]
        return {
            "sample": noisy.flatten(0, 1),
            "timestep": self.timesteps.repeat(len(noisy)),
            "encoder_hidden_states": states.repeat_interleave(len(self.timesteps), dim=0),
            "return_dict": False,
        }


def make_calibration(family: Family, unet: nn.Module, settings: SensitivitySettings) -> Calibration:
    """Images as latents noised at the midpoints of equal intervals of the schedule, and their captions.

    The choice of images and the noise depend on the seed alone. Raises ValueError for a data set that is too small.
    """
    height, width = (family.vae_factor * side for side in example_inputs.latent_sides(family, settings.size))
    data = registry.load("asdm.data.datasets", settings.data).open_data(settings.split, max(height, width))
    if len(data) < settings.prompts:
        raise ValueError(f"prompts must be at most the {len(data)} of {settings.data}, got {settings.prompts}.")
    pipe = pipeline.pipeline(family, unet, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    picks = torch.randperm(len(data), generator=generator)[: settings.prompts].tolist()
    examples = [data[i] for i in picks]
    pixels = center_crop(torch.stack([example.image for example in examples]), [height, width])
    pixels = pixels.to(settings.device, pipe.vae.dtype)
    latents = torch.cat([pipe.vae.encode(part).latent_dist.mean for part in pixels.split(8)])
    latents = (latents * pipe.vae.config.scaling_factor)[:, None].expand(-1, settings.timesteps, -1, -1, -1)
    steps = pipe.scheduler.config.num_train_timesteps
    times = torch.tensor([int((i + 0.5) * steps / settings.timesteps) for i in range(settings.timesteps)])
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = pipe.scheduler.add_noise(
        latents.flatten(0, 1), noise.flatten(0, 1), times.repeat(len(examples)).to(settings.device)
    )
    captions = [example.caption for example in examples]
    states = [pipe.encode_prompt(caption, settings.device, 1, False)[0] for caption in captions]
    return Calibration(noisy.view(latents.shape), times.to(settings.device), torch.cat(states), tuple(captions))


def unit_scores(teacher: nn.Module, inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Common pruning scores of every unit that can become an identity: parameters, magnitude, cosine change.

    Magnitude is the sum of squared weights; cosine change is 1 − the cosine of a unit's input and output, mean over one
    batch.
    """
    shape = units.topology(teacher)
    removable = [part for part in units.iter_units(teacher) if not why_no_identity(shape.unit(part.fqn))]
    cosine: dict[str, float] = {}

    def looking_at(fqn: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            alike = nn.functional.cosine_similarity(before.flatten(1).float(), after.flatten(1).float())
            cosine[fqn] = float(1 - alike.mean())

        return hook

    with ExitStack() as stack:
        for part in removable:
            stack.callback(part.modules[0].register_forward_hook(looking_at(part.fqn), with_kwargs=True).remove)
        teacher(**inputs)
    weights = {
        part.fqn: sum(float(p.float().square().sum()) for p in part.modules[0].parameters()) for part in removable
    }
    return {
        "parameters": {part.fqn: float(part.params) for part in removable},
        "magnitude": weights,
        "cosine change": cosine,
    }
