"""Images drawn step by step, so that every step can be watched, repeated and changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asdm.models.drawing import sampler_mark, scheduler_by_name
from asdm.schedule.kept import CONDITIONAL, UNCONDITIONAL

Predict = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]  # step, the UNet's input, timestep → its output


@dataclass(frozen=True)
class Batch:
    """The prompts of one batch: states of both halves of guidance, unconditional first, and the initial noise."""

    states: torch.Tensor  # (2n, tokens, width), or (n, …) without guidance
    noise: torch.Tensor  # (n, 4, h, w)
    seed: int


class Sampler:
    """A pipeline's sampler and guidance, as one loop over a batch of prompts."""

    def __init__(self, pipe: Any, steps: int, guidance_scale: float, scheduler: str | None = None) -> None:
        self.first = scheduler_by_name(pipe, scheduler) if scheduler else pipe.scheduler
        self.mark, self.steps = sampler_mark(self.first), steps
        self.pipe, self.guidance_scale = pipe, guidance_scale
        self.calls = len(self.new().timesteps)

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1

    def new(self, steps: int | None = None) -> Any:
        """A scheduler at the beginning of an image."""
        scheduler = type(self.first).from_config(self.first.config)
        scheduler.set_timesteps(steps or self.steps)
        return scheduler

    def batch(self, captions: Sequence[str], side: tuple[int, int], seed: int) -> Batch:
        """Prompts with their noise; `side` is height and width of a latent."""
        device, unet = self.pipe.device, self.pipe.unet
        own, negative = self.pipe.encode_prompt(list(captions), device, 1, self.guided)[:2]
        states = torch.cat([negative, own]) if self.guided else own
        shape = (len(captions), unet.config.in_channels, *side)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, own.dtype)
        return Batch(states, noise, seed)

    def draw(
        self,
        batch: Batch,
        predict: Predict,
        steps: int | None = None,
        start: tuple[int, torch.Tensor, Any] | None = None,
        watch: Callable[[int, torch.Tensor, Any], None] = lambda *_: None,
    ) -> torch.Tensor:
        """The final latents (n, 4, h, w).

        `start` is a step, its latents and its scheduler to go on from; `watch` is given the same before every step. A
        sampler's own noise depends on the seed and the step alone.
        """
        first, latents, scheduler = start or (0, None, self.new(steps))
        if latents is None:
            latents = batch.noise * scheduler.init_noise_sigma
        scheduler = copy.deepcopy(scheduler)
        for step, t in enumerate(scheduler.timesteps):
            if step < first:
                continue
            watch(step, latents, scheduler)
            rows = torch.cat([latents] * 2) if self.guided else latents
            output = self.guide(predict(step, scheduler.scale_model_input(rows, t), t))
            generator = torch.Generator().manual_seed(1000 * batch.seed + step)
            latents = scheduler.step(output, t, latents, **_noise(scheduler, generator)).prev_sample
        return latents

    def guide(self, output: torch.Tensor) -> torch.Tensor:
        """Both halves' outputs as one: u + g (c − u)."""
        if not self.guided:
            return output
        halves = output.chunk(2)
        unconditional, conditional = halves[UNCONDITIONAL], halves[CONDITIONAL]
        return unconditional + self.guidance_scale * (conditional - unconditional)


def _noise(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    import inspect

    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
