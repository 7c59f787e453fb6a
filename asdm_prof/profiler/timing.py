"""Seconds of a UNet's calls and parts, of replacements in their places, and of the hooks.

Unit times are taken in place by hooks inside the real forward. Hooked and bare calls alternate (A B B A), so that the
cost of the hooks is measured too. Replacements are timed in rounds (asdm_prof/profiler/options.py), one after the other
and after the UNet itself, so that at most one runtime's copy of the weights is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from asdm.measure import clocks, machine, repeats, statistics
from asdm.measure.backends import Attribution, Session
from asdm.measure.clocks import Clock
from asdm.measure.device import is_gpu
from asdm.models import example_inputs
from asdm.models.families import Family
from asdm.plan.edits import ReplaceUnit
from asdm.records.measurement import HostUse
from asdm.unet import blocks, surgery
from asdm_prof.profiler.gpu import GpuRun
from asdm_prof.profiler.gpu_checks import GpuFindings
from asdm_prof.profiler.options import stand_ins
from asdm_prof.profiler.progress import Status, Watch
from asdm_prof.profiler.settings import ProfileSettings

FEW_ROUNDS = 3
ROUND_SECONDS, ROUND_CALLS = 8.0, 12  # of a round where there are many: 2 calls at least
PATTERN = ("hooked", "bare", "bare", "hooked")


@dataclass
class Timings:
    """Raw seconds of every call, in the order of measurement."""

    bare_s: list[float] = field(default_factory=list)
    hooked_s: list[float] = field(default_factory=list)
    parts_s: dict[str, list[float]] = field(default_factory=dict)
    options_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # round → part → seconds
    attribution: Attribution | None = None  # of the teacher's part times
    host: HostUse | None = None  # while the teacher was timed
    gpu: GpuFindings | None = None  # likewise


def time_unet(
    unet: nn.Module,
    inputs: dict[str, Any],
    parts: Sequence[blocks.Part],
    options: dict[str, list[ReplaceUnit]],
    shapes: nn.Module,
    backend: Any,
    clock: Clock,
    settings: ProfileSettings,
    started: float,
    tell: Watch,
) -> Timings:
    """Time the UNet itself, then each round of options, whose modules are made from the shapes on the meta device.

    A round has half as many calls as there were bare ones; where there are many rounds, a few seconds each.
    """
    teacher = backend.open_session(unet, inputs, parts, clock)
    many = len(options) > FEW_ROUNDS
    timings = _time_teacher(teacher, parts, 0 if many else len(options), settings, started, tell)
    calls = len(timings.bare_s) // 2
    if many:
        calls = 1 + max(2, min(ROUND_CALLS, int(ROUND_SECONDS / statistics.estimate(timings.bare_s).median)))
    del teacher  # before the next session is opened: a runtime may hold weights of its own
    for name, edits in options.items():
        modules = stand_ins(unet, shapes, edits)
        tell(Status(f"opening with {name}"))
        with surgery.swapped(unet, modules):
            session: Session = backend.open_session(unet, inputs, list(blocks.iter_parts(unet)), clock)
            timings.options_s[name] = _time_round(session, name, calls, tell)
        del session
    return timings


def _time_teacher(
    session: Session, parts: Sequence[blocks.Part], options: int, settings: ProfileSettings, started: float, tell: Watch
) -> Timings:
    """Warm up, then hooked, bare, bare, hooked … until the interval is narrow; leaves the replacements their time."""
    timings = Timings(parts_s={part.fqn: [] for part in parts}, attribution=session.attribution)
    tell(Status("warming up"))
    wall = clocks.HostClock()
    began = wall.mark()
    calls = repeats.warm_up(session.run, budget_s=settings.time_budget_s / 10)
    compiling_s = max(0.0, wall.seconds(began, wall.mark()) - len(calls) * calls[-1])  # minutes in some runtimes
    left_s = settings.time_budget_s - wall.seconds(started, wall.mark()) + compiling_s
    host, gpu = machine.HostWatch(), GpuRun(settings.device) if is_gpu(settings.device) else None

    def progress(calls: int, eta_s: float) -> None:
        tell(Status("measuring", calls, eta_s, timings.parts_s))
        if gpu:
            gpu.watch.look()

    samples = repeats.interleave(
        {
            "hooked": lambda: _run_parts(timings.parts_s, session),
            "bare": gpu.walled(session.run) if gpu else session.run,
        },
        PATTERN,
        wall,
        settings.min_rounds,
        budget_s=left_s * len(PATTERN) / (len(PATTERN) + options),
        enough=lambda s: statistics.relative_half_width(s["hooked"]) <= settings.target,
        progress=progress,
        floor_s=repeats.least_seconds(settings.device),
    )
    timings.bare_s, timings.hooked_s, timings.host = samples["bare"], samples["hooked"], host.read()
    timings.gpu = gpu.end(len(timings.bare_s) + len(timings.hooked_s)) if gpu else None
    if timings.gpu and settings.backend == "cudagraph":  # its own seconds are the kernels'
        timings.gpu.kernels_s, timings.gpu.parts_s = timings.bare_s, timings.parts_s
    return timings


def _time_round(session: Session, name: str, calls: int, tell: Watch) -> dict[str, list[float]]:
    """Seconds of every part, by fqn, with a round's replacements in place, after one call to warm up."""
    rows: dict[str, list[float]] = {}
    stage = f"measuring with {name}"
    tell(Status(stage))
    session.run()
    repeats.interleave(
        {name: lambda: _run_parts(rows, session)},
        (name,),
        clocks.HostClock(),
        min_rounds=max(calls - 1, 2),
        max_rounds=max(calls - 1, 2),
        budget_s=math.inf,
        progress=lambda n, eta: tell(Status(stage, n, eta, rows)),
    )
    return rows


def _run_parts(rows: dict[str, list[float]], session: Session) -> float:
    """Seconds of one call; those of its parts are appended to their rows."""
    whole, times = session.run_parts()
    for fqn, seconds in times.items():
        rows.setdefault(fqn, []).append(seconds)
    return whole


def time_hooks(
    family: Family,
    unet: nn.Module,
    parts: Sequence[blocks.Part],
    backend: Any,
    clock: Clock,
    settings: ProfileSettings,
    tell: Watch,
) -> list[float]:
    """Hooked minus bare seconds of neighbouring calls on the smallest image, which has the least noise."""
    tell(Status("timing the hooks"))
    inputs = example_inputs.unet_inputs(family, 1, family.size_step, settings.device, settings.dtype, settings.seed)
    session: Session = backend.open_session(unet, inputs, parts, clock)
    session.run()
    calls = {"hooked": lambda: session.run_parts()[0], "bare": session.run}
    samples = repeats.interleave(calls, PATTERN, clocks.HostClock(), min_rounds=10, budget_s=15.0)
    return [hooked - bare for hooked, bare in zip(samples["hooked"], samples["bare"], strict=True)]
