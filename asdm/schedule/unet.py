"""A UNet that runs by a schedule, in the place of a pipeline's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from asdm.schedule import clean, patches
from asdm.schedule.calls import other_number
from asdm.schedule.kept import CONDITIONAL, UNCONDITIONAL, Halves, Kept
from asdm.schedule.legality import HalfPass, Place, ResolvedSchedule, resolve
from asdm.schedule.schedule import TEACHER, Schedule
from asdm.unet import blocks

WHOLE, CLEAN = Place("unet", ""), Place("clean", "")


class ScheduledUNet(nn.Module):
    """Runs its networks by a schedule: what a step inherits is not computed.

    The step comes from the timesteps of `scheduler`, which is the pipeline's. An image starts where its timesteps were
    set again, or where they go back; nothing of another image is inherited. Where an image starts in the middle of the
    schedule (image to image), its first step computes all. `calls` is the number of UNet calls per step: 2 where
    guidance runs the unconditional half in a call of its own, before the other. `guided` says whether a batch holds
    both halves, unconditional first; None: where its two halves of latents are the same.

    Raises ValueError for a schedule that is not legal on these networks.
    """

    def __init__(
        self,
        networks: nn.Module | Mapping[str, nn.Module],
        schedule: Schedule | ResolvedSchedule,
        scheduler: Any = None,
        calls: int = 1,
        guided: bool | None = None,
    ) -> None:
        super().__init__()
        named = {TEACHER: networks} if isinstance(networks, nn.Module) else dict(networks)
        self.networks: dict[str, nn.Module] = named
        self._registered = nn.ModuleList(named.values())  # a ModuleDict takes no name with a dot, as `half-0.5`
        if isinstance(schedule, Schedule):
            schedule = resolve({name: blocks.topology(unet) for name, unet in named.items()}, schedule)
        self.resolved = schedule
        self.scheduler, self.calls, self.guided = scheduler, calls, guided
        self.kept = Kept(schedule.values)
        self._table: Any = None
        self._times: list[float] = []
        self.reset()
        if calls == 2 and any(step.unconditional is None for step in schedule.steps):
            raise ValueError(
                f"{schedule.schedule.name} drops the unconditional half, which needs guidance in one batch (calls=1)."
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "networks" not in vars(self):
                raise
            return getattr(next(iter(self.networks.values())), name)  # config, dtype, LoRA's loaders, …

    def reset(self) -> None:
        """Forget what was kept: the next call begins an image."""
        self.kept.clear()
        self._step = -1
        self._call = 0
        self._both: bool | None = None
        self._sample: torch.Tensor | None = None

    # ------------------------------------------------------------------------------------------ a call

    def forward(
        self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: Any = None, return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As a UNet's."""
        self._advance(sample, timestep)
        inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states, **kwargs}
        step = self.resolved.steps[self._step]
        if self.calls == 2:
            half = (UNCONDITIONAL, CONDITIONAL)[self._call]
            how = step.conditional if half == CONDITIONAL else step.unconditional
            assert how is not None, "refused above"
            output = self._run(how, (half,), inputs)
        elif not self._is_both(sample):
            output = self._run(step.conditional, (CONDITIONAL,), inputs)
        elif step.unconditional is None:
            own = self._run(step.conditional, (CONDITIONAL,), _half(inputs, CONDITIONAL))
            output = torch.cat([own, own])
        elif step.alike:
            output = self._run(step.conditional, (UNCONDITIONAL, CONDITIONAL), inputs)
        else:
            halves = ((UNCONDITIONAL, step.unconditional), (CONDITIONAL, step.conditional))
            output = torch.cat([self._run(how, (half,), _half(inputs, half)) for half, how in halves])
        if not return_dict:
            return (output,)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        return UNet2DConditionOutput(sample=output)

    def _run(self, how: HalfPass, halves: Halves, inputs: dict[str, Any]) -> torch.Tensor:
        unet = self.networks[how.network]
        keep = self.resolved.steps[self._step].keep.get(how.network, frozenset())
        if not self._has(unet, how, halves):  # an image that starts in the middle
            how = HalfPass(how.network, frozenset())
        if not how.runs:
            return self._inherited(how, halves, inputs["sample"])
        output = self.call_network(how, keep, halves, inputs)
        if WHOLE in keep:
            self.kept.put((how.network, WHOLE, 0), self._step, halves, output)
        if CLEAN in keep:
            latent = clean.clean_of(output, inputs["sample"], *self._noise())
            self.kept.put((how.network, CLEAN, 0), self._step, halves, latent)
        return output

    def call_network(
        self, how: HalfPass, keep: frozenset[Place], halves: Halves, inputs: dict[str, Any]
    ) -> torch.Tensor:
        """One call of a network that inherits and keeps; what it keeps of the whole output is kept outside."""
        unet = self.networks[how.network]
        with patches.patched(unet, how, keep, self.kept, self._step, halves):
            return unet(**inputs, return_dict=False)[0]

    def _inherited(self, how: HalfPass, halves: Halves, sample: torch.Tensor) -> torch.Tensor:
        """The output of a network that does not run."""
        (place,) = how.places
        value = self.kept.get((how.network, place, 0), halves, self._step, how)
        return value if place == WHOLE else clean.output_of(value, sample, *self._noise())

    def _noise(self) -> tuple[tuple[float, float], str]:
        return clean.rates(self.scheduler, self._times[self._step]), self.scheduler.config.prediction_type

    def _has(self, unet: nn.Module, how: HalfPass, halves: Halves) -> bool:
        if not how.runs:
            return all(self.kept.has((how.network, place, 0), halves) for place in how.places)
        return all(
            self.kept.has(key, halves) for place in how.places for _, key in patches.keys_of(unet, how.network, place)
        )

    # ------------------------------------------------------------------------------------------ where we are

    def _advance(self, sample: torch.Tensor, timestep: Any) -> None:
        """Find the step of a call; an image begins where timesteps are new or go back."""
        value = float(timestep.flatten()[0] if isinstance(timestep, torch.Tensor) else timestep)
        table = getattr(self.scheduler, "timesteps", None)
        if table is None:
            raise ValueError("a scheduled UNet needs its pipeline's scheduler; set it, or use schedule_pipeline.")
        if table is not self._table:
            self._table, self._times = table, [float(t) for t in table]
            self._check_steps()
            self.reset()
        elif self.calls == 2 and self._call == 0 and self._step >= 0 and self._times[self._step] == value:
            self._call = 1
            return
        elif self.calls == 1 and self._repeats(sample, value):
            raise ValueError(
                f"the UNet was called twice at step {self._step} with the same latents; if guidance runs each half in "
                "a call of its own, set calls=2."
            )
        self._call, self._sample = 0, sample
        later = (i for i in range(self._step + 1, len(self._times)) if self._times[i] == value)
        step = next(later, None)
        if step is None:
            if value not in self._times:
                raise ValueError(
                    f"timestep {value:g} is not one of the {len(self._times)} that the scheduler has set; give the "
                    "scheduled UNet the scheduler that its pipeline has now."
                )
            self.reset()
            self._sample, step = sample, self._times.index(value)
        self._step = step

    def _check_steps(self) -> None:
        planned, has = len(self.resolved.steps), len(self._times)
        if planned != has:
            raise ValueError(other_number(self.resolved.schedule.name, planned, has, self.scheduler))

    def _repeats(self, sample: torch.Tensor, value: float) -> bool:
        if len(self._times) < 2 or self._step < 0 or self._times[self._step] != value or self._sample is None:
            return False
        return sample.shape == self._sample.shape and not sample.is_meta and torch.equal(sample, self._sample)

    def _is_both(self, sample: torch.Tensor) -> bool:
        if self.guided is not None:
            return self.guided
        if self._both is None:
            halves = sample.chunk(2) if len(sample) % 2 == 0 else ()
            self._both = len(halves) == 2 and torch.equal(*halves)
        return self._both


def _half(inputs: dict[str, Any], half: int) -> dict[str, Any]:
    """One half of every input that has a row for each latent."""
    batch = len(inputs["sample"])

    def cut(value: Any) -> Any:
        is_batched = isinstance(value, torch.Tensor) and value.dim() and len(value) == batch
        return value.chunk(2)[half] if is_batched else value

    return {name: tree_map(cut, value) for name, value in inputs.items()}


def use(pipe: Any, unet: nn.Module) -> None:
    """Put a UNet into a pipeline; a scheduled one gets the pipeline's sampler."""
    if isinstance(unet, ScheduledUNet):
        unet.scheduler = pipe.scheduler
    pipe.register_modules(unet=unet)


def schedule_pipeline(
    pipe: Any, schedule: Schedule | ResolvedSchedule, students: Mapping[str, nn.Module] | None = None, calls: int = 1
) -> ScheduledUNet:
    """Put a schedule into a diffusers pipeline; `students` are the networks that it names besides the teacher.

    Returns the scheduled UNet, which is the pipeline's from now on.
    """
    unet = pipe.unet.networks[TEACHER] if isinstance(pipe.unet, ScheduledUNet) else pipe.unet
    scheduled = ScheduledUNet({TEACHER: unet, **(students or {})}, schedule, calls=calls)
    use(pipe, scheduled)
    return scheduled
