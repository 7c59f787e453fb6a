"""The noised latents and captions on which teacher and students are compared, and scores of single units on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.transforms.v2.functional import center_crop

from asdm.data import datasets
from asdm.data.choice import data_for
from asdm.data.datasets import Example
from asdm.data.encoder import Encoder, check_encoders, chunk_size
from asdm.data.identity import identity
from asdm.data.loader import Slot
from asdm.data.picked import picked
from asdm.models import example_inputs, execution, pipeline
from asdm.models.families import Family
from asdm.plan.legality import why_no_identity
from asdm.unet import blocks as units
from asdm_prof.sensitivity.settings import SensitivitySettings

CHUNK = 8  # pictures that are encoded at once


@dataclass(frozen=True)
class Calibration:
    """Noised latents of prompts at timesteps, (prompts, timesteps, 4, h, w), with the UNet's other inputs."""

    noisy: torch.Tensor
    timesteps: torch.Tensor  # (timesteps,)
    states: torch.Tensor  # (prompts, tokens, width)
    captions: tuple[str, ...]
    source: dict[str, Any]  # what the data set that they are of is known by
    pooled: torch.Tensor | None = None  # (prompts, width), of SDXL
    time_ids: torch.Tensor | None = None  # (prompts, 6), of SDXL

    def inputs(self, prompts: slice) -> dict[str, Any]:
        """Arguments of one call for some prompts at every timestep: prompt by prompt."""

        def each(rows: torch.Tensor) -> torch.Tensor:
            return rows[prompts].repeat_interleave(len(self.timesteps), dim=0)

        noisy = self.noisy[prompts]
        arguments = {
            "sample": noisy.flatten(0, 1),
            "timestep": self.timesteps.repeat(len(noisy)),
            "encoder_hidden_states": each(self.states),
            "return_dict": False,
        }
        if self.pooled is not None and self.time_ids is not None:
            arguments["added_cond_kwargs"] = {"text_embeds": each(self.pooled), "time_ids": each(self.time_ids)}
        return arguments


def make_calibration(family: Family, unet: nn.Module, settings: SensitivitySettings) -> Calibration:
    """Images as latents noised at the midpoints of equal intervals of the schedule, and their captions.

    The choice of images and the noise depend on the seed alone. Raises ValueError for a data set that is too small, and
    for latents of other encoders.
    """
    height, width = (family.vae_factor * side for side in example_inputs.latent_sides(family, settings.size))
    side = max(height, width)
    name = data_for(settings.data, family, "asdm-prof sensitivity")
    data = datasets.open_source(name, settings.split, side)
    generator = torch.Generator().manual_seed(settings.seed)
    examples = [_cut(example, height, width) for example in picked(data, name, settings.prompts, generator)]
    pipe = pipeline.pipeline(family, unet, settings)
    encoder = Encoder(pipe, chunk_size(side, CHUNK))
    check_encoders(data, name, encoder, family)
    slots = [Slot(i, example, i) for i, example in enumerate(examples)]
    encoded = [row for i in range(0, len(slots), CHUNK) for row in encoder.encode(slots[i : i + CHUNK])]

    def stacked(name: str) -> torch.Tensor | None:
        rows = [getattr(row, name) for row in encoded]
        return None if rows[0] is None else torch.stack(rows).to(settings.device, execution.dtype_of(settings.dtype))

    latents, states = stacked("mean"), stacked("states")
    assert latents is not None
    assert states is not None
    latents = latents[:, None].expand(-1, settings.timesteps, -1, -1, -1)
    steps = pipe.scheduler.config.num_train_timesteps
    times = torch.tensor([int((i + 0.5) * steps / settings.timesteps) for i in range(settings.timesteps)])
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = pipe.scheduler.add_noise(
        latents.flatten(0, 1), noise.flatten(0, 1), times.repeat(len(examples)).to(settings.device)
    )
    captions = tuple(example.caption for example in examples)
    more = {"pooled": stacked("pooled"), "time_ids": stacked("time_ids")}
    return Calibration(noisy.view(latents.shape), times.to(settings.device), states, captions, identity(data), **more)


def _cut(example: Any, height: int, width: int) -> Any:
    """A square picture cut in its middle, where the size is not square; raises ValueError for latents."""
    if height == width:
        return example
    if not isinstance(example, Example):
        raise ValueError("latents are of squares; name pictures for a --size that is not square.")
    side = max(height, width)
    ids = example.time_ids or (side, side, 0, 0, side, side)
    cut = ((side - height) // 2, (side - width) // 2)
    time_ids = (*ids[:2], ids[2] + cut[0], ids[3] + cut[1], height, width)
    return Example(center_crop(example.image, [height, width]), example.caption, time_ids)


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
