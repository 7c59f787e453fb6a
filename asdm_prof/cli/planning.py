"""Commands that look for plans, and for students."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import Device, Force, Json, Threads, Weights, device_or_default, target, this_command
from asdm.utils import console as terminal
from asdm.utils import io
from asdm_prof.cli.shared import (
    DamageFile,
    Macs,
    Memory,
    Output,
    Params,
    budgets_of,
    feasible,
    inputs_of,
    profile_at,
    profile_of,
)
from asdm_prof.search.settings import SearchSettings, WorkerSettings


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
    from asdm_prof.planner import explain as reasons
    from asdm_prof.planner import plan as planner
    from asdm_prof.planner.budgets import NO_BUDGET

    asked = budgets_of(budget, macs, params, memory)
    if not asked:
        raise ValueError(NO_BUDGET)
    found, _ = profile_at(profile)
    path = target(output, io.run_folder(io.short_name(found.family), found.backend, found.dtype), "plan.json")
    io.check_writable(path, force)
    checked, measured = inputs_of(validation, damage)
    with feasible(asked, found):
        made = planner.make_plan(found, asked, confidence, checked, measured)
    if why:
        with terminal.progress("Planning") as tell:
            made = reasons.with_reasons(found, made, confidence, checked, measured, tell)
    made.save(path, force)
    if as_json:
        print(made.to_json(), end="")
    else:
        from asdm_prof.renderers import console

        for line in console.plan_lines(made, found):
            print(line)
    terminal.say(f"Wrote {path}")


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
    found, _ = profile_at(profile)
    default = io.run_folder(io.short_name(found.family), found.backend, found.dtype)
    path = target(output, default, "frontier.json")
    io.check_writable(path, force)
    from asdm_prof.planner import frontier as front
    from asdm_prof.renderers import console

    asked = budgets_of(budget, macs, params, memory)
    checked, measured = inputs_of(validation, damage)
    with feasible(asked, found):
        made = front.make_frontier(found, measured, by, asked, best, diverse, apart, confidence, checked)
    made.save(path, force)
    if as_json:
        print(made.to_json(), end="")
    else:
        console.print_frontier(made, console.stdout_console())
    terminal.say(f"Wrote {path}")


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
    from asdm_prof.renderers import console
    from asdm_prof.search import search as searching

    settings = SearchSettings(
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
    folder = output or io.REPORTS / f"{io.short_name(family)}-search-{budget.replace('/', '_')}"
    named = profile_at(profile)[0] if profile else None
    _, measured = inputs_of(None, damage)

    def found() -> Any:
        return profile_of(family, None, weights, {"device": settings.device})

    try:
        with feasible({"latency": budget}, named):
            result = searching.search(
                family,
                settings,
                folder,
                found,
                named,
                measured,
                WorkerSettings(storage, study, checkpoint_every),
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
