"""`asdm-prof`: count, profile, rank, plan, report."""

from __future__ import annotations

import typer

from asdm.cli.options import root_options
from asdm.utils import console
from asdm_prof.cli import (
    compare,
    diff,
    env,
    flops,
    frontier,
    plan,
    profile,
    rank,
    report,
    search,
    sensitivity,
    validate,
)

COMMANDS = (
    flops.flops, profile.profile, rank.rank, plan.plan, frontier.frontier, sensitivity.sensitivity,
    compare.compare, validate.validate, search.search, diff.diff, report.report, env.env,
)  # fmt: skip

app = typer.Typer(
    help="Find out where a Stable Diffusion UNet spends its time, what is redundant, and what to prune.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(root_options)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Entry point of `asdm-prof`."""
    console.run(app)
