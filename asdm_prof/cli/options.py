"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import one_of
from asdm.utils.console import Format

FormatOption = Annotated[Format, typer.Option("--format", help="How the table is printed.")]
FamilyArgument = Annotated[
    str,
    typer.Argument(
        help="sd15, sd21, sd21_base, sdxl, mini, a diffusers folder, or a .safetensors checkpoint.",
        autocompletion=one_of("asdm.models.families"),
    ),
]
PROFILE = "A profile.json; default: the newest under reports/."
ProfileArgument = Annotated[Path | None, typer.Argument(help=PROFILE)]
ProfileOption = Annotated[Path | None, typer.Option("--profile", help=PROFILE)]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Budget of the UNet's latency: 0.8, 80%, 250ms, 1.2s or x1.3.")
]
Macs = Annotated[str | None, typer.Option("--macs", help="Budget of MACs: 0.8, 80% or 300G.")]
Params = Annotated[str | None, typer.Option("--params", help="Budget of parameters: 0.8, 80% or 650M.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Budget of weights and largest activations: 0.8, 80% or 2GiB.")
]
Confidence = Annotated[
    float,
    typer.Option("--confidence", help="Probability with which the latency budget is to hold, from 0.5 to below 1."),
]
ValidationFile = Annotated[
    Path | None, typer.Option("--validation", help="A validate.json, whose measured error replaces the assumed one.")
]
DamageFile = Annotated[
    Path | None,
    typer.Option("--damage", help="A damage.json of `asdm-prof sensitivity`; default: the structural prior."),
]
MaxDamage = Annotated[
    str | None,
    typer.Option(
        "--max-damage",
        help="Most damage that a plan may do: 0.05, or 5% of the teacher's output; alone, the fastest such plan.",
    ),
]
LoadsIn = Annotated[
    str | None,
    typer.Option(
        "--loads-in", help="Only plans whose students these programs load: comfyui, sdcpp, diffusers, or several."
    ),
]
