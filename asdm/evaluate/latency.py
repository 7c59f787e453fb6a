"""Latency of teacher and students, interleaved: of UNet calls, and of whole images, composed of parts or run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.settings import BenchSettings
from asdm.measure import clocks, repeats, statistics
from asdm.measure.clocks import Clock
from asdm.measure.statistics import estimate, paired_ratio
from asdm.models import example_inputs
from asdm.models.components import components_of, time_calls
from asdm.models.families import Family
from asdm.models.pipeline import pipeline
from asdm.records.bench import BenchResult
from asdm.records.measurement import Estimate
from asdm.schedule.unet import use
from asdm.utils import sizes
from asdm.utils.progress import Tell

PROMPT = "a photograph of an astronaut riding a horse"
ComponentTimes = dict[str, tuple[int, list[float]]]  # by name: calls per image, and the seconds of measured calls


def compare_latency(
    backend: Any,
    everyone: Sequence[ComparedUNet],
    family: Family,
    settings: BenchSettings,
    clock: Clock,
    tell: Tell,
    batch: int,
    rounds: int,
    what: str,
    warm_ups: int = 2,
) -> list[list[float]]:
    """Seconds of every UNet's calls, interleaved A B … B A, so that a drift of the machine affects all alike."""
    inputs = example_inputs.unet_inputs(family, batch, settings.size, settings.device, settings.dtype, settings.seed)
    calls: dict[str, Callable[[], float]] = {}
    for i, compared in enumerate(everyone):
        tell(f"opening, {what} at batch {batch}", i, None)
        calls[str(i)] = backend.open_session(compared.unet, inputs, (), clock).run
    for i, call in enumerate(calls.values()):
        tell(f"warming up, {what} at batch {batch}", i, None)
        repeats.warm_up(call, at_least=warm_ups, budget_s=settings.time_budget_s / 20)
    order = list(calls)
    samples = repeats.interleave(
        calls,
        (*order, *reversed(order)),
        clocks.HostClock(),
        rounds,
        budget_s=settings.time_budget_s,
        enough=lambda times: all(_half_width(paired_ratio(times[i], times["0"])) <= settings.target for i in order[1:]),
        progress=lambda calls_done, left_s: tell(f"{what} at batch {batch}", calls_done, left_s),
        floor_s=repeats.least_seconds(settings.device),
    )
    return [samples[name] for name in order]


def _half_width(ratio: Estimate) -> float:
    return (ratio.high - ratio.low) / 2


def noise_warning(result: BenchResult, settings: BenchSettings) -> str | None:
    """One sentence if the time budget ended with an interval wider than the target, else None."""
    ratios = [
        (f"{what} of {student.name}", ratio)
        for student in result.students
        for what, ratio in (("UNet", student.unet_latency_ratio), ("guided step", student.guided_latency_ratio))
        if ratio is not None
    ]
    if not ratios:
        return None
    what, widest = max(ratios, key=lambda named: _half_width(named[1]))
    if _half_width(widest) <= settings.target:
        return None
    return (
        f"this machine is too noisy for the time budget of {settings.time_budget_s:g} s: the latency ratio of the "
        f"{what} is known to ±{_half_width(widest):.3f}, and the target is ±{settings.target:g}; close other programs "
        "or raise --time-budget."
    )


# ---------------------------------------------------------------------------------------------- whole images


def time_components(family: Family, settings: BenchSettings, clock: Clock, tell: Tell) -> ComponentTimes:
    """How often an image calls the text encoders and the VAE decoder, and the seconds of their calls."""
    times = {}
    for component in components_of(family, settings.size, settings.guided):
        tell(f"timing the {component.name}", 0, None)
        seconds = time_calls(component, settings.device, settings.dtype, settings.seed, clock)
        times[component.name] = (component.calls, seconds)
    return times


def compose_image(step: list[list[float]], i: int, parts: ComponentTimes, settings: BenchSettings) -> ImageLatency:
    """Text encoding + steps · UNet + decoding for the i-th UNet; the interval resamples all parts together."""

    def whole(draw: Callable[[list[float]], Any], j: int) -> Any:
        return settings.steps * draw(step[j]) + sum(calls * draw(times) for calls, times in parts.values())

    def median(times: list[float]) -> float:
        return float(np.median(times))

    def draws(times: list[float]) -> np.ndarray:  # one seed: teacher and student are resampled alike
        return statistics.bootstrap(np.asarray(times))

    ours, theirs, ours_s, theirs_s = whole(draws, i), whole(draws, 0), whole(median, i), whole(median, 0)
    return ImageLatency(statistics.interval(ours_s, ours), statistics.interval(ours_s / theirs_s, ours / theirs))


class Drawer(Protocol):
    """What draws images: a UNet of the comparison, or a schedule."""

    @property
    def unet(self) -> nn.Module: ...


@dataclass(frozen=True)
class ImageLatency:
    """Seconds of one image, and their ratio to the teacher's."""

    latency_s: Estimate
    ratio: Estimate


def run_images(
    everyone: Sequence[Drawer], family: Family, settings: BenchSettings, clock: Clock, tell: Tell
) -> list[ImageLatency]:
    """Runs the real pipeline from prompt to pixels, teacher, students and schedules interleaved."""
    pipe = pipeline(family, everyone[0].unet, settings)
    width, height = sizes.sides(settings.size or family.size)
    options = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale}
    options |= {"height": height, "width": width}

    def run(unet: nn.Module) -> float:
        use(pipe, unet)
        return clocks.timed(lambda: pipe(PROMPT, output_type="np", **options), clock)

    calls = {str(i): (lambda unet=compared.unet: run(unet)) for i, compared in enumerate(everyone)}
    order = list(calls)
    samples = repeats.interleave(
        calls,
        (*order, *reversed(order)),
        clocks.HostClock(),
        min_rounds=settings.image_rounds,
        max_rounds=settings.image_rounds,
        progress=lambda calls_done, left_s: tell("whole image", calls_done, left_s),
    )
    return [ImageLatency(estimate(samples[i]), paired_ratio(samples[i], samples["0"])) for i in order]
