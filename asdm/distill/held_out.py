"""How far the student is from its teacher on pictures that no training saw, beside the same plan's untrained student.

The error is that of `asdm-prof sensitivity`: E‖output of the student − output of the teacher‖² per element, over
pictures noised to levels at the midpoints of equal intervals of the schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from asdm.data import datasets
from asdm.data.datasets import Encoded
from asdm.data.loader import Slot, readers, seeded, usable
from asdm.data.settings import selection_of
from asdm.distill import losses
from asdm.distill.context import TrainContext, TrainProgress
from asdm.distill.settings import DistillSettings
from asdm.models import example_inputs, graft, loading, student as students
from asdm.models.families import load_family
from asdm.records.distill import HeldOut
from asdm.unet.surgery import resolved_on

PICTURES, LEVELS = 64, 4
OWN_SEED = 1_000_003  # no stage's


def split_of(settings: DistillSettings) -> str | None:
    """The split that a run keeps from its training (`--hold-out`), if it does."""
    return "held_out" if settings.hold_out else None


@torch.no_grad()
def measure(context: TrainContext) -> HeldOut | None:
    """The errors of the run's student and of the same plan's untrained one; None where no picture is held out."""
    split = split_of(context.settings)
    if split is None:
        return None
    context.on_progress(TrainProgress("measuring on held-out pictures", 0, context.settings.steps))
    device = context.accelerator.device
    trained = loading.load_unet(load_family(str(context.folder)), str(context.folder), str(device))
    plan = resolved_on(context.teacher, context.recipe.stages[-1].plan)
    if plan.grafted:
        untrained, _ = graft.assemble(context.teacher, None, plan)
    else:
        untrained, _ = students.build(context.teacher, plan)
    sums, count, power = {"trained": 0.0, "untrained": 0.0}, 0, 0.0
    for number, encoded in enumerate(_examples(context, split)):
        inputs = _inputs(context, number, encoded)
        teacher = context.teacher(**inputs)[0].cpu().double()  # not every GPU has doubles
        power += float(teacher.square().mean())
        for name, unet in (("trained", trained), ("untrained", untrained)):
            sums[name] += float((unet.eval()(**inputs)[0].cpu().double() - teacher).square().mean())
        count += 1
    if not count:
        raise ValueError(f"{context.settings.data} has no usable held-out example; raise --hold-out.")
    return HeldOut(
        error=sums["trained"] / count, untrained=sums["untrained"] / count, teacher_power=power / count, pictures=count
    )


def check(context: TrainContext) -> None:
    """Raises ValueError, before hours of training, where no picture is held out to measure on."""
    if split := split_of(context.settings):
        data = _open(context, split)
        if not isinstance(data, datasets.Stream) and not len(data):
            raise ValueError(f"{context.settings.data} has no picture in the split {split}; raise --hold-out.")


def _open(context: TrainContext, split: str) -> Any:
    """The pictures as squares, whatever shapes the training has."""
    settings, family = context.settings, context.recipe.family
    side = example_inputs.latent_size(family, settings.size) * family.vae_factor
    selection = replace(selection_of(settings), flip=False, buckets=False)
    return datasets.open_source(context.data_name, split, side, selection)


def _examples(context: TrainContext, split: str) -> Iterator[Encoded]:
    """The first held-out examples, encoded one by one."""
    data = _open(context, split)
    order = data.in_order(0) if isinstance(data, datasets.Stream) else readers(data, range(len(data)))
    for example in usable(order, PICTURES):
        yield context.encoder.encode([Slot(0, example, None)])[0]


def _inputs(context: TrainContext, number: int, encoded: Encoded) -> dict[str, Any]:
    """A UNet's arguments for one picture at every level of noise."""
    steps, device = len(context.alphas), context.accelerator.device
    times = torch.tensor([int((i + 0.5) * steps / LEVELS) for i in range(LEVELS)], device=device)
    clean = encoded.mean[None].expand(LEVELS, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=seeded(context.settings.seed, OWN_SEED, number)).to(device)
    noisy, _ = losses.noisy_and_target(clean, noise, context.alphas[times], context.prediction_type)

    def per_level(row: torch.Tensor) -> torch.Tensor:
        return row[None].expand(LEVELS, *row.shape)

    inputs: dict[str, Any] = {"sample": noisy, "timestep": times, "encoder_hidden_states": per_level(encoded.states)}
    if encoded.pooled is not None and encoded.time_ids is not None:
        inputs["added_cond_kwargs"] = {
            "text_embeds": per_level(encoded.pooled),
            "time_ids": per_level(encoded.time_ids),
        }
    return inputs | {"return_dict": False}
