"""One lever against plain eager PyTorch: the steps of its passes in pairs with a plain step, composed to an image."""

from __future__ import annotations

import copy
import gc
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import nn

from asdm.measure import clocks, machine
from asdm.measure.statistics import estimate
from asdm.models import example_inputs
from asdm.models.families import Family
from asdm.models.pipeline import scheduler_of
from asdm.models.settings import Setup
from asdm.records.levers import Lever, Levers
from asdm.records.measurement import Estimate
from asdm.schedule import source
from asdm.schedule.calls import calls_of
from asdm.schedule.graphs import fast
from asdm.schedule.graphs.export import probe
from asdm.schedule.legality import resolve
from asdm.schedule.schedule import TEACHER, Schedule
from asdm.schedule.unet import ScheduledUNet
from asdm.unet import blocks
from asdm.utils.progress import Tell

PROMPT = "a photograph of an astronaut riding a horse"
Passes = dict[str, float]  # pass → seconds of a step
CLOCK = clocks.HostClock()


@dataclass
class Bench:
    """A pipeline whose levers are moved, one after the other; `pairs` are those of a plain step and a lever's."""

    pipe: Any
    family: Family
    setup: Setup
    steps: int
    guidance_scale: float
    pairs: int
    time_budget_s: float
    tell: Tell
    began: float = field(default_factory=time.monotonic)
    text_s: float = 0.0
    decode_s: float = 0.0
    step_s: float = 0.0

    def __post_init__(self) -> None:
        self.unet: nn.Module = self.pipe.unet
        self.calls = calls_of(self.pipe.scheduler, self.steps)
        self.plain = fast.plain(self.family, self.calls)
        rows = 2 if self.guidance_scale > 1 else 1
        self.inputs = example_inputs.unet_inputs(self.family, rows, self.setup.size, seed=self.setup.seed)
        self.inputs.pop("timestep")
        self.inputs["sample"] = self.inputs["sample"][:1].repeat(rows, 1, 1, 1)  # as guidance repeats them
        self.say("plain")
        for _ in range(2):  # the second of each counts
            self.text_s = clocks.timed(self._encode, CLOCK)
            self.decode_s = clocks.timed(self._decode, CLOCK)
            self.step_s = self.step()[0]

    @property
    def around_s(self) -> float:
        """Seconds of text encoder and VAE."""
        return self.text_s + self.decode_s

    # ------------------------------------------------------------------------------------------ calls

    def _encode(self) -> None:
        self.pipe.encode_prompt(
            prompt=PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=self.guidance_scale > 1
        )

    def _decode(self) -> torch.Tensor:
        return self.pipe.vae.decode(self.inputs["sample"][:1, : self.pipe.vae.config.latent_channels]).sample

    def step(self) -> tuple[float, torch.Tensor]:
        """Seconds and output of one step of plain eager PyTorch."""
        out: list[torch.Tensor] = []
        timestep = self.timesteps(1)[0]
        seconds = clocks.timed(lambda: out.append(self.unet(timestep=timestep, **self.inputs)[0]), CLOCK)
        return seconds, out[0]

    def passes(self, unet: ScheduledUNet) -> tuple[Passes, torch.Tensor]:
        """Seconds of each pass of a schedule at its first step, and the output of the first, which is in full."""
        whole, seconds, outputs = unet.resolved, Passes(), list[torch.Tensor]()
        shapes = {name: blocks.topology(own) for name, own in unet.networks.items()}
        unet.resolved = resolve(shapes, probe(whole.schedule))
        steps = unet.resolved.schedule.steps
        try:
            for name, t in zip(steps, self.timesteps(len(steps), unet), strict=True):
                call = partial(unet, timestep=t, **self.inputs)
                seconds[name] = clocks.timed(lambda call=call: outputs.append(call()[0]), CLOCK)  # type: ignore[misc]
        finally:
            unet.resolved = whole
            unet.reset()
        return seconds, outputs[0]

    def timesteps(self, steps: int, unet: ScheduledUNet | None = None) -> torch.Tensor:
        """The first timesteps of an image, set again so that one begins; `unet` gets their scheduler."""
        scheduler = DDIMScheduler.from_config(scheduler_of(self.family).config)
        scheduler.set_timesteps(self.calls)
        scheduler.timesteps = scheduler.timesteps[:steps]
        if unet:
            unet.scheduler = scheduler
        return scheduler.timesteps

    def image(self) -> float:
        """Seconds of a whole image by the pipeline as it is, from prompt to pixels."""
        width, height = example_inputs.latent_sides(self.family, self.setup.size)[::-1]
        factor = self.family.vae_factor
        options = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, "output_type": "np"}
        sides = {"width": factor * width, "height": factor * height}
        generator = torch.Generator().manual_seed(self.setup.seed)
        return clocks.timed(lambda: self.pipe(PROMPT, generator=generator, **options, **sides), CLOCK)

    # ------------------------------------------------------------------------------------------ levers

    def open(self, levers: Levers, networks: Mapping[str, nn.Module], schedule: Schedule) -> ScheduledUNet:
        """Networks by a schedule in a runtime; what is compiled is a copy, for the plain ones stay as they are."""
        if levers.runtime == "compiled":
            networks = {name: copy.deepcopy(unet) for name, unet in networks.items()}
        return fast.opened(
            levers, networks, schedule, self.family, self.setup, self.guidance_scale, lambda *_: None
        )  # fmt: skip

    def networks(self, levers: Levers) -> tuple[dict[str, nn.Module], Schedule]:
        """The networks of a student and a schedule, and the schedule, plain where levers name none."""
        teacher = self.unet
        if levers.student:
            teacher = source.student_of(levers.student, self.unet, self.family, self.setup)
        if not levers.schedule:
            return {TEACHER: teacher}, self.plain
        schedule = source.read_schedule(levers.schedule, teacher, self.family.name, self.calls, self.pipe.scheduler)
        return {TEACHER: teacher, **source.students_of(schedule, teacher, self.family, self.setup)}, schedule

    def lever(self, name: str, levers: Levers) -> Lever:
        """Move one lever; raises ValueError where that cannot be done here."""
        self.say(f"opening {name}")
        networks, schedule = self.networks(levers)
        unet = self.open(levers, networks, schedule)
        _, output = self.passes(unet)  # warms up, too
        _, expected = self.step()
        error = _rms(output - expected) / _rms(expected)
        plain, moved = [], []
        for pair in range(self.pairs):
            self.say(name)
            first = pair % 2  # A B B A
            if not first:
                plain.append(self.step()[0])
            moved.append(self._moved(levers, unet))
            if first:
                plain.append(self.step()[0])
        gc.collect()
        return Lever(
            name=name, levers=levers, factor=self.factor(plain, self.plain, moved, schedule), error=error,
            pass_s={one: float(np.median([own[one] for own in moved])) for one in moved[0]},
        )  # fmt: skip

    def decoder(self, levers: Levers) -> tuple[Lever, nn.Module]:
        """The VAE's decoder in the runtime of levers, and the lever that it is."""
        name = f"decoder in {levers.runtime} {levers.precision}"
        self.say(f"opening {name}")
        moved = Levers(runtime=levers.runtime, precision=levers.precision, decoder=True)
        vae = self.pipe.vae
        plain, graph, samples = vae.decoder, fast.decoder(moved, vae, self.family, self.setup), list[float]()
        expected, error = self._decode(), 0.0
        for pair in range(self.pairs + 1):
            self.say(name)
            seconds = []
            for vae.decoder in (plain, graph):
                seconds.append(clocks.timed(self._decode, CLOCK))
            if pair == 0:  # warms up
                error = _rms(self._decode() - expected) / _rms(expected)
            else:
                rest_s = self.text_s + self.calls * self.step_s
                samples.append((rest_s + seconds[0]) / (rest_s + seconds[1]))
        vae.decoder = plain
        return Lever(name=name, levers=moved, factor=estimate(samples), pass_s={}, error=error), graph

    def _moved(self, levers: Levers, unet: ScheduledUNet) -> Passes:
        if not levers.keep_memory:
            return self.passes(unet)[0]
        machine.keep_freed_memory()
        self.passes(unet)  # fills what is kept
        seconds = self.passes(unet)[0]
        machine.keep_freed_memory(False)
        return seconds

    def factor(
        self, plain: Sequence[float | Passes], of: Schedule, moved: Sequence[Passes], schedule: Schedule
    ) -> Estimate:
        """Image time of the first / image time of the second, pair by pair."""

        def image_s(seconds: float | Passes, schedule: Schedule) -> float:
            counts = Counter(schedule.steps)
            steps_s = (n * (seconds[name] if isinstance(seconds, dict) else seconds) for name, n in counts.items())
            return self.around_s + sum(steps_s)

        return estimate([image_s(a, of) / image_s(b, schedule) for a, b in zip(plain, moved, strict=True)])

    def say(self, stage: str) -> None:
        self.tell(stage, 0, self.left_s())

    def left_s(self) -> float:
        """Seconds left of the budget."""
        return max(self.began + self.time_budget_s - time.monotonic(), 0.0)


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
