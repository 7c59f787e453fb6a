"""MACs of a schedule as it runs, counted on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from asdm.schedule.legality import ResolvedSchedule
from asdm.schedule.schedule import Schedule
from asdm.schedule.unet import ScheduledUNet
from asdm.unet import flops


def macs_as_run(
    networks: nn.Module | Mapping[str, nn.Module],
    schedule: Schedule | ResolvedSchedule,
    inputs: dict[str, Any],
    guided: bool = False,
) -> list[int]:
    """MACs of every step of an image, of networks and inputs on the meta device; what is inherited counts nothing.

    With `guided`, the inputs hold both halves of guidance, the unconditional one first.
    """
    scheduled = ScheduledUNet(networks, schedule, guided=guided)
    steps, names = scheduled.resolved.steps, scheduled.resolved.schedule.steps
    scheduled.scheduler = SimpleNamespace(timesteps=torch.arange(len(steps), 0, -1))
    by_pass: dict[str, int] = {}
    counts = []
    for number, name in enumerate(names):
        if name not in by_pass:
            call = inputs | {"timestep": float(len(steps) - number)}
            by_pass[name] = flops.count(scheduled, (), call).total.macs
        counts.append(by_pass[name])
    return counts
