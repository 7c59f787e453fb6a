"""Options that the commands share, and what they turn into."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from asdm import __version__
from asdm.utils import registry


def one_of(package: str) -> Callable[[str], list[str]]:
    """A shell's completions of the names in a seam."""
    return lambda incomplete: [name for name in registry.names(package) if name.startswith(incomplete)]


Weights = Annotated[
    str | None,
    typer.Option(help="'random', a local diffusers folder or a hub id; default: the family's own, else random."),
]
Backend = Annotated[
    str,
    typer.Option(
        help="eager, compiled, onnxruntime, openvino, or fake (made-up times, needs no weights).",
        autocompletion=one_of("asdm.measure.backends"),
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: the accelerator where there is one.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: what torch takes.")]
Seed = Annotated[int, typer.Option(help="Seed of random weights and inputs.")]
Batch = Annotated[int, typer.Option(help="Images per UNet call.")]
Size = Annotated[int | None, typer.Option(help="Pixels per side; default: what the family was made for.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(f"asdm {__version__}")
        raise typer.Exit


def root_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the command itself; without a command, what to do next."""
    if context.invoked_subcommand is None:
        from asdm.cli import guide

        print("\n".join(guide.lines()))


def device_or_default(device: str | None) -> str:
    """The device that was asked for, or the accelerator where there is one."""
    from asdm.models import execution

    return device or execution.default_device()


def this_command(program: str) -> str:
    """The command line as it was typed."""
    return shlex.join([*program.split(), *sys.argv[1:]])


def target(output: Path | None, default: Path, name: str) -> Path:
    """The file that a run writes: `output` itself, `name` in the folder `output`, or `name` in a folder of its own."""
    if output is None:
        return default / name
    return output if output.suffix == Path(name).suffix else output / name


def warn_if_slow(device: str, dtype: str, backend: str = "eager") -> None:
    """Say it before a run that would take hours."""
    from asdm.models import execution
    from asdm.utils import console

    if backend in ("eager", "compiled") and (warning := execution.slow_dtype(device, dtype)):
        console.say(f"Warning: {warning}")
