"""Every pass at every step of the teacher's own trajectory, with what it inherits from there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asdm.models.families import Family
from asdm.schedule import clean, forecast
from asdm.schedule.kept import CONDITIONAL, UNCONDITIONAL, Kept
from asdm.schedule.legality import HalfPass, Place, ResolvedSchedule, Step
from asdm.schedule.patches import patched
from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm.schedule.unet import CLEAN, WHOLE, ScheduledUNet
from asdm_prof.planner.schedule import passes as passes_of
from asdm_prof.sensitivity.trajectories import Batch, Sampler

BOTH = (UNCONDITIONAL, CONDITIONAL)


@dataclass
class Study:
    """The networks, passes and sampler of a measurement."""

    family: Family
    networks: Mapping[str, nn.Module]
    passes: Mapping[str, Pass]
    steps: Mapping[str, Step]  # every pass, resolved
    sampler: Sampler
    ages: int
    schedules: list[Schedule]

    @property
    def places(self) -> dict[str, frozenset[Place]]:
        """All that any pass inherits, by network."""
        wanted: dict[str, frozenset[Place]] = dict.fromkeys(self.networks, frozenset({WHOLE}))
        for step in self.steps.values():
            name = step.conditional.network
            wanted[name] |= step.conditional.places | (step.unconditional.places if step.unconditional else frozenset())
        return wanted


class Forced:
    """One batch's trajectory by the teacher, and every pass at every step of it, with what it inherits from there."""

    def __init__(self, study: Study, batch: Batch) -> None:
        self.study, self.batch = study, batch
        self.halves = BOTH if study.sampler.guided else (CONDITIONAL,)
        self.outputs: dict[str, list[torch.Tensor]] = {name: [] for name in study.networks}
        self.cleans: dict[str, list[torch.Tensor]] = {name: [] for name in study.networks}
        self.noise: list[tuple[tuple[float, float], str]] = []
        self.rows = torch.empty(0)
        self.starts: list[tuple[int, torch.Tensor, Any]] = []
        self.kept: dict[str, list[Kept]] = {name: [] for name in study.networks}
        self.errors: dict[str, list[Any]] = {name: [] for name in study.passes}

    def plain(self, step: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.study.networks[TEACHER](rows, t, self.batch.states, return_dict=False)[0]

    def run(self, tell: Any) -> torch.Tensor:
        """The teacher's final latents, with the errors of every pass on the way."""
        places = self.study.places

        def predict(step: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            tell(step)
            scheduler = self.starts[-1][2]
            self.rows = rows
            self.noise.append((clean.rates(scheduler, float(t)), scheduler.config.prediction_type))
            for name, unet in self.study.networks.items():
                kept, how = Kept(1), HalfPass(name, frozenset())
                with patched(unet, how, places[name], kept, step, self.halves):
                    output = unet(rows, t, self.batch.states, return_dict=False)[0]
                kept.put((name, WHOLE, 0), step, self.halves, output)
                self.outputs[name].append(output)
                self.cleans[name].append(clean.clean_of(output, rows, *self.noise[-1]))
                self.kept[name] = [*self.kept[name], kept][-2 * self.study.ages - 1 :]
            for name in self.study.passes:
                self.errors[name].append(self._errors(name, step, rows, t))
            return self.outputs[TEACHER][step]

        return self.study.sampler.draw(self.batch, predict, watch=self._watch)

    def _watch(self, step: int, latents: torch.Tensor, scheduler: Any) -> None:
        self.starts.append((step, latents, copy.deepcopy(scheduler)))

    def _errors(self, name: str, step: int, rows: torch.Tensor, t: torch.Tensor) -> list[list[float | None]]:
        """Summed errors by age and gap; of a pass that inherits nothing, one."""
        one, how = self.study.passes[name], self.study.steps[name]
        if not how.conditional.places and (how.unconditional is None or not how.unconditional.places):
            return [[self._summed(self._without_age(how))]]
        ages = range(1, min(self.study.ages, step) + 1)
        if passes_of.inherits_only_output(one):
            return [[self._of_outputs(how, step, age, gap) for gap in range(1, self.study.ages + 1)] for age in ages]
        return [[self._of_network(how, step, age, rows, t)] for age in ages]

    def _without_age(self, how: Step) -> torch.Tensor:
        own = self.outputs[how.conditional.network][-1]
        if how.unconditional is None:
            conditional = own.chunk(2)[CONDITIONAL]
            return torch.cat([conditional, conditional])
        return own

    def _of_outputs(self, how: Step, step: int, age: int, gap: int) -> float | None:
        """From kept outputs alone: no network runs."""
        assert how.unconditional is not None
        network = how.conditional.network
        halves: list[torch.Tensor] = []
        for half, which in zip((how.unconditional, how.conditional), BOTH, strict=True):
            if half.runs:
                halves.append(self._half_of(self.outputs[network][step], which))
                continue
            reach = half.forecast.values if half.forecast else 1
            steps = [s for s in (step - age - i * gap for i in reversed(range(reach))) if s >= 0]
            if half.forecast and len(steps) < 2:
                return None
            weights = forecast.weights(half.forecast, steps, step)
            as_clean = CLEAN in half.places
            kept = self.cleans[network] if as_clean else self.outputs[network]
            values = [w * self._half_of(kept[s], which) for w, s in zip(weights, steps, strict=True)]
            value = torch.stack(values).sum(0)
            rows = self._half_of(self.rows, which)
            halves.append(clean.output_of(value, rows, *self.noise[step]) if as_clean else value)
        return self._summed(torch.cat(halves) if self.study.sampler.guided else halves[CONDITIONAL])

    def _half_of(self, output: torch.Tensor, half: int) -> torch.Tensor:
        return output.chunk(2)[half] if self.study.sampler.guided else output

    def _of_network(self, how: Step, step: int, age: int, rows: torch.Tensor, t: torch.Tensor) -> float:
        """A partial pass on the teacher's own input, with what the teacher kept `age` (and twice that) steps before."""
        half = how.conditional
        kept = Kept(2)
        for back in (2 * age, age):
            if step - back >= 0:
                own = self.kept[half.network][-1 - back]
                for (key, which), values in own.by_half.items():
                    kept.by_half.setdefault((key, which), []).extend(values)
        unet = self.study.networks[half.network]
        with patched(unet, half, (), kept, step, self.halves):
            output = unet(rows, t, self.batch.states, return_dict=False)[0]
        return self._summed(output)

    def _summed(self, output: torch.Tensor) -> float:
        guide = self.study.sampler.guide
        return float(error_of(guide(output), guide(self.outputs[TEACHER][-1])).sum())

    # ------------------------------------------------------------------------------------------ free to the end

    def gain(self, step: int, final: torch.Tensor) -> tuple[float, float]:
        """Summed errors of the output at a step that inherits the one before it, and of the final latent after it."""
        guide = self.study.sampler.guide
        taken, own = self.outputs[TEACHER][step - 1], self.outputs[TEACHER][step]

        def predict(now: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return taken if now == step else self.plain(now, rows, t)

        ended = self.study.sampler.draw(self.batch, predict, start=self.starts[step])
        return float(error_of(guide(taken), guide(own)).sum()), float(error_of(ended, final).sum())

    def scheduled(self, schedule: Schedule | ResolvedSchedule) -> torch.Tensor:
        """Final latents by a schedule."""
        unet = ScheduledUNet(self.study.networks, schedule, self.study.sampler.new(), guided=self.study.sampler.guided)

        def predict(step: int, rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return unet(rows, t, self.batch.states, return_dict=False)[0]

        return self.study.sampler.draw(self.batch, predict)


def error_of(output: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean square per element of each picture: (n, 4, h, w) → (n,)."""
    return (output.cpu().double() - teacher.cpu().double()).square().mean((1, 2, 3))
