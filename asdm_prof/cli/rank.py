"""`asdm-prof rank`: units by redundancy."""

from __future__ import annotations

import json

from asdm.cli.options import Json
from asdm.utils import console as terminal
from asdm.utils.console import Format
from asdm_prof.cli.inputs import flattened, profile_at
from asdm_prof.cli.options import FormatOption, ProfileArgument


def rank(profile: ProfileArgument = None, form: FormatOption = Format.table, as_json: Json = False) -> None:
    """Units by redundancy: much latency, few parameters; ties are grouped."""
    measured, _ = profile_at(profile)
    from asdm_prof.analysis.rank import rank as ranking
    from asdm_prof.renderers import console

    ranked = ranking(measured)
    rows = [row.model_dump(mode="json") for row in ranked]
    if as_json or form is Format.json:
        print(
            json.dumps({"schema": "asdm.rank/1", "family": measured.family, "units": rows}, indent=1, allow_nan=False)
        )
    elif form is Format.table:
        screen = console.stdout_console()
        screen.print(console.rank_table(measured, screen.width))
    else:
        terminal.emit([flattened(row) for row in rows], form)
