"""`asdm-prof profile`: where a UNet call spends its time on this machine (docs/methods/measurement.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from asdm.measure import backends, clocks, machine
from asdm.measure.backends._onnx import Call
from asdm.measure.clocks import Clock
from asdm.measure.statistics import estimate
from asdm.models import example_inputs, execution, loading
from asdm.models.families import Family
from asdm.models.sources import resolve
from asdm.records.measurement import Macs
from asdm.unet import blocks, flops
from asdm.utils import sizes
from asdm_prof.profiler import checks, gpu, roofline
from asdm_prof.profiler.options import parse_options, replaceable
from asdm_prof.profiler.progress import Status, Watch
from asdm_prof.profiler.results import component_records, option_records, unit_records, whole_record
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.profiler.timing import time_hooks, time_unet
from asdm_prof.records import Profile

SESSIONS = 2  # at a time: a runtime may measure the parts in a session of its own


def profile(
    family: str | Family,
    settings: ProfileSettings = ProfileSettings(),
    watch: Watch | None = None,
    clock: Clock | None = None,
    command: str = "",
) -> Profile:
    """Measure the UNet of a family unit by unit.

    Raises ValueError for an unknown name, a size that does not fit, or too little memory.
    """
    started = clocks.HostClock().mark()
    family, weights = resolve(family, settings)
    settings = replace(settings, weights=weights)
    tell = watch or (lambda _: None)
    execution.check_setup(settings)
    parse_options(settings.options)
    device = settings.device
    clock = clock or clocks.clock_for(device)
    backend = backends.load(settings.backend, settings.dtype, device)

    # Counting on the meta device is exact and fast, and tells how much memory the measurement needs.
    tell(Status("counting"))
    shapes = loading.meta_unet(family, settings.dtype)
    inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, "meta", settings.dtype)
    counted = flops.count(shapes, (), inputs, list(blocks.iter_parts(shapes)))
    topology = blocks.topology(shapes)

    unet = shapes
    if backend.NEEDS_WEIGHTS:
        _require_memory(backend, counted, family, settings)
        tell(Status("building"))
        unet = loading.load_teacher(family, settings)
    inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, device, settings.dtype, settings.seed)
    parts = list(blocks.iter_parts(unet))
    options = replaceable(topology, shapes, settings.options)
    fvcore_count = _count_again(family, unet, settings, tell) if backend.NEEDS_WEIGHTS else None
    with machine.quiet_torch(settings.threads, settings.device) as threads:
        hook_cost_s = time_hooks(family, unet, parts, backend, clock, settings, tell) if backend.HOOKED else []
        timings = time_unet(unet, inputs, parts, options, shapes, backend, clock, settings, started, tell)
        if timings.gpu and backend.NEEDS_WEIGHTS:
            tell(Status("examining the GPU"))
            gpu.examine(timings.gpu, unet, inputs, parts, clock, settings)
        components = component_records(family, settings, device, clock, tell)
        tell(Status("measuring peaks"))
        peaks = roofline.calibrate(backend, settings.dtype, device, clock) if backend.NEEDS_WEIGHTS else None
        run = loading.run_facts(family, weights, settings.backend, settings, threads, command, unet)

    records = unit_records(parts, counted, timings, peaks)
    if timeless := [part.label for part in records if part.kind != "glue" and part.latency_s.median <= 0]:
        raise ValueError(
            f"{settings.backend} runs {', '.join(timeless)} together with other units, so that no time of their own is "
            "known; profile in another --backend."
        )
    whole = whole_record(counted, timings)
    attribution = timings.attribution
    trust = checks.box(
        whole, records, timings.hooked_s, timings.bare_s, fvcore_count, counted.uncounted_ops, hook_cost_s, attribution,
        timings.host, timings.gpu,
    )  # fmt: skip
    return Profile(
        **run,
        title=family.title,
        config_sha256=loading.unet_config_sha256(shapes.config),
        latent=sizes.parse(example_inputs.latent_sides(family, settings.size)[::-1]),
        topology=topology,
        whole=whole,
        units=tuple(part for part in records if part.kind != "glue"),
        glue=tuple(part for part in records if part.kind == "glue"),
        options=tuple(option_records(options, timings, records, settings, family)),
        components=components,
        peaks=peaks,
        mapped_share=estimate(attribution.mapped) if attribution else None,
        observed_slowdown=estimate(attribution.slowdown) if attribution else None,
        trust=trust,
        host=timings.host,
        gpu=timings.gpu.use if timings.gpu else None,
        weights_sha256=loading.weights_sha256(unet) if backend.NEEDS_WEIGHTS and weights != execution.RANDOM else None,
    )


def _require_memory(backend: Any, counted: flops.Count, family: Family, settings: ProfileSettings) -> None:
    session = backends.session_bytes(backend, counted.parameter_bytes, counted.peak_memory_bytes)
    need = int(1.1 * counted.peak_memory_bytes + SESSIONS * session) + machine.SPARE_BYTES
    machine.require_memory(need, settings.device, f"profiling {family.name} in {settings.dtype}")


# ---------------------------------------------------------------------------------------------- fvcore


def _count_again(family: Family, unet: nn.Module, settings: ProfileSettings, tell: Watch) -> tuple[int, Macs, Macs]:
    """(pixels, our count, fvcore's count) of a small image with the real tensors."""
    tell(Status("counting again with fvcore"))
    size = 2 * family.size_step
    inputs = example_inputs.unet_inputs(family, 1, size, settings.device, settings.dtype)
    ours = flops.count(loading.meta_unet(family), (), example_inputs.unet_inputs(family, 1, size, "meta"))
    call = Call(unet, inputs)
    return size, ours.total, flops.count_by_fvcore(call, call.tensors)
