"""The files that commands read, and what they do when a budget cannot be met or a run is interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from asdm.cli.options import this_command
from asdm.models.settings import Checkpoint
from asdm.utils import console as terminal
from asdm.utils.runs import find_input, newest, run_folder, short_name
from asdm.utils.sizes import shown
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Damage, Profile, Validation


def profile_at(path: Path | None) -> tuple[Profile, Path]:
    """The profile at `path`, or the newest, in which case a message says which; and its path."""
    if path is None:
        path = newest("profile.json")
        if path is None:
            raise ValueError("no profile under reports/; make one with `asdm-prof profile sd15`, or name a file.")
        terminal.say(f"Using {path}, the newest profile.")
    elif path.is_dir():
        path = path / "profile.json"
    return Profile.load(find_input(path)), path


def profile_of(family: str, path: Path | None, checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> Profile:
    """The profile at `path`, else the family's newest with the `wanted` settings, else a new one.

    Raises ValueError if the profile at `path` was measured with other settings.
    """
    from asdm.models import loading
    from asdm.models.families import load_family
    from asdm_prof.renderers import _collect

    if path is not None:
        profile, path = profile_at(path)
        if names := _collect.unlike(profile, **wanted):
            pairs = [(name, shown(getattr(profile, name)), shown(wanted[name])) for name in names]
            differences = ", ".join(f"{name} {there}, not {here}" for name, there, here in pairs)
            raise ValueError(f"{path} was measured with {differences}; name another profile, or drop the option.")
        return profile
    sha256 = loading.unet_config_sha256(loading.meta_unet(load_family(family, checkpoint.config)).config)
    if newest := _collect.newest_profile(sha256, **wanted):
        profile, path = newest
        terminal.say(f"Using {path}, the newest profile of {family}.")
        return profile
    terminal.say(f"There is no such profile of {family} under reports/ yet: profiling it first.")
    return _new_profile(family, checkpoint, wanted)


def _new_profile(family: str, checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> Profile:
    from asdm.models import execution
    from asdm_prof.cli.progress import watching
    from asdm_prof.profiler.profile import profile as measure

    values = {name: value for name, value in wanted.items() if value is not None}
    of = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    settings = execution.resolve(ProfileSettings, of | values)
    command = "" if "dtype" in wanted else " of asdm-prof profile"
    if sentence := execution.chosen_on_a_gpu(settings, values, command):
        terminal.say(sentence)
    with watching("Profiling") as watch:
        profile = measure(family, settings, watch, command=this_command("asdm-prof"))
    path = profile.save(default_folder(profile) / "profile.json")
    terminal.say(f"Wrote {path}")
    return profile


def default_folder(profile: Profile) -> Path:
    """A new folder under reports/ for what is made from a profile."""
    return run_folder(short_name(profile.family), profile.backend, profile.dtype)


def budgets_of(budget: str | None, macs: str | None, params: str | None, memory: str | None) -> dict[str, str]:
    """The budgets that were named."""
    budgets = {"latency": budget, "macs": macs, "params": params, "memory": memory}
    return {name: text for name, text in budgets.items() if text is not None}


def validation_at(path: Path | None) -> Validation | None:
    """The validation at `path`, if one was named."""
    return Validation.load(find_input(path)) if path else None


def damage_at(path: Path | None) -> Damage | None:
    """The damage at `path`, if one was named."""
    return Damage.load(find_input(path)) if path else None


@contextmanager
def feasible(budgets: dict[str, str], profile: Profile | None = None, margin_options: bool = True) -> Iterator[None]:
    """Exit with 3 if no plan meets the budgets, saying what is reachable and the cheapest relaxation.

    The same where every plan within them does too much damage. `margin_options`: whether the command has --validation
    and --confidence.
    """
    from asdm_prof.planner import plan

    try:
        yield
    except plan.Infeasible as error:
        from asdm_prof.renderers import console

        for line in console.infeasible_lines(error, budgets, profile, margin_options):
            terminal.say(line)
        raise typer.Exit(terminal.INFEASIBLE) from None
    except plan.TooMuchDamage as error:
        terminal.say(f"Error: {error}; raise --max-damage{' or a budget' if budgets else ''}.")
        raise typer.Exit(terminal.INFEASIBLE) from None


@contextmanager
def resumable(path: Path) -> Iterator[Path]:
    """The file beside `path` that keeps what a run has measured; after an interrupt, a message says how to resume."""
    run_file = path.with_name(f"{path.name}.run")
    try:
        yield run_file
    except KeyboardInterrupt:
        if run_file.exists():
            terminal.say(f"The measurements so far are in {run_file}; repeat the command with -o {path} to resume.")
        raise


def flattened(row: dict[str, Any]) -> dict[str, Any]:
    """Nested estimates as columns of their own."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{name}": inner for name, inner in flattened(value).items()}
        else:
            flat[key] = value
    return flat
