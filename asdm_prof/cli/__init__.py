"""`asdm-prof`: count, profile, rank, plan, report."""

from __future__ import annotations

from importlib import import_module

import typer

from asdm.cli.options import output_checked, root_options
from asdm.utils import console

COMMANDS = (
    "flops", "profile", "rank", "plan", "frontier", "schedule", "sensitivity",
    "compare", "validate", "search", "diff", "report", "env",
)  # fmt: skip

app = typer.Typer(
    help="Find out where a Stable Diffusion UNet spends its time, what is redundant, and what to prune.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(root_options)
for name in COMMANDS:  # each is the function of its name in the module of its name
    app.command()(output_checked(getattr(import_module(f"{__name__}.{name}"), name)))


def main() -> None:
    """Entry point of `asdm-prof`."""
    console.run(app)
