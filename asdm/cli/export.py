"""`asdm export`: a UNet that runs without this package."""

from pathlib import Path
from typing import Annotated

import typer

from asdm.cli.options import SCHEDULE, Force, Json, Without, from_settings
from asdm.models.settings import Setup
from asdm.utils import console


@from_settings
def export(
    source: Annotated[str, typer.Argument(help="A student's folder, a family, a diffusers folder or a config file.")],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the exported UNet, or a .safetensors file.")
    ],
    to: Annotated[str, typer.Option(help="onnx, openvino, coreml, diffusers or single_file.")] = "onnx",
    layout: Annotated[
        str, typer.Option(help="Names in a single file: comfyui (LDM's), sdcpp (with holes) or diffusers_unet.")
    ] = "comfyui",
    pipeline: Annotated[
        str | None,
        typer.Option(
            help="Folder or checkpoint whose VAE and text encoders go into a single file, or none; default: the "
            "teacher's."
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(help="A LoRA of the student's teacher, to be written for the student instead.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"{SCHEDULE}; its passes as a set of graphs (--to onnx or openvino).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="UNet calls of a preset's schedule.")] = 30,
    setup: Annotated[Setup, Without("device", "threads", "batch", "lora")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a UNet in a form that runs without this package, after comparing its output with PyTorch's."""
    from asdm.models import export as exporter

    if schedule:
        from asdm.schedule.graphs import export as graphs

        if lora:
            raise ValueError("a LoRA is exported by itself; leave out --lora or --schedule.")
        with console.progress("Exporting", "steps") as tell:
            result = graphs.export_schedule(source, schedule, to, output, setup, steps, force, tell)
        print(result.to_json() if as_json else f"{graphs.describe(result, output)}\n", end="")
        return
    with console.progress("Exporting") as tell:
        result = exporter.export(source, to, output, setup, force, tell, layout, pipeline, lora)
    print(result.to_json() if as_json else f"{exporter.describe(result, output)}\n", end="")
