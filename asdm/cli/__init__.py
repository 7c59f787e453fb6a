"""`asdm`: build a student from a plan, train it, measure it against its teacher, and export it."""

from __future__ import annotations

import typer

from asdm.cli import bench, build, cache, distill, distill_units, export, generate, slim
from asdm.cli.options import output_checked, root_options
from asdm.utils import console

app = typer.Typer(
    help="Build a smaller Stable Diffusion UNet from a pruning plan, and measure it against its teacher.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(root_options)
for command in (
    slim.slim, build.build, distill.distill, distill_units.distill_units, cache.cache, bench.bench, generate.generate,
    export.export,
):  # fmt: skip
    app.command()(output_checked(command))


def main() -> None:
    """Entry point of `asdm`."""
    console.run(app)
