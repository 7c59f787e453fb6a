"""The records of a profile's parts, replacements and components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asdm.measure.clocks import Clock
from asdm.measure.statistics import estimate, latency
from asdm.models import example_inputs, loading
from asdm.models.components import components_of, count_call, time_calls
from asdm.models.families import Family
from asdm.plan.edits import ReplaceUnit
from asdm.records.measurement import Macs
from asdm.unet import blocks, flops, surgery
from asdm_prof.profiler import roofline
from asdm_prof.profiler.gpu_checks import GpuFindings
from asdm_prof.profiler.progress import Status, Watch
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.profiler.timing import Timings
from asdm_prof.records import ComponentRecord, OptionRecord, PartRecord, Peaks, WholeRecord


def whole_record(counted: flops.Count, timings: Timings) -> WholeRecord:
    """The whole UNet: its counts, and the latency of bare and of hooked calls."""
    return WholeRecord(
        params=counted.params,
        peak_memory_bytes=counted.peak_memory_bytes,
        thop_macs=counted.thop_macs,
        latency_s=latency(timings.bare_s),
        hooked_latency_s=latency(timings.hooked_s),
        uncounted_ops=counted.uncounted_ops,
        **mac_columns(counted.total),
        **(timings.gpu.of_whole() if timings.gpu else {}),
    )


def unit_records(
    parts: Sequence[blocks.Part], counted: flops.Count, timings: Timings, peaks: Peaks | None
) -> list[PartRecord]:
    """Units and glue, and last `other`: what runs between them, the residual of units + glue against the whole."""
    hooked_s, gpu = np.asarray(timings.hooked_s), timings.gpu or GpuFindings()
    records = []
    for part in parts:
        fqn, seconds = part.fqn, np.asarray(timings.parts_s[part.fqn])
        work = counted.by_part[fqn].macs, counted.moved_by_part[fqn], counted.calls_by_part[fqn]
        gpu_s = gpu.kernels_of(fqn)
        placed = roofline.place(*work, float(np.median(seconds)), peaks, gpu_s) if peaks else None
        own = {name: getattr(part, name) for name in ("label", "kind", "block", "layer", "params", "parameter_bytes")}
        own |= {"gpu_s": gpu_s, "attention_kernels": gpu.attention_kernels.get(fqn, ())}
        records.append(_part_record(fqn, counted, seconds, hooked_s, **own, roofline=placed))
    other_s = hooked_s - np.sum([timings.parts_s[part.fqn] for part in parts], axis=0)
    params = counted.params - sum(part.params for part in parts)
    other = {"label": blocks.OTHER, "kind": "glue", "block": "", "params": params}
    return [*records, _part_record(blocks.OTHER, counted, other_s, hooked_s, **other)]


def mac_columns(macs: Macs) -> dict[str, int]:
    """MACs by kind of operation, as the fields of a record."""
    return {"conv_macs": macs.conv_macs, "linear_macs": macs.linear_macs, "attention_macs": macs.attention_macs}


def _part_record(fqn: str, counted: flops.Count, seconds: np.ndarray, hooked_s: np.ndarray, **facts: Any) -> PartRecord:
    return PartRecord(
        fqn=fqn,
        peak_memory_bytes=counted.peak_by_part.get(fqn, 0),
        moved_bytes=counted.moved_by_part.get(fqn, 0),
        latency_s=latency(seconds.tolist()),
        share=estimate(seconds / hooked_s),
        **facts,
        **mac_columns(counted.by_part[fqn]),
    )


def option_records(
    rounds: Mapping[str, Sequence[ReplaceUnit]],
    timings: Timings,
    parts: Sequence[PartRecord],
    settings: ProfileSettings,
    family: Family,
) -> list[OptionRecord]:
    """Each option's share of the *teacher's* latency: scaled, run by run, by the parts that were not replaced."""
    records, shares = [], {part.fqn: part.share.median for part in parts}
    inputs = example_inputs.unet_inputs(family, settings.batch, settings.size, "meta")
    for title, rows in timings.options_s.items():
        edits = sorted(rounds[title], key=lambda edit: edit.unit)
        swapped = {edit.unit for edit in edits}
        unchanged = [fqn for fqn in rows if fqn not in swapped]
        unchanged_s = np.sum([rows[fqn] for fqn in unchanged], axis=0)
        unchanged_share = sum(shares[fqn] for fqn in unchanged)
        shapes = loading.meta_unet(family)
        surgery.apply_plan(shapes, surgery.resolved_on(shapes, edits))
        replaced = {part.fqn: part for part in blocks.iter_parts(shapes)}
        counted = flops.count(shapes, (), inputs, list(replaced.values()))
        for edit in edits:
            seconds = np.asarray(rows[edit.unit])
            records.append(
                OptionRecord(
                    unit=edit.unit,
                    replacement=edit.with_,
                    options=edit.options,
                    params=replaced[edit.unit].params,
                    latency_s=latency(list(seconds)),
                    share=estimate(seconds / unchanged_s * unchanged_share),
                    **mac_columns(counted.by_part[edit.unit]),
                )
            )
    return records


def component_records(
    family: Family, settings: ProfileSettings, device: str, clock: Clock, tell: Watch
) -> tuple[ComponentRecord, ...]:
    """Text encoders and VAE decoder: counted, and timed if `settings` say so."""
    records = []
    for component in components_of(family, settings.size):
        counted = count_call(component)
        component_latency = None
        if settings.time_components:
            tell(Status(f"timing the {component.name}"))
            component_latency = latency(time_calls(component, device, settings.dtype, settings.seed, clock))
        records.append(
            ComponentRecord(
                name=component.name,
                params=counted.params,
                calls_per_image=component.calls,
                latency_s=component_latency,
                **mac_columns(counted.total),
            )
        )
    return tuple(records)
