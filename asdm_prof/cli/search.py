"""`asdm-prof search`: plan, train and measure many students."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import Json, from_settings, this_command
from asdm.utils import console as terminal
from asdm.utils.runs import REPORTS, short_name
from asdm_prof.cli.inputs import damage_at, feasible, profile_at, profile_of
from asdm_prof.cli.options import DamageFile
from asdm_prof.search.settings import SearchSettings, WorkerSettings


@from_settings
def search(
    family: Annotated[
        str, typer.Argument(help="mini, sd15, sd21, sd21_base, a whole diffusers folder, or a checkpoint.")
    ],
    *,
    settings: SearchSettings,
    profile: Annotated[
        Path | None,
        typer.Option(help="A profile.json; default: the study's, the family's newest under reports/, or a new one."),
    ] = None,
    damage: DamageFile = None,
    own: WorkerSettings,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default: reports/FAMILY-search-BUDGET.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan many students within a budget, train the better ones for longer, and measure them.

    Repeat the command, also in other processes at the same time, to resume a search or to help with it.
    """
    from asdm_prof.renderers import console
    from asdm_prof.search import search as searching

    folder = output or REPORTS / f"{short_name(family)}-search-{settings.budget.replace('/', '_')}"
    named = profile_at(profile)[0] if profile else None
    try:
        with feasible({"latency": settings.budget}, named, margin_options=False):
            result = searching.search(
                family,
                settings,
                folder,
                lambda: profile_of(family, None, settings, {"device": settings.device}),
                named,
                damage_at(damage),
                own,
                lambda: terminal.progress("Searching"),
                this_command("asdm-prof"),
            )
    except KeyboardInterrupt:
        if folder.exists():
            terminal.say(f"The search in {folder} is saved up to here; repeat the command to resume it.")
        raise
    if as_json:
        print(result.to_json(), end="")
    else:
        console.print_record(result, console.stdout_console())
    terminal.say(f"Wrote {folder / searching.RESULT}")
