"""The fastest known way to run a pipeline: chosen from measured levers, or what is safe here; and put into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asdm.measure import backends, machine
from asdm.measure.backends import _onnx
from asdm.models import example_inputs
from asdm.models.families import Family
from asdm.models.settings import Setup
from asdm.records.build import ExportResult, PassGraphFile
from asdm.records.levers import Levers, LeversResult
from asdm.schedule import source
from asdm.schedule.calls import calls_of
from asdm.schedule.graphs import eight_bits
from asdm.schedule.graphs.decoder import GraphDecoder, plain_decoder
from asdm.schedule.graphs.export import cached_graphs, probe, run_passes
from asdm.schedule.graphs.passes import RUNTIMES
from asdm.schedule.graphs.unet import GraphUNet
from asdm.schedule.schedule import TEACHER, Pass, Schedule
from asdm.schedule.unet import ScheduledUNet, use
from asdm.utils.progress import Tell
from asdm.utils.runs import newest

FILE = "levers.json"


def choose(file: Path | None, family: Family, steps: int, student: str | None = None) -> tuple[Levers, str]:
    """Levers and why: those of a file, of the newest one for this family and machine, or else what is safe here.

    Safe is what changes no more than rounding: the fastest runtime that is installed, in fp32. A `student` that was
    named takes the place of the measured one, whose schedule then is another UNet's.
    """
    path = file or newest(FILE)
    if path:
        result = LeversResult.load(path)
        apart = _apart(result, family)
        if not apart or file:
            chosen = result.chosen
            why = f"measured in {path}" + (f", on another {' and '.join(apart)}" if apart else "")
            if chosen.student and not Path(chosen.student).is_dir():
                why += f"; without its student {chosen.student}, which is not a folder"
                chosen = chosen.model_copy(update={"student": None})
            if student:
                chosen = chosen.model_copy(update={"student": student})
            if chosen.schedule and source.is_file(chosen.schedule):
                others = [f"{result.steps} steps, not {steps}"] if result.steps != steps else []
                others += [result.chosen.student or "the teacher"] if chosen.student != result.chosen.student else []
                if others:
                    why += f"; without its schedule, which is for {others[-1]}"
                    chosen = chosen.model_copy(update={"schedule": None})
            return chosen, why
    runtime = "openvino" if machine.package_version("openvino") != "not installed" else "onnxruntime"
    return Levers.model_validate(
        {"runtime": runtime, "decoder": True, "keep_memory": True}
    ), "safe here; no levers were measured"


def _apart(result: LeversResult, family: Family) -> list[str]:
    """In what a measurement differs from what is to be drawn here."""
    here = machine.environment("cpu", torch.get_num_threads())
    facts = {name: (result.environment.get(name), here[name]) for name in ("cpu", "threads")}
    facts["family"] = result.family, family.name
    return [name for name, (measured, own) in facts.items() if measured != own]


def describe(levers: Levers, why: str) -> str:
    """What was chosen, in one line."""
    runtime = levers.runtime + (f" in {levers.precision}" if levers.runtime != "eager" else "")
    parts = [
        runtime + (" and 8 bits" if levers.eight_bits else ""),
        f"schedule {levers.schedule}" if levers.schedule else "no schedule",
        f"student {levers.student}" if levers.student else "no student",
        *(["decoder there too"] if levers.decoder else []),
        *(["freed memory kept"] if levers.keep_memory else []),
    ]
    return f"Fast: {', '.join(parts)} ({why})."


def put_into(
    pipe: Any, levers: Levers, family: Family, setup: Setup, steps: int, guidance_scale: float, tell: Tell
) -> str | None:
    """Have a pipeline in fp32 on the CPU run by levers, its student being in it already; a warning, or None."""
    if setup.device != "cpu" or setup.dtype != "fp32":
        raise ValueError(
            f"fast runs the CPU's runtimes and chooses what they compute in, got {setup.dtype} on {setup.device}; use "
            "--device cpu --dtype fp32."
        )
    calls, warning, students = calls_of(pipe.scheduler, steps), None, dict[str, nn.Module]()
    schedule = plain(family, calls)
    if levers.schedule:
        schedule = source.read_schedule(levers.schedule, pipe.unet, family.name, calls, pipe.scheduler)
        students = source.students_of(schedule, pipe.unet, family, setup)
        warning = source.warning(schedule, pipe, pipe.unet)
    networks = {TEACHER: pipe.unet, **students}
    if levers.keep_memory:
        machine.keep_freed_memory()
    use(pipe, opened(levers, networks, schedule, family, setup, guidance_scale, tell))
    if levers.decoder:
        pipe.vae.decoder = decoder(levers, pipe.vae, family, setup)
    return warning


def decoder(levers: Levers, vae: Any, family: Family, setup: Setup) -> nn.Module:
    """A VAE's decoder in the runtime of levers."""
    if levers.runtime not in RUNTIMES:
        raise ValueError(f"the decoder has no graph in {levers.runtime}; choose from {', '.join(RUNTIMES)}.")
    latents = (1, int(vae.config.latent_channels), *example_inputs.latent_sides(family, setup.size))
    return GraphDecoder(plain_decoder(vae), latents, levers.runtime, levers.precision)


def plain(family: Family, steps: int) -> Schedule:
    """Every step in full."""
    return Schedule(name="plain", family=family.name, passes={"full": Pass()}, steps=("full",) * steps)


def opened(
    levers: Levers, networks: Mapping[str, nn.Module], schedule: Schedule, family: Family, setup: Setup,
    guidance_scale: float, tell: Tell,
) -> ScheduledUNet:  # fmt: skip
    """Networks that run by a schedule in the runtime of levers; its graphs are made unless they are in the cache."""
    if levers.runtime in ("eager", "compiled"):
        if levers.eight_bits:
            eight_bits.check(levers.runtime)
        for unet in networks.values() if levers.runtime == "compiled" else ():
            unet.compile()
        return ScheduledUNet(networks, schedule)
    backends.load(levers.runtime, levers.precision, "cpu")
    folder = cached_graphs(networks, schedule, family, setup, guidance_scale, tell)
    if levers.eight_bits:
        folder = _in_eight_bits(levers.runtime, folder, networks, schedule, family, setup, guidance_scale, tell)
    files = ExportResult.load(folder / source.MARKER).graphs
    return GraphUNet(networks, schedule, runtime=levers.runtime, folder=folder, precision=levers.precision, files=files)


def _in_eight_bits(
    runtime: str, folder: Path, networks: Mapping[str, nn.Module], schedule: Schedule, family: Family, setup: Setup,
    guidance_scale: float, tell: Tell,
) -> Path:  # fmt: skip
    """The folder of a folder's graphs in 8 bits, made unless it is in the cache."""
    eight_bits.check(runtime)
    exported = ExportResult.load(folder / source.MARKER)
    feeds: dict[str, list[dict[str, Any]]] = {file.file: [] for file in exported.graphs}

    def keep(file: PassGraphFile, feed: dict[str, Any]) -> None:
        if len(feeds[file.file]) < eight_bits.SAMPLES:
            feeds[file.file].append({name: value.copy() for name, value in feed.items()})

    def make(at: Path) -> None:
        unet = GraphUNet(networks, probe(schedule), runtime="onnxruntime", folder=folder, files=exported.graphs)
        for seed in range(eight_bits.SAMPLES if runtime == "openvino" else 0):
            run_passes(unet, family, replace(setup, seed=seed), guidance_scale, tell, watch=keep)
        del unet  # its sessions hold the weights
        tell("8 bits", 0, None)
        graphs = eight_bits.quantise(runtime, folder, exported.graphs, feeds, at)
        (at / source.MARKER).write_text(exported.model_copy(update={"graphs": graphs}).to_json())

    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return _onnx.get_or_make(f"{folder.name}-8-bits-{runtime}", size, make, source=folder)
