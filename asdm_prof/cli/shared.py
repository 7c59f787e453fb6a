"""Options that several commands have, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import one_of, this_command
from asdm.utils import console as terminal
from asdm.utils import io
from asdm.utils.console import Format

FormatOption = Annotated[Format, typer.Option("--format", help="How the table is printed.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="File or folder; default: a folder of its own under reports/.")
]
FamilyArgument = Annotated[
    str,
    typer.Argument(
        help="sd15, sd21, sd21_base, sdxl, mini, or a diffusers folder.", autocompletion=one_of("asdm.models.families")
    ),
]
ProfileArgument = Annotated[Path | None, typer.Argument(help="A profile.json; default: the newest under reports/.")]
Macs = Annotated[str | None, typer.Option("--macs", help="Budget in MACs: 0.8, 80% or 300G.")]
Params = Annotated[str | None, typer.Option("--params", help="Budget in parameters: 0.8, 80% or 650M.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Budget of weights and largest activations: 0.8, 80% or 2GiB.")
]
DamageFile = Annotated[
    Path | None,
    typer.Option("--damage", help="A damage.json of `asdm-prof sensitivity`; default: the structural prior."),
]


def profile_at(path: Path | None) -> tuple[Any, Path]:
    """The profile asked for, or the newest, which is then named."""
    from asdm_prof.records import Profile

    if path is None:
        path = io.newest("profile.json")
        if path is None:
            raise ValueError("no profile under reports/; make one with `asdm-prof profile sd15`, or name a file.")
        terminal.say(f"Using {path}, the newest profile.")
    elif path.is_dir():
        path = path / "profile.json"
    return Profile.load(io.find_input(path)), path


def profile_of(family: str, path: Path | None, weights: str | None, asked: dict[str, Any]) -> Any:
    """The profile named, or the family's newest with these settings, or where there is none a new one."""
    from asdm.models import execution, loading
    from asdm.models.families import load_family
    from asdm_prof.renderers import _collect

    if path is not None:
        found, path = profile_at(path)
        if names := _collect.unlike(found, **asked):
            said = ", ".join(f"{name} {getattr(found, name)}, not {asked[name]}" for name in names)
            raise ValueError(f"{path} was measured with {said}; name a profile of that, or leave the option out.")
        return found
    sha256 = loading.unet_config_sha256(loading.meta_unet(load_family(family)).config)
    if newest := _collect.newest_profile(sha256, **asked):
        terminal.say(f"Using {newest[1]}, the newest profile of {family}.")
        return newest[0]
    terminal.say(f"There is no such profile of {family} under reports/ yet: profiling it first.")
    from asdm_prof.cli.progress import watching
    from asdm_prof.profiler.profile import profile as measure
    from asdm_prof.profiler.settings import ProfileSettings

    given = {name: value for name, value in asked.items() if value is not None}
    settings = ProfileSettings(weights=weights, **({"device": execution.default_device()} | given))
    with watching("Profiling") as watch:
        made = measure(family, settings, watch, command=this_command("asdm-prof"))
    saved = made.save(io.run_folder(io.short_name(family), made.backend, made.dtype) / "profile.json")
    terminal.say(f"Wrote {saved}")
    return made


def budgets_of(budget: str | None, macs: str | None, params: str | None, memory: str | None) -> dict[str, str]:
    """The budgets that were given, by name."""
    given = {"latency": budget, "macs": macs, "params": params, "memory": memory}
    return {name: text for name, text in given.items() if text is not None}


def inputs_of(validation: Path | None, damage: Path | None) -> tuple[Any, Any]:
    """A validation and a damage where they are named."""
    from asdm_prof.records import Damage, Validation

    return (
        Validation.load(io.find_input(validation)) if validation else None,
        Damage.load(io.find_input(damage)) if damage else None,
    )


@contextmanager
def feasible(asked: dict[str, str], profile: Any = None) -> Iterator[None]:
    """Say what is reachable where budgets are too low, and the cheapest relaxation, and leave with 3."""
    from asdm_prof.planner import plan

    try:
        yield
    except plan.Infeasible as error:
        from asdm_prof.renderers import console

        for line in console.infeasible_lines(error.lowest, error.alone, error.relaxed, asked, profile):
            terminal.say(line)
        raise typer.Exit(terminal.INFEASIBLE) from None


def flattened(row: dict[str, Any]) -> dict[str, Any]:
    """Nested estimates as columns of their own."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{name}": inner for name, inner in flattened(value).items()}
        else:
            flat[key] = value
    return flat
