"""A schedule exported: the graphs of its passes in one folder with what each takes and gives, run before it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from asdm.measure import backends, machine
from asdm.models import example_inputs, loading, single_file
from asdm.models.export import MARKER, RUNTIMES, source_fields
from asdm.models.families import Family
from asdm.models.pipeline import scheduler_of
from asdm.models.settings import Setup
from asdm.models.sources import resolve
from asdm.records.build import ExportResult
from asdm.schedule import source
from asdm.schedule.graphs.unet import GraphUNet
from asdm.schedule.schedule import TEACHER
from asdm.utils.io import check_replaceable, disk_errors, whole_folder
from asdm.utils.progress import Tell


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
    is_preset = not source.is_file(planned)
    schedule = source.read_schedule(planned, shapes, family.name, steps if is_preset else None)
    params = sum(p.numel() for p in shapes.parameters())
    needed = (3 + len(schedule.networks)) * 4 * params
    machine.require_memory(needed, "cpu", f"exporting a schedule of {family.name}")

    tell("loading", 0, None)
    setup = replace(setup, weights=weights, device="cpu")
    unet: Any = loading.load_teacher(family, setup)
    students = source.students_of(schedule, unet, family, setup)
    facts = single_file.provenance(family, unet)
    with disk_errors(output), whole_folder(output, force) as folder:
        graphs = GraphUNet(
            {TEACHER: unet, **students}, schedule, runtime=RUNTIMES[to], folder=folder, metadata=facts,
        )  # fmt: skip
        passes = _draw(graphs, family, setup, tell)
        files = tuple(one.file for one in graphs.opened.values())
        (folder / "config.json").write_text(json.dumps(family.unet, indent=1, allow_nan=False) + "\n")
        (folder / source.SCHEDULE).write_text(schedule.to_json())
        result = ExportResult(
            family=family.name, weights=loading.weights_name(family, weights), to=to, dtype="fp32", params=params,
            size=setup.size or family.size, batch=2 if family.guidance_scale > 1 else 1,
            difference=max(file.difference or 0.0 for file in files), graphs=files, passes=passes,
            **source_fields(facts),
        )  # fmt: skip
        (folder / MARKER).write_text(result.to_json())
    return result


@torch.inference_mode()
def _draw(unet: GraphUNet, family: Family, setup: Setup, tell: Tell) -> dict[str, tuple[str, ...]]:
    """Draw an image from noise until every pass has run; pass → the graphs that it ran."""
    steps = unet.resolved.schedule.steps
    unet.scheduler = scheduler = DDIMScheduler.from_config(scheduler_of(family).config)
    scheduler.set_timesteps(len(steps))
    guided = family.guidance_scale > 1
    inputs = example_inputs.unet_inputs(family, 2 if guided else 1, setup.size, seed=setup.seed)
    sample, _ = inputs.pop("sample"), inputs.pop("timestep")
    latents, rest = sample[:1, : (channels := unet.config.out_channels)], sample[:1, channels:]
    passes: dict[str, tuple[str, ...]] = {}
    for n, timestep in enumerate(scheduler.timesteps):
        tell(f"pass {steps[n]}", n, None)
        unet.ran.clear()
        rows = torch.cat([torch.cat([latents, rest], 1)] * (2 if guided else 1))
        output = unet(rows, timestep, **inputs)[0]
        passes.setdefault(steps[n], tuple(unet.ran))
        if passes.keys() >= {*steps}:
            break
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + family.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(output, timestep, latents).prev_sample
    return passes


def describe(result: ExportResult, folder: Path) -> str:
    """What was written, in a few lines."""
    random = ", random weights" if result.weights == "random" else ""
    calls = "; ".join(f"{name}: {', '.join(files) or 'none'}" for name, files in result.passes.items())
    return (
        f"Wrote {folder}: {len(result.graphs)} graphs of {result.family} in {result.to}{random}, within "
        f"{result.difference:.1e} of PyTorch's largest.\n"
        f"Graphs by pass: {calls}.\n"
        f"asdm generate --schedule {folder} and asdm bench --schedule {folder} run them."
    )
