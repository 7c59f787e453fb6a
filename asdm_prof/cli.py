"""`asdm-prof`: count, profile, rank, plan, report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from asdm import files, terminal
from asdm.options import (
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
    one_of,
    root_options,
    target,
    this_command,
    warn_if_slow,
)
from asdm.terminal import Format

app = typer.Typer(
    help="Find out where a Stable Diffusion UNet spends its time, what is redundant, and what to prune.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(root_options)

FormatOption = Annotated[Format, typer.Option("--format", help="How the table is printed.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File or folder; default: a folder of its own under reports/.")
]
FamilyArgument = Annotated[
    str,
    typer.Argument(
        help="sd15, sd21, sd21_base, sdxl, mini, or a diffusers folder.", autocompletion=one_of("asdm.families")
    ),
]
ProfileArgument = Annotated[Path | None, typer.Argument(help="A profile.json; default: the newest under reports/.")]


def _profile(path: Path | None) -> tuple[Any, Path]:
    """The profile asked for, or the newest, which is then named."""
    from asdm_prof.records import Profile

    if path is None:
        path = files.newest("profile.json")
        if path is None:
            raise ValueError("no profile under reports/; make one with `asdm-prof profile sd15`, or name a file.")
        terminal.say(f"Using {path}, the newest profile.")
    elif path.is_dir():
        path = path / "profile.json"
    return Profile.load(files.find_input(path)), path


@app.command()
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
    from asdm_prof import costs

    found = costs.flops_of(family, batch, size, like)
    if as_json or form is Format.json:
        print(json.dumps(found, indent=1))
    else:
        terminal.emit(costs.unit_rows(found), form, f"{found['title']}, UNet")
        if form is Format.table:
            print()
            terminal.emit(costs.component_rows(found), form, "One image (Fig. 1)")


@app.command()
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
    ] = 225.0,
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
    default = files.run_folder(files.short_name(family), backend, dtype)
    path = target(output, default, "profile.json")
    files.check_writable(path, force)
    from asdm_prof import processes as fresh
    from asdm_prof.live import watching
    from asdm_prof.profiler import Settings
    from asdm_prof.profiler import profile as measure

    settings = Settings(
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


@app.command()
def rank(profile: ProfileArgument = None, form: FormatOption = Format.table, as_json: Json = False) -> None:
    """Units by redundancy: much latency, few parameters; ties are grouped."""
    found, _ = _profile(profile)
    from asdm_prof.redundancy import rank as ranking
    from asdm_prof.renderers import console

    ranked = ranking(found)
    rows = [row.model_dump(mode="json") for row in ranked]
    if as_json or form is Format.json:
        print(json.dumps({"schema": "asdm.rank/1", "family": found.family, "units": rows}, indent=1))
    elif form is Format.table:
        screen = console.stdout_console()
        screen.print(console.rank_table(ranked, screen.width))
    else:
        terminal.emit([_flat(row) for row in rows], form)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Nested estimates as columns of their own."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{name}": inner for name, inner in _flat(value).items()}
        else:
            flat[key] = value
    return flat


Macs = Annotated[str | None, typer.Option("--macs", help="Budget in MACs: 0.8, 80% or 300G.")]
Params = Annotated[str | None, typer.Option("--params", help="Budget in parameters: 0.8, 80% or 650M.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Budget of weights and largest activations: 0.8, 80% or 2GiB.")
]
DamageFile = Annotated[
    Path | None,
    typer.Option("--damage", help="A damage.json of `asdm-prof sensitivity`; default: the structural prior."),
]


@app.command()
def plan(
    budget: Annotated[
        str | None, typer.Option(help="Of the teacher's UNet latency: 0.8, 80%, 250ms, 1.2s or x1.3.")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="A profile.json; default: the newest under reports/.")] = None,
    confidence: Annotated[float, typer.Option(help="How sure the budget is to hold, 0.5 to 1.")] = 0.95,
    validation: Annotated[
        Path | None, typer.Option(help="A validate.json: its measured error takes the place of the assumed one.")
    ] = None,
    damage: DamageFile = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    why: Annotated[bool, typer.Option("--why/--no-why", help="Say what binds, and what other choices cost.")] = True,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The legal plan of least damage within budgets of latency, MACs, parameters or memory, proved optimal."""
    from asdm_prof import planner
    from asdm_prof import why as reasons

    asked = _asked(budget, macs, params, memory)
    if not asked:
        raise ValueError(planner.NO_BUDGET)
    found, _ = _profile(profile)
    path = target(output, files.run_folder(files.short_name(found.family), found.backend, found.dtype), "plan.json")
    files.check_writable(path, force)
    checked, measured = _inputs(validation, damage)
    with _feasible(asked, found):
        made = planner.make_plan(found, asked, confidence, checked, measured)
    if why:
        with terminal.progress("Planning") as tell:
            made = reasons.explained(found, made, confidence, checked, measured, tell)
    made.save(path, force)
    if as_json:
        print(made.to_json(), end="")
    else:
        from asdm_prof.renderers import console

        for line in console.plan_lines(made, found):
            print(line)
    terminal.say(f"Wrote {path}")


def _asked(budget: str | None, macs: str | None, params: str | None, memory: str | None) -> dict[str, str]:
    """The budgets that were given, by name."""
    given = {"latency": budget, "macs": macs, "params": params, "memory": memory}
    return {name: text for name, text in given.items() if text is not None}


def _inputs(validation: Path | None, damage: Path | None) -> tuple[Any, Any]:
    """A validation and a damage where they are named."""
    from asdm_prof.records import Damage, Validation

    return (
        Validation.load(files.find_input(validation)) if validation else None,
        Damage.load(files.find_input(damage)) if damage else None,
    )


@contextmanager
def _feasible(asked: dict[str, str], profile: Any = None) -> Iterator[None]:
    """Say what is reachable where budgets are too low, and the cheapest relaxation, and leave with 3."""
    from asdm_prof import planner

    try:
        yield
    except planner.Infeasible as error:
        from asdm_prof.renderers import console

        for line in console.infeasible_lines(error.lowest, error.alone, error.relaxed, asked, profile):
            terminal.say(line)
        raise typer.Exit(terminal.INFEASIBLE) from None


@app.command()
def frontier(
    profile: Annotated[Path | None, typer.Option(help="A profile.json; default: the newest under reports/.")] = None,
    damage: DamageFile = None,
    by: Annotated[str, typer.Option(help="What stands against damage: latency, macs or params.")] = "latency",
    best: Annotated[int, typer.Option(help="The K best plans within the budgets.")] = 0,
    diverse: Annotated[int, typer.Option(help="K plans within the budgets, each unlike those before.")] = 0,
    apart: Annotated[int, typer.Option(help="In how many choices two diverse plans differ at least.")] = 3,
    budget: Annotated[str | None, typer.Option(help="Of the latency: 0.8, 80%, 250ms, 1.2s or x1.3.")] = None,
    macs: Macs = None,
    params: Params = None,
    memory: Memory = None,
    confidence: Annotated[float, typer.Option(help="How sure a latency budget is to hold, 0.5 to 1.")] = 0.95,
    validation: Annotated[Path | None, typer.Option(help="A validate.json, as `plan` takes it.")] = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The whole exact frontier of latency and damage, the k best plans within budgets, and k unlike ones."""
    found, _ = _profile(profile)
    default = files.run_folder(files.short_name(found.family), found.backend, found.dtype)
    path = target(output, default, "frontier.json")
    files.check_writable(path, force)
    from asdm_prof import frontier as front
    from asdm_prof.renderers import console

    asked = _asked(budget, macs, params, memory)
    checked, measured = _inputs(validation, damage)
    with _feasible(asked, found):
        made = front.make_frontier(found, measured, by, asked, best, diverse, apart, confidence, checked)
    made.save(path, force)
    if as_json:
        print(made.to_json(), end="")
    else:
        console.print_frontier(made, console.stdout_console())
    terminal.say(f"Wrote {path}")


@app.command()
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
    path = target(output, files.run_folder(files.short_name(family), "damage", dtype), "damage.json")
    files.check_writable(path, force)
    from asdm_prof import damage as measuring
    from asdm_prof.renderers import console

    settings = measuring.Settings(
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
            found = measuring.sensitivity_of(
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


@app.command()
def compare(
    profiles: Annotated[list[Path], typer.Argument(help="Two or more profile.json, or their folders.")],
    plan: Annotated[list[Path] | None, typer.Option(help="A plan.json to price by each; may be repeated.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Plan for each profile at this budget, and price each plan by all of them.")
    ] = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Does a plan made for one runtime, dtype, thread count, size or batch hold in another?"""
    from asdm.plan import PruningPlan
    from asdm_prof import transfer
    from asdm_prof.renderers import console

    found = [(profile, str(path)) for profile, path in map(_profile, profiles)]
    plans = [PruningPlan.load(files.find_input(path)) for path in plan or []]
    first = found[0][0]
    path = target(output, files.run_folder(files.short_name(first.family), "compare"), "compare.json")
    files.check_writable(path, force)
    with _feasible({"latency": budget or ""}):
        result = transfer.compare(found, plans, budget, this_command("asdm-prof"))
    result.save(path, force)
    if as_json:
        print(result.to_json(), end="")
    else:
        console.print_comparison(result, console.stdout_console())
    terminal.say(f"Wrote {path}")


@app.command()
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
    from asdm_prof import validate as validation
    from asdm_prof.renderers import console

    asked = {
        "backend": backend, "device": device, "dtype": dtype, "threads": threads, "batch": batch, "size": size,
    }  # fmt: skip
    default = files.run_folder(files.short_name(family), backend or "eager", dtype or "fp32")
    path = target(output, default, "validate.json")
    files.check_writable(path, force)
    settings = validation.Settings(plans, seed, weights, time_budget)
    found = _profile_of(family, profile, weights, asked)
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


def _profile_of(family: str, path: Path | None, weights: str | None, asked: dict[str, Any]) -> Any:
    """The profile named, or the family's newest with these settings, or where there is none a new one."""
    from asdm import models
    from asdm.families import load_family
    from asdm_prof import gather

    if path is not None:
        found, path = _profile(path)
        if names := gather.unlike(found, **asked):
            said = ", ".join(f"{name} {getattr(found, name)}, not {asked[name]}" for name in names)
            raise ValueError(f"{path} was measured with {said}; name a profile of that, or leave the option out.")
        return found
    sha256 = models.unet_config_sha256(models.meta_unet(load_family(family)).config)
    if newest := gather.newest_profile(sha256, **asked):
        terminal.say(f"Using {newest[1]}, the newest profile of {family}.")
        return newest[0]
    terminal.say(f"There is no such profile of {family} under reports/ yet: profiling it first.")
    from asdm_prof.live import watching
    from asdm_prof.profiler import Settings
    from asdm_prof.profiler import profile as measure

    given = {name: value for name, value in asked.items() if value is not None}
    settings = Settings(weights=weights, **({"device": models.default_device()} | given))
    with watching("Profiling") as watch:
        made = measure(family, settings, watch, command=this_command("asdm-prof"))
    saved = made.save(files.run_folder(files.short_name(family), made.backend, made.dtype) / "profile.json")
    terminal.say(f"Wrote {saved}")
    return made


@app.command()
def search(
    family: Annotated[str, typer.Argument(help="mini, sd15, sd21, sd21_base, or the folder of a whole pipeline.")],
    budget: Annotated[str, typer.Option(help="Of the teacher's UNet latency: 0.8, 80%, 250ms, 1.2s or x1.3.")],
    candidates: Annotated[int, typer.Option(help="Plans to begin with, each unlike the others.")] = 8,
    apart: Annotated[int, typer.Option(help="In how many choices two of them differ, where so many can.")] = 3,
    rungs: Annotated[int, typer.Option(help="Rungs of successive halving: half go on to the next, twice as long.")] = 3,
    steps: Annotated[int, typer.Option(help="Training steps of all candidates together.")] = 20_000,
    recipe: Annotated[
        str, typer.Option(help="How each trains: bk_sdm, progressive_incubation, or FILE.py:FUNCTION.")
    ] = "bk_sdm",
    data: Annotated[str, typer.Option(help="What they train on and are judged by: emoji, or folder:DIR.")] = "emoji",
    split: Annotated[str, typer.Option(help="Split of a data set that has some.")] = "train",
    batch: Annotated[int, typer.Option(help="Pictures of a training step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="AdamW's, at its highest.")] = 1e-4,
    metric: Annotated[
        str,
        typer.Option(
            help="Quality that ranks: perceptual_to_teacher, latent_mse_to_teacher, frechet_distance, "
            "kernel_distance, clip_score or recall_at_1."
        ),
    ] = "perceptual_to_teacher",
    prompts: Annotated[int, typer.Option(help="Captions that teacher and students draw, 4 or more.")] = 64,
    draw_steps: Annotated[int, typer.Option(help="Steps of each picture.")] = 20,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the family's.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="A CLIP's folder or hub id; default: the judge that ships, for emoji.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="A profile.json; default: the study's, the family's newest under reports/, or a new one."),
    ] = None,
    damage: DamageFile = None,
    time_budget: Annotated[float, typer.Option(help="Seconds of timing each candidate.")] = 60.0,
    weights: Weights = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="What training computes in: fp32, bf16 or fp16.")] = "fp32",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints of a training.")] = 600.0,
    storage: Annotated[
        str | None,
        typer.Option(help="postgresql://USER@HOST/DATABASE, for workers on many machines; default: a file."),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; default: FAMILY-BUDGET.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default: reports/FAMILY-search-BUDGET.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan many students within a budget, train the better ones on, and measure them; the same command again helps."""
    from asdm_prof import search as searching
    from asdm_prof.renderers import console

    settings = searching.Settings(
        budget=budget,
        candidates=candidates,
        apart=apart,
        rungs=rungs,
        steps=steps,
        recipe=recipe,
        data=data,
        split=split,
        batch=batch,
        learning_rate=learning_rate,
        dtype=dtype,
        seed=seed,
        weights=weights,
        device=device_or_default(device),
        threads=threads,
        prompts=prompts,
        draw_steps=draw_steps,
        guidance_scale=guidance,
        judge=judge,
        metric=metric,
        time_budget_s=time_budget,
    )
    folder = output or files.REPORTS / f"{files.short_name(family)}-search-{budget.replace('/', '_')}"
    named = _profile(profile)[0] if profile else None
    _, measured = _inputs(None, damage)

    def found() -> Any:
        return _profile_of(family, None, weights, {"device": settings.device})

    try:
        with _feasible({"latency": budget}, named):
            result = searching.search(
                family,
                settings,
                folder,
                found,
                named,
                measured,
                searching.Own(storage, study, checkpoint_every),
                lambda: terminal.progress("Searching"),
                this_command("asdm-prof"),
            )
    except KeyboardInterrupt:
        if folder.exists():
            terminal.say(f"What is trained and measured so far is kept; the same command goes on with it in {folder}.")
        raise
    if as_json:
        print(result.to_json(), end="")
    else:
        console.print_search(result, console.stdout_console())
    terminal.say(f"Wrote {folder / searching.RESULT}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A profile.json or its folder: before.")],
    b: Annotated[Path, typer.Argument(help="A profile.json or its folder: after.")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 where it holds, such as 'unit:p50>5%' or 'whole:p95>10%'; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare unlike environments too.")] = False,
    form: FormatOption = Format.table,
    as_json: Json = False,
) -> None:
    """What changed from one profile to another, unit by unit, with intervals; for continuous integration."""
    from asdm_prof import compare as comparing
    from asdm_prof.renderers import console

    conditions = [comparing.parse_condition(text) for text in fail_on or []]
    (before, _), (after, _) = _profile(a), _profile(b)
    found = comparing.diff(before, after)
    failed = comparing.failures(found, conditions)
    if found.unlike:
        said = "; ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in found.unlike.items())
        if not force:
            terminal.say(f"Error: {a} and {b} do not compare: {said}. Add --force to compare them nevertheless.")
            raise typer.Exit(terminal.INCOMPARABLE)
        terminal.say(f"Warning: unlike environments: {said}.")
    if as_json or form is Format.json:
        print(json.dumps(comparing.as_json(before, after, found, failed), indent=1))
    elif form is Format.table:
        screen = console.stdout_console()
        screen.print(console.diff_table(found, screen.width))
    else:
        terminal.emit([_flat(part.model_dump(mode="json")) for part in (found.whole, *found.parts)], form)
    for condition, part in failed:
        terminal.say(f"Failed {condition.text}: {part.fqn} {console.change_text(getattr(part, condition.metric))}")
    if failed:
        raise typer.Exit(terminal.FAILED)


@app.command()
def report(
    profile: ProfileArgument = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json; default: the newest one made from the profile.")
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(help="A bench.json, may be repeated; default: those beside the profile or of the plan's student."),
    ] = None,
    damage: Annotated[Path | None, typer.Option(help="A damage.json; default: the newest beside the profile.")] = None,
    frontier: Annotated[
        Path | None, typer.Option(help="A frontier.json; default: the newest beside the profile.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="The log.jsonl of a student's distillation.")] = None,
    beside: Annotated[
        Path | None, typer.Option(help="The profile.json of another model of the same blocks, such as sd15's for mini.")
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="Comma-separated renderers: html, figures, csv, console, parquet, chrome_trace, speedscope.",
        ),
    ] = "html,figures,csv",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default: one of its own under reports/.")
    ] = None,
    force: Force = False,
) -> None:
    """One offline HTML page, figures and a table from the files that are there."""
    from asdm import seams
    from asdm_prof import gather

    renderers = [seams.load("asdm_prof.renderers", name.strip()) for name in formats.split(",")]
    found, path = _profile(profile)
    folder = output or files.run_folder(files.short_name(found.family), found.backend, found.dtype)
    with terminal.progress("Reporting") as tell:
        tell("gathering", 0, None)
        collected = gather.report(found, path, plan, bench, damage, frontier, log, beside)
        for name, source in collected.sources.items():
            terminal.say(f"{name}: {source}")
        for renderer in renderers:
            if renderer.OUTPUT:
                files.check_writable(folder / renderer.OUTPUT, force)
        for renderer in renderers:
            tell(renderer.__name__.rpartition(".")[2], 0, None)
            written = renderer.render(collected, folder)
            if renderer.OUTPUT:
                count = f" ({len(written)} files)" if len(written) > 1 else ""
                terminal.say(f"Wrote {folder / renderer.OUTPUT}{count}")


@app.command()
def env(as_json: Json = False) -> None:
    """What a bug report needs: versions, machine, devices and extras; no names of users, files or hosts."""
    from asdm_prof import facts

    found = facts.facts()
    print(json.dumps(found, indent=1) if as_json else "\n".join(facts.lines(found)))


def main() -> None:
    """Entry point of `asdm-prof`."""
    terminal.run(app)
