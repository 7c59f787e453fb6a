"""`asdm-prof flops`: exact costs, without running anything."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from asdm.cli.options import Json, Without, from_settings
from asdm.models.settings import Setup
from asdm.utils import console
from asdm.utils.console import Format
from asdm_prof.cli.options import FamilyArgument, FormatOption


@from_settings
def flops(
    family: FamilyArgument,
    *,
    like: Annotated[
        str | None, typer.Option(help="Count by another tool's rule: thop (no attention, 4 per LayerNorm element).")
    ] = None,
    setup: Annotated[Setup, Without("weights", "variant", "lora", "device", "dtype", "threads", "seed")],
    form: FormatOption = Format.table,
    as_json: Json = False,
) -> None:
    """Exact MACs and parameters of every unit, and of the models around the UNet."""
    from asdm_prof.profiler import costs

    counts = costs.flops_of(family, setup.batch, setup.size, like, setup.config)
    if as_json or form is Format.json:
        print(json.dumps(counts, indent=1, allow_nan=False))
        return
    console.emit(costs.unit_rows(counts), form, f"{counts['title']}, UNet")
    if form is Format.table:
        print()
        console.emit(costs.component_rows(counts), form, "One image (Fig. 1)")
