"""`asdm-prof profile`: time every unit in place."""

from __future__ import annotations

from typing import Annotated

import typer

from asdm.cli.options import Force, Json, Output, from_settings, save_and_print, target, this_command, warn_if_slow
from asdm.utils import console as terminal
from asdm.utils.runs import run_folder, short_name
from asdm_prof.cli.options import FamilyArgument
from asdm_prof.profiler.settings import ProfileSettings


@from_settings
def profile(
    family: FamilyArgument,
    *,
    settings: ProfileSettings,
    processes: Annotated[
        int, typer.Option(help="Fresh processes that each profile it; the trust box says whether they agree.")
    ] = 1,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Time every unit of a UNet in place, with intervals and a trust box."""
    default = run_folder(short_name(family), settings.backend, settings.dtype)
    path = target(output, default, "profile.json", force)
    from asdm_prof.cli.progress import watching
    from asdm_prof.profiler import repeat
    from asdm_prof.profiler.profile import profile as measure
    from asdm_prof.renderers import Report, console

    warn_if_slow(settings.device, settings.dtype, settings.backend)
    others = repeat.profile_again(family, settings, processes - 1, terminal.say)
    with watching("Profiling") as watch:
        result = measure(family, settings, watch, command=this_command("asdm-prof"))
    if others:
        result = repeat.with_others(result, others)
    save_and_print(result, path, force, as_json, lambda: console.render(Report(result), path.parent))
