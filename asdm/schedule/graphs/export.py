"""A schedule's graphs in one folder with what each takes and gives, run before they are kept: exported, or cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from asdm.measure import backends, machine
from asdm.measure.backends import _onnx
from asdm.models import example_inputs, loading, single_file
from asdm.models.export import MARKER, RUNTIMES, source_fields
from asdm.models.families import Family
from asdm.models.pipeline import scheduler_of
from asdm.models.settings import Setup
from asdm.models.sources import resolve
from asdm.records.build import ExportResult, PassGraphFile
from asdm.schedule import source
from asdm.schedule.graphs.unet import GraphUNet
from asdm.schedule.legality import resolve as resolve_schedule
from asdm.schedule.schedule import TEACHER, Schedule
from asdm.unet import blocks
from asdm.utils.console import plain, quoted
from asdm.utils.io import check_replaceable, whole_folder
from asdm.utils.progress import Tell
from asdm.utils.record import sha256_of

Networks = Mapping[str, nn.Module]
Watch = Callable[[PassGraphFile, dict[str, Any]], None]


def export_schedule(
    teacher: str, planned: str, to: str, output: Path, setup: Setup, steps: int, force: bool, tell: Tell
) -> ExportResult:
    """Write the graphs of a schedule (a file, or a preset over `steps` calls) to the folder `output`, whole or not.

    Each is compared with PyTorch on the inputs of an image of the family's guidance: both halves in one batch, values
    kept by the steps before. Raises ValueError for a target without graphs, a dtype but fp32, a schedule that does not
    fit, and a pass whose graph fails or differs.
    """
    if to not in RUNTIMES:
        raise ValueError(f"a schedule is exported as graphs; choose --to {' or '.join(RUNTIMES)}, got {to}.")
    if setup.dtype != "fp32":
        raise ValueError(f"the graphs of a schedule are exported in fp32, got {setup.dtype}; leave out --dtype.")
    family, weights = resolve(teacher, setup)
    backends.load(RUNTIMES[to], "fp32", "cpu")
    check_replaceable(output, force, MARKER, (teacher, weights, planned))
    shapes = loading.meta_unet(family)
    schedule = source.read_schedule(planned, shapes, family.name, None if source.is_file(planned) else steps)
    params = sum(p.numel() for p in shapes.parameters())
    needed = (3 + len(schedule.networks)) * 4 * params
    machine.require_memory(needed, "cpu", f"exporting a schedule of {family.name}", None)

    tell("loading", 0, None)
    setup = replace(setup, weights=weights, device="cpu")
    unet = loading.load_teacher(family, setup)
    networks = {TEACHER: unet, **source.students_of(schedule, unet, family, setup)}
    with whole_folder(output, force) as folder:
        (folder / "config.json").write_text(json.dumps(family.unet, indent=1, allow_nan=False) + "\n")
        return write_graphs(networks, schedule, family, setup, to, family.guidance_scale, folder, tell)


def write_graphs(
    networks: Networks, schedule: Schedule, family: Family, setup: Setup, to: str, guidance_scale: float, folder: Path,
    tell: Tell,
) -> ExportResult:  # fmt: skip
    """The graphs, schedule and record of networks in fp32 in a folder that exists."""
    facts = single_file.provenance(family, networks[TEACHER])
    graphs = GraphUNet(networks, probe(schedule), runtime=RUNTIMES[to], folder=folder, metadata=facts)
    passes = run_passes(graphs, family, setup, guidance_scale, tell)
    files = tuple(one.file for one in graphs.opened.values())
    result = ExportResult(
        family=family.name, weights=loading.weights_name(family, str(setup.weights)), to=to, dtype="fp32",
        params=sum(p.numel() for p in networks[TEACHER].parameters()), size=setup.size or family.size,
        batch=2 if guidance_scale > 1 else 1, difference=max(file.difference or 0.0 for file in files),
        graphs=files, passes=passes, **source_fields(facts),
    )  # fmt: skip
    (folder / source.SCHEDULE).write_text(schedule.to_json())
    (folder / MARKER).write_text(result.to_json())
    return result


def cached_graphs(
    networks: Networks, schedule: Schedule, family: Family, setup: Setup, guidance_scale: float, tell: Tell
) -> Path:
    """The folder of a schedule's graphs, written unless it is in the cache; both runtimes read them."""
    guided = guidance_scale > 1
    inputs = example_inputs.unet_inputs(family, 2 if guided else 1, setup.size, "meta")
    resolved = resolve_schedule({name: blocks.topology(unet) for name, unet in networks.items()}, schedule)
    calls = {
        (half.network, tuple(sorted(map(str, half.places))), guided and step.alike)
        for step in resolved.steps for half in (step.conditional, step.unconditional) if half and half.runs
    }  # fmt: skip
    kept = sorted((name, str(one)) for name, own in resolved.steps[0].keep.items() for one in own if not one.whole)
    used = {name: unet for name, unet in networks.items() if name in {call[0] for call in calls}}
    key = sha256_of([sorted(calls), kept, {name: _onnx.key_of(unet, inputs) for name, unet in used.items()}])[:32]
    needed = len(calls) * 4 * max(sum(p.numel() for p in unet.parameters()) for unet in used.values())

    def make(folder: Path) -> None:
        write_graphs(networks, schedule, family, setup, "onnx", guidance_scale, folder, tell)

    return _onnx.get_or_make(f"schedule-{key}", needed + _onnx.SPARE_BYTES, make)


def probe(schedule: Schedule) -> Schedule:
    """Each pass of a schedule once, in the order of their first steps: as legal as it, and with the same graphs."""
    return schedule.model_copy(update={"steps": tuple(dict.fromkeys(schedule.steps))})


@torch.inference_mode()
def run_passes(
    unet: GraphUNet, family: Family, setup: Setup, guidance_scale: float, tell: Tell, watch: Watch | None = None
) -> dict[str, tuple[str, ...]]:
    """Draw an image by a schedule, from noise and without its decoding; pass → the graphs that it ran."""
    steps, ran = unet.resolved.schedule.steps, list[str]()

    def watching(file: PassGraphFile, feed: dict[str, Any]) -> None:
        ran.append(file.file)
        if watch:
            watch(file, feed)

    unet.watch, unet.scheduler = watching, DDIMScheduler.from_config(scheduler_of(family).config)
    unet.scheduler.set_timesteps(len(steps))
    rows = 2 if guidance_scale > 1 else 1
    inputs = example_inputs.unet_inputs(family, rows, setup.size, seed=setup.seed)
    sample, _ = inputs.pop("sample"), inputs.pop("timestep")
    latents, rest = sample[:1, : unet.config.out_channels], sample[:1, unet.config.out_channels :]
    passes: dict[str, tuple[str, ...]] = {}
    for n, timestep in enumerate(unet.scheduler.timesteps):
        tell(f"pass {steps[n]}", n, None)
        ran.clear()
        output = unet(torch.cat([torch.cat([latents, rest], 1)] * rows), timestep, **inputs)[0]
        passes.setdefault(steps[n], tuple(ran))
        if rows == 2:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance_scale * (conditional - unconditional)
        latents = unet.scheduler.step(output, timestep, latents).prev_sample
    unet.watch = None
    return passes


def describe(result: ExportResult, folder: Path) -> str:
    """What was written, in a few lines."""
    random = ", random weights" if result.weights == "random" else ""
    calls = "; ".join(f"{plain(name)}: {', '.join(files) or 'none'}" for name, files in result.passes.items())
    return (
        f"Wrote {folder}: {len(result.graphs)} graphs of {plain(result.family)} in {result.to}{random}, within "
        f"{result.difference:.1e} of PyTorch's largest.\n"
        f"Graphs by pass: {calls}.\n"
        f"asdm generate --schedule {quoted(folder)} and asdm bench --schedule {quoted(folder)} run them."
    )
