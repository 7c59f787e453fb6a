"""UNet latency of teacher and students, interleaved, until the ratios' intervals are narrow or the budget ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asdm.evaluate.compared import ComparedUNet
from asdm.evaluate.settings import BenchSettings
from asdm.measure import clocks, repeats
from asdm.measure.clocks import Clock
from asdm.measure.statistics import paired_ratio
from asdm.models import example_inputs
from asdm.models.families import Family
from asdm.records.bench import BenchResult
from asdm.records.measurement import Estimate
from asdm.utils.progress import Tell


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
    what, widest = max(ratios, key=lambda named: _half_width(named[1]))
    if _half_width(widest) <= settings.target:
        return None
    return (
        f"this machine is too noisy for the time budget of {settings.time_budget_s:g} s: the latency ratio of the "
        f"{what} is known to ±{_half_width(widest):.3f}, and the target is ±{settings.target:g}; close other programs "
        "or raise --time-budget."
    )
