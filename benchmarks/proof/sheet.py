"""`python -m benchmarks.proof.sheet -o reports/mini/students.png --folder WORK`: what rows of the proof draw.

A row of pictures for each student, a column for each caption; every column starts from one noise. Nothing is selected:
captions are the first of the list, students those of the first training seed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from asdm.evaluate.generation import generate_images
from asdm.models import loading
from asdm.models.families import load_family
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.models.sources import own_weights
from asdm.utils import console, io
from benchmarks import script
from benchmarks.mini.evaluate import SHOWN, STEPS, sheet
from benchmarks.proof.rows import TEACHER

COLUMNS = 8  # of `sheet`


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG.")],
    folder: Annotated[Path, typer.Option(help="Where the proof kept its students.")],
    rows: Annotated[str, typer.Option(help="Rows, separated by commas.")] = "teacher,bk_sdm,a_sdm_clme,ours_0.5",
    family: Annotated[str, typer.Option(help="Family with weights, or diffusers folder.")] = "mini",
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
) -> None:
    """Draw the same captions with every row's student of the first training seed."""
    names = [name.strip() for name in rows.split(",")]
    students = {name: folder / "students" / name / "seed-0" for name in names if name != TEACHER}
    if missing := [str(place) for place in students.values() if not (place / "config.json").exists()]:
        raise ValueError(f"{missing[0]} holds no student; train it with python -m benchmarks.proof --folder {folder}.")
    known = load_family(family)
    teacher = loading.load_unet(known, own_weights(known))
    pipe, drawn = pipeline(known, teacher, Setup(seed=seed)), []
    captions = SHOWN[:COLUMNS]
    with console.progress("Drawing") as tell:
        for name in names:
            place = str(students.get(name))
            unet = loading.load_unet(load_family(place), place) if name in students else teacher
            pipe.register_modules(unet=unet)
            drawn.append(
                generate_images(pipe, captions, seed, STEPS, known.guidance_scale, partial(tell, name), batch=8).images
            )
    titles = [f"{name}\n{caption}" for name in names for caption in captions]
    io.write_whole(output, sheet(torch.cat(drawn), titles), force=True)
    console.say(f"Wrote {output}")


if __name__ == "__main__":
    script.run(main)
