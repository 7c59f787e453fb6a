"""profile(family, …) → Profile: where one UNet call spends its time on this machine (docs/methods/measurement.md).

Unit times are taken in place, by hooks inside the real forward; hooked and bare calls alternate (A B B A), so the
hooks' own cost is measured too. Replacements are timed in their unit's place, one after the other and after the
UNet itself, so that no more than one runtime's copy of the weights is there at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from asdm.measure import backends, clocks, machine, repeats, statistics
from asdm.measure.backends import Attribution, Session
from asdm.measure.clocks import Clock
from asdm.measure.statistics import estimate, latency
from asdm.models import example_inputs, execution, loading
from asdm.models.components import components_of, count_call, time_calls
from asdm.models.families import Family, load_family
from asdm.plan.edits import ReplaceUnit
from asdm.plan.topology import Topology
from asdm.records.measurement import HostUse, Macs
from asdm.unet import blocks, flops, surgery
from asdm.utils import registry
from asdm.utils.io import utc_now
from asdm_prof.profiler import checks, roofline
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import ComponentRecord, OptionRecord, PartRecord, Peaks, Profile, WholeRecord

REPLACEMENTS = ("gri_attention", "cond_conv")
SESSIONS = 2  # at a time: a runtime may take the times of parts in a session of its own


@dataclass
class Status:
    """What a live display shows while the profile runs."""

    stage: str
    calls: int = 0
    eta_s: float | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)


Watch = Callable[[Status], None]


def profile(
    family: str | Family,
    settings: ProfileSettings = ProfileSettings(),
    watch: Watch | None = None,
    clock: Clock | None = None,
    command: str = "",
) -> Profile:
    """Measure a family's UNet unit by unit.

    Raises ValueError for an unknown name, a size that does not fit, or too little memory (before taking it).
    """
    started = clocks.HostClock().mark()
    family = load_family(family) if isinstance(family, str) else family
    tell = watch or (lambda _: None)
    execution.check_setup(settings)
    device = settings.device
    clock = clock or clocks.clock_for(device)
    backend = backends.load(settings.backend, settings.dtype, device)
    weights = settings.weights or loading.default_weights(family)

    # Count on the meta device: exact, at once, and it says how much memory the rest needs.
    tell(Status("counting"))
    shapes = loading.meta_unet(family, settings.dtype)
    parts = list(blocks.iter_parts(shapes))
    meta_inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, "meta", settings.dtype)
    counted = flops.count(shapes, (), meta_inputs, parts)
    shape = blocks.topology(shapes)

    # Make the model and open the session.
    unet = shapes
    if backend.NEEDS_WEIGHTS:
        session = backends.session_bytes(backend, counted.parameter_bytes, counted.peak_memory_bytes)
        need = int(1.1 * counted.peak_memory_bytes + SESSIONS * session) + machine.SPARE_BYTES
        machine.require_memory(need, device, f"profiling {family.name} in {settings.dtype}")
        tell(Status("building"))
        unet = loading.load_unet(family, weights, device, settings.dtype, settings.seed)
    inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, device, settings.dtype, settings.seed)
    parts = list(blocks.iter_parts(unet))
    options = replaceable(shape, unet)

    second = _second_count(family, unet, device, settings, tell) if backend.NEEDS_WEIGHTS else None

    with machine.quiet_torch(settings.threads) as threads:
        hook_cost_s = _hook_cost(family, unet, parts, backend, clock, settings, tell) if backend.HOOKED else []
        taken = _take(unet, inputs, parts, options, backend, clock, settings, started, tell)
        components = _components(family, settings, device, clock, tell)
        peaks = None
        if backend.NEEDS_WEIGHTS:
            tell(Status("measuring peaks"))
            peaks = roofline.calibrate(backend, settings.dtype, device, clock)
        facts = machine.environment(device, threads)

    hooked = np.asarray(taken.hooked_s)
    records = [_part_record(part, counted, taken.parts_s[part.fqn], hooked, peaks) for part in parts]
    other_s = hooked - np.sum([taken.parts_s[part.fqn] for part in parts], axis=0)
    records.append(_other_record(parts, counted, other_s, hooked))
    whole = WholeRecord(
        params=counted.params,
        peak_memory_bytes=counted.peak_memory_bytes,
        thop_macs=counted.thop_macs,
        latency_s=latency(taken.bare_s),
        hooked_latency_s=latency(taken.hooked_s),
        uncounted_ops=counted.uncounted_ops,
        **_columns(counted.total),
    )
    measured = {part.fqn: part for part in records}
    seen = taken.attribution
    return Profile(
        created_utc=utc_now(),
        command=command,
        family=family.name,
        title=family.title,
        weights=loading.weights_name(family, weights),
        config_sha256=loading.unet_config_sha256(shapes.config),
        backend=settings.backend,
        dtype=settings.dtype,
        device=device,
        threads=threads,
        seed=settings.seed,
        batch=settings.batch,
        size=settings.size or family.size,
        latent=example_inputs.latent_size(family, settings.size),
        topology=shape,
        whole=whole,
        units=tuple(part for part in records if part.kind != "glue"),
        glue=tuple(part for part in records if part.kind == "glue"),
        options=tuple(_option_records(unet, taken, measured, settings, family)),
        components=components,
        peaks=peaks,
        mapped_share=estimate(seen.mapped) if seen else None,
        observed_slowdown=estimate(seen.slowdown) if seen else None,
        trust=checks.box(
            whole, records, taken.hooked_s, taken.bare_s, second, counted.uncounted_ops, hook_cost_s, seen, taken.host
        ),
        host=taken.host,
        weights_sha256=loading.weights_sha256(unet) if backend.NEEDS_WEIGHTS and weights != execution.RANDOM else None,
        environment=facts,
    )


# ---------------------------------------------------------------------------------------------- options


def replaceable(shape: Topology, unet: nn.Module) -> dict[str, list[ReplaceUnit]]:
    """Which replacements are worth timing: all that apply to units of the highest resolution that has attention."""
    with_attention = [
        b for b in shape.down_blocks if any(u.kind == "transformer" and u.block == b for u in shape.units)
    ]
    if not with_attention:
        return {}
    pair = (with_attention[0], shape.mirror(with_attention[0]))
    shallow = [unit.fqn for unit in shape.units if unit.block in pair]
    found = {}
    for name in REPLACEMENTS:
        replace = registry.load("asdm.unet.replacements", name).replace
        edits = [
            ReplaceUnit(unit=fqn, with_=name)
            for fqn in shallow
            if replace(unet.get_submodule(fqn), blocks.siblings(unet, fqn)) is not None
        ]
        if edits:
            found[name] = edits
    return found


# ---------------------------------------------------------------------------------------------- measuring


@dataclass
class Taken:
    """Raw seconds of every call, in the order they were taken."""

    bare_s: list[float] = field(default_factory=list)
    hooked_s: list[float] = field(default_factory=list)
    parts_s: dict[str, list[float]] = field(default_factory=dict)
    options_s: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # replacement → part → seconds
    attribution: Attribution | None = None  # of the teacher's part times
    host: HostUse | None = None  # while the teacher was timed


def _take(
    unet: nn.Module,
    inputs: dict[str, Any],
    parts: Sequence[blocks.Part],
    options: dict[str, list[ReplaceUnit]],
    backend: Any,
    clock: Clock,
    settings: ProfileSettings,
    started: float,
    tell: Watch,
) -> Taken:
    """The UNet as it is, then with each replacement in place, in as many calls as there were rounds."""
    taken = _take_whole(unet, inputs, parts, len(options), backend, clock, settings, started, tell)
    for name, edits in options.items():
        modules = {edit.unit: surgery.replacement_for(unet, edit) for edit in edits}
        tell(Status(f"opening with {name}"))
        with surgery.swapped(unet, modules):
            session: Session = backend.open_session(unet, inputs, list(blocks.iter_parts(unet)), clock)
            taken.options_s[name] = _take_option(session, name, len(taken.bare_s) // 2, tell)
        del session  # before the next one is opened: a runtime may hold weights of its own
    return taken


def _take_whole(
    unet: nn.Module,
    inputs: dict[str, Any],
    parts: Sequence[blocks.Part],
    options: int,
    backend: Any,
    clock: Clock,
    settings: ProfileSettings,
    started: float,
    tell: Watch,
) -> Taken:
    """Warm up, then hooked, bare, bare, hooked, until the interval is narrow enough; leaves options their time."""
    session: Session = backend.open_session(unet, inputs, parts, clock)
    taken = Taken(parts_s={part.fqn: [] for part in parts}, attribution=session.attribution)
    pattern = ("hooked", "bare", "bare", "hooked")

    def hooked() -> float:
        return _append(taken.parts_s, session)

    tell(Status("warming up"))
    repeats.warm_up(session.run, budget_s=settings.time_budget_s / 10)
    wall = clocks.HostClock()
    left_s = settings.time_budget_s - wall.seconds(started, wall.mark())
    host = machine.HostWatch()
    samples = repeats.interleave(
        {"hooked": hooked, "bare": session.run},
        pattern,
        wall,
        settings.min_rounds,
        budget_s=left_s * len(pattern) / (len(pattern) + options),
        enough=lambda s: statistics.relative_half_width(s["hooked"]) <= settings.target,
        progress=lambda n, eta: tell(Status("measuring", n, eta, taken.parts_s)),
    )
    taken.bare_s, taken.hooked_s, taken.host = samples["bare"], samples["hooked"], host.read()
    return taken


def _take_option(session: Session, name: str, calls: int, tell: Watch) -> dict[str, list[float]]:
    """Seconds of every part, by fqn, with a replacement in place; the first call warms up."""
    rows: dict[str, list[float]] = {}
    stage = f"measuring with {name}"
    tell(Status(stage))
    session.run()
    repeats.interleave(
        {name: lambda: _append(rows, session)},
        (name,),
        clocks.HostClock(),
        min_rounds=max(calls - 1, 2),
        max_rounds=max(calls - 1, 2),
        budget_s=math.inf,
        progress=lambda n, eta: tell(Status(stage, n, eta, rows)),
    )
    return rows


def _append(rows: dict[str, list[float]], session: Session) -> float:
    """Seconds of one call, whose parts' seconds are put into their rows."""
    whole, times = session.run_parts()
    for fqn, seconds in times.items():
        rows.setdefault(fqn, []).append(seconds)
    return whole


def _hook_cost(
    family: Family,
    unet: nn.Module,
    parts: Sequence[blocks.Part],
    backend: Any,
    clock: Clock,
    settings: ProfileSettings,
    tell: Watch,
) -> list[float]:
    """Hooked less bare seconds of neighbouring calls on the smallest image, where noise is smallest too."""
    tell(Status("timing the hooks"))
    inputs = example_inputs.unet_inputs(family, 1, family.size_step, settings.device, settings.dtype, settings.seed)
    session: Session = backend.open_session(unet, inputs, parts, clock)
    session.run()
    calls = {"hooked": lambda: session.run_parts()[0], "bare": session.run}
    samples = repeats.interleave(
        calls, ("hooked", "bare", "bare", "hooked"), clocks.HostClock(), min_rounds=10, budget_s=15.0
    )
    return [hooked - bare for hooked, bare in zip(samples["hooked"], samples["bare"], strict=True)]


def _second_count(
    family: Family, unet: nn.Module, device: str, settings: ProfileSettings, tell: Watch
) -> tuple[int, Macs, Macs]:
    """(pixels, our count, fvcore's count) of a small image with the real tensors."""
    tell(Status("counting again with fvcore"))
    size = 2 * family.size_step
    inputs = example_inputs.unet_inputs(family, 1, size, device, settings.dtype)
    ours = flops.count(loading.meta_unet(family), (), example_inputs.unet_inputs(family, 1, size, "meta"))
    return size, ours.total, flops.count_by_fvcore(_Positional(unet, inputs), _tensors(inputs))


def _tensors(inputs: dict[str, Any]) -> list[torch.Tensor]:
    return [inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]]


class _Positional(nn.Module):
    """A UNet that takes three tensors and returns one, as a jit trace wants it."""

    def __init__(self, unet: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.unet = unet
        self.rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep", "encoder_hidden_states")}

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, text, **self.rest)[0]


def _components(
    family: Family, settings: ProfileSettings, device: str, clock: Clock, tell: Watch
) -> tuple[ComponentRecord, ...]:
    records = []
    for component in components_of(family, settings.size):
        counted = count_call(component)
        taken = None
        if settings.time_components:
            tell(Status(f"timing the {component.name}"))
            taken = latency(time_calls(component, device, settings.dtype, settings.seed, clock))
        records.append(
            ComponentRecord(
                name=component.name,
                params=counted.params,
                calls_per_image=component.calls,
                latency_s=taken,
                **_columns(counted.total),
            )
        )
    return tuple(records)


# ---------------------------------------------------------------------------------------------- records


def _columns(macs: Macs) -> dict[str, int]:
    return {"conv_macs": macs.conv_macs, "linear_macs": macs.linear_macs, "attention_macs": macs.attention_macs}


def _part_record(
    part: blocks.Part, counted: flops.Count, seconds: list[float], whole: np.ndarray, peaks: Peaks | None
) -> PartRecord:
    macs, moved, calls = counted.by_part[part.fqn], counted.moved_by_part[part.fqn], counted.calls_by_part[part.fqn]
    taken = latency(seconds)
    return PartRecord(
        fqn=part.fqn,
        label=part.label,
        kind=part.kind,
        block=part.block,
        layer=part.layer,
        params=part.params,
        parameter_bytes=part.parameter_bytes,
        peak_memory_bytes=counted.peak_by_part.get(part.fqn, 0),
        moved_bytes=moved,
        latency_s=taken,
        share=estimate(np.asarray(seconds) / whole),
        roofline=roofline.place(macs.macs, moved, calls, taken.median, peaks) if peaks else None,
        **_columns(macs),
    )


def _other_record(
    parts: Sequence[blocks.Part], counted: flops.Count, seconds: np.ndarray, whole: np.ndarray
) -> PartRecord:
    """What runs between the parts; its share is the residual of units + glue against the whole."""
    known = counted.params - sum(part.params for part in parts)
    return PartRecord(
        fqn=blocks.OTHER,
        label=blocks.OTHER,
        kind="glue",
        block="",
        params=known,
        peak_memory_bytes=counted.peak_by_part.get(blocks.OTHER, 0),
        moved_bytes=counted.moved_by_part.get(blocks.OTHER, 0),
        latency_s=latency(list(seconds)),
        share=estimate(seconds / whole),
        **_columns(counted.by_part[blocks.OTHER]),
    )


def _option_records(
    unet: nn.Module, taken: Taken, measured: dict[str, PartRecord], settings: ProfileSettings, family: Family
) -> list[OptionRecord]:
    """Each replaced unit's share of the *teacher*: scaled, run by run, by the parts that were left alone."""
    records = []
    for name, rows in taken.options_s.items():
        swapped = {option.unit for option in replaceable(blocks.topology(unet), unet)[name]}
        alone = [fqn for fqn in rows if fqn not in swapped]
        alone_s = np.sum([rows[fqn] for fqn in alone], axis=0)
        alone_share = sum(measured[fqn].share.median for fqn in alone)
        edits = [ReplaceUnit(unit=fqn, with_=name) for fqn in sorted(swapped)]
        shapes = loading.meta_unet(family)
        surgery.apply_plan(shapes, surgery.resolved_on(shapes, edits))
        inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, "meta")
        parts = {part.fqn: part for part in blocks.iter_parts(shapes)}
        counted = flops.count(shapes, (), inputs, list(parts.values()))
        for edit in edits:
            seconds = np.asarray(rows[edit.unit])
            records.append(
                OptionRecord(
                    unit=edit.unit,
                    replacement=name,
                    params=parts[edit.unit].params,
                    latency_s=latency(list(seconds)),
                    share=estimate(seconds / alone_s * alone_share),
                    **_columns(counted.by_part[edit.unit]),
                )
            )
    return records
