"""Commands that count and measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import (
    Backend,
    Batch,
    Device,
    Dtype,
    Force,
    Json,
    Seed,
    Size,
    Threads,
    Weights,
    device_or_default,
    target,
    this_command,
    warn_if_slow,
)
from asdm.utils import console as terminal
from asdm.utils import io
from asdm.utils.console import Format
from asdm_prof.cli.shared import FamilyArgument, FormatOption, Output, profile_of
from asdm_prof.planner.settings import ValidateSettings


def flops(
    family: FamilyArgument,
    like: Annotated[
        str | None, typer.Option(help="Count by another tool's rule: thop (no attention, 4 per LayerNorm element).")
    ] = None,
    batch: Batch = 1,
    size: Size = None,
    form: FormatOption = Format.table,
    as_json: Json = False,
) -> None:
    """Exact MACs and parameters of every unit, and of the models around the UNet."""
    from asdm_prof.profiler import costs

    found = costs.flops_of(family, batch, size, like)
    if as_json or form is Format.json:
        print(json.dumps(found, indent=1))
    else:
        terminal.emit(costs.unit_rows(found), form, f"{found['title']}, UNet")
        if form is Format.table:
            print()
            terminal.emit(costs.component_rows(found), form, "One image (Fig. 1)")


def profile(
    family: FamilyArgument,
    weights: Weights = None,
    backend: Backend = "eager",
    device: Device = None,
    dtype: Dtype = "fp32",
    threads: Threads = None,
    seed: Seed = 0,
    batch: Batch = 1,
    size: Size = None,
    time_budget: Annotated[
        float, typer.Option(help="Seconds for all of it, in each process; fewer calls where it runs out.")
    ] = 180.0,
    processes: Annotated[
        int, typer.Option(help="Fresh processes that each profile it; their agreement goes into the trust box.")
    ] = 1,
    components: Annotated[
        bool, typer.Option("--components", help="Time the text encoder and VAE decoder too.")
    ] = False,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Time every unit of a UNet in place, with intervals and a trust box."""
    default = io.run_folder(io.short_name(family), backend, dtype)
    path = target(output, default, "profile.json")
    io.check_writable(path, force)
    from asdm_prof.cli.progress import watching
    from asdm_prof.profiler import repeat as fresh
    from asdm_prof.profiler.profile import profile as measure
    from asdm_prof.profiler.settings import ProfileSettings

    settings = ProfileSettings(
        weights=weights,
        backend=backend,
        device=device_or_default(device),
        dtype=dtype,
        threads=threads,
        seed=seed,
        batch=batch,
        size=size,
        time_budget_s=time_budget,
        time_components=components,
    )
    warn_if_slow(settings.device, settings.dtype, settings.backend)
    others = fresh.profile_again(family, settings, processes - 1, terminal.say)
    with watching("Profiling") as watch:
        found = measure(family, settings, watch, command=this_command("asdm-prof"))
    if others:
        found = fresh.with_others(found, others)
    found.save(path, force)
    if as_json:
        print(found.to_json(), end="")
    else:
        from asdm_prof.renderers import Report, console

        console.render(Report(found), path.parent)
    terminal.say(f"Wrote {path}")


def validate(
    family: FamilyArgument,
    plans: Annotated[int, typer.Option(help="Random legal plans to build and measure, 3 or more.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the plans that are drawn.")] = 0,
    profile: Annotated[
        Path | None, typer.Option(help="A profile.json; default: the family's newest under reports/, else a new one.")
    ] = None,
    weights: Weights = None,
    backend: Annotated[str | None, typer.Option(help="As the profile's; picks the newest of this backend.")] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="As the profile's; picks the newest of this dtype.")] = None,
    threads: Threads = None,
    batch: Annotated[int | None, typer.Option(help="As the profile's; picks the newest of this batch.")] = None,
    size: Size = None,
    time_budget: Annotated[float, typer.Option(help="Seconds for each plan; fewer pairs where it runs out.")] = 90.0,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build random legal plans and measure them in pairs: how far predictions can be believed."""
    from asdm_prof.planner import validate as validation
    from asdm_prof.renderers import console

    asked = {
        "backend": backend, "device": device, "dtype": dtype, "threads": threads, "batch": batch, "size": size,
    }  # fmt: skip
    default = io.run_folder(io.short_name(family), backend or "eager", dtype or "fp32")
    path = target(output, default, "validate.json")
    io.check_writable(path, force)
    settings = ValidateSettings(plans, seed, weights, time_budget)
    found = profile_of(family, profile, weights, asked)
    run_file = path.with_name(f"{path.name}.run")
    try:
        with terminal.progress("Validating") as tell:
            result = validation.validate(family, found, settings, run_file, tell, this_command("asdm-prof"))
    except KeyboardInterrupt:
        if run_file.exists():
            terminal.say(f"What is measured so far is in {run_file}; the same command with -o {path} continues.")
        raise
    result.save(path, force)
    run_file.unlink(missing_ok=True)
    if as_json:
        print(result.to_json(), end="")
    else:
        console.print_validation(result, console.stdout_console())
    terminal.say(f"Wrote {path}")


def sensitivity(
    family: Annotated[str, typer.Argument(help="mini, sd15, sd21, sd21_base, or a diffusers folder.")],
    data: Annotated[str, typer.Option(help="Captioned pictures to calibrate on: emoji.")] = "emoji",
    split: Annotated[str, typer.Option(help="Which of the data: train, held_out or others.")] = "train",
    prompts: Annotated[int, typer.Option(help="Pictures with their captions, 2 or more.")] = 64,
    timesteps: Annotated[int, typer.Option(help="Noise levels of each picture, spread over the schedule.")] = 8,
    plans: Annotated[int, typer.Option(help="Random joint plans that test whether damages add up; 0: none.")] = 40,
    clip: Annotated[
        int, typer.Option(help="Pictures to draw with every edit for its change in CLIP score; 0: none (SnapFusion).")
    ] = 0,
    replacement: Annotated[
        list[str] | None, typer.Option(help="Replacements to measure, may be repeated; default: all that do damage.")
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse/--plain", help="Compute shared beginnings once, or run the plain loop to compare.")
    ] = True,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = "fp32",
    threads: Threads = None,
    seed: Seed = 0,
    size: Size = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """What each edit does to the output on real weights and data, and whether damages add up."""
    path = target(output, io.run_folder(io.short_name(family), "damage", dtype), "damage.json")
    io.check_writable(path, force)
    from asdm_prof.renderers import console
    from asdm_prof.sensitivity import study as measuring

    settings = measuring.SensitivitySettings(
        weights=weights,
        device=device_or_default(device),
        dtype=dtype,
        threads=threads,
        seed=seed,
        size=size,
        data=data,
        split=split,
        prompts=prompts,
        timesteps=timesteps,
        reuse=reuse,
    )
    run_file = path.with_name(f"{path.name}.run")
    try:
        with terminal.progress("Measuring damage") as tell:
            found = measuring.measure_sensitivity(
                family, settings, plans, clip, replacement, run_file, tell, this_command("asdm-prof")
            )
    except KeyboardInterrupt:
        if run_file.exists():
            terminal.say(f"What is measured so far is in {run_file}; the same command with -o {path} continues.")
        raise
    found.save(path, force)
    run_file.unlink(missing_ok=True)
    if found.weights == "random":
        terminal.say("Warning: random weights have no quality to lose; these damages say nothing of a trained model.")
    if as_json:
        print(found.to_json(), end="")
    else:
        console.print_damage(found, console.stdout_console())
    terminal.say(f"Wrote {path}")
