"""Can somebody who sees the mini's pictures, and not their captions, tell what they show?

    python -m benchmarks.mini.blind -o reports/mini                     # blind.png and blind.json: look, and answer
    python -m benchmarks.mini.blind -o reports/mini --answers "12 3 …"  # score 32 answers into blind.json

The sheet has 32 numbered pictures, drawn from one seed and not selected. The list has the captions of those and of 32
other ones, shuffled; an answer is a place in it, from 1. Which caption belongs to which picture stands in no file until
the answers do.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from asdm.data.datasets import emoji
from asdm.evaluate.generation import generate_images
from asdm.mini import PIPELINE
from asdm.models.families import load_family
from asdm.models.loading import load_unet, weights_sha256
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.utils import console, io as files
from asdm.utils.record import Record, later, utc_now
from benchmarks.mini.evaluate import STEPS, sheet

SHOWN, LISTED = 32, 64


class Blind(Record, schema="asdm.mini-blind/1"):
    """`asdm.mini-blind/1`: captions to choose from and, once it is answered, what was answered and what is right."""

    created_utc: str
    weights_sha256: str
    guidance_scale: float
    steps: int
    seed: int
    captions: tuple[str, ...]  # shuffled
    answers: tuple[int, ...] | None = later(None)  # of each picture, a place in `captions` from 1
    right: tuple[int, ...] | None = later(None)  # the same, as it is
    hits: int | None = later(None)


class Question(NamedTuple):
    """The captions to choose from, and the place of each picture's own among them, from 1."""

    captions: tuple[str, ...]
    right: tuple[int, ...]


def ask(captions: tuple[str, ...], seed: int) -> Question:
    """Draw a question from all captions; raises ValueError where they are too few."""
    if len(captions) < LISTED:
        raise ValueError(f"{LISTED} captions to choose from are needed, got {len(captions)}.")
    rng = np.random.default_rng(seed)
    listed = tuple(captions[i] for i in rng.permutation(len(captions))[:LISTED])
    return Question(listed, tuple(int(place) + 1 for place in rng.permutation(LISTED)[:SHOWN]))


def scored(record: Blind, question: Question, answers: tuple[int, ...]) -> Blind:
    """The record with its answers; raises ValueError where there is not one for each picture."""
    if record.captions != question.captions:
        raise ValueError("the list of captions is of another seed or other drawings; draw the sheet again.")
    if len(answers) != SHOWN or any(not 1 <= answer <= LISTED for answer in answers):
        raise ValueError(f"{SHOWN} answers from 1 to {LISTED} are needed, got {' '.join(map(str, answers))}.")
    hits = sum(answer == right for answer, right in zip(answers, question.right, strict=True))
    return record.model_copy(update={"answers": answers, "right": question.right, "hits": hits})


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for blind.png and blind.json.")],
    weights: Annotated[Path, typer.Option(help="A trained pipeline; default: the one that ships.")] = PIPELINE,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the family's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the question and of the first picture.")] = 0,
    answers: Annotated[str, typer.Option(help="Answers of all pictures in order, with spaces between them.")] = "",
) -> None:
    """Draw a sheet of pictures without captions, or score what somebody sees in it."""
    family = load_family(str(weights))
    question = ask(tuple(emoji.open_data("train", family.size).captions), seed)
    path, unet = output / "blind.json", load_unet(family, str(weights))
    if answers:
        drawn_by = Blind.load(path)
        if drawn_by.weights_sha256 != weights_sha256(unet):
            raise ValueError(f"{path} is of other weights; draw the sheet again.")
        record = scored(drawn_by, question, tuple(int(word) for word in answers.split()))
        record.save(path, force=True)
        console.say(f"{record.hits} of {SHOWN} pictures were told.")
        return
    scale = guidance or family.guidance_scale
    pipe = pipeline(family, unet, Setup(weights=str(weights), seed=seed))
    with console.progress("Drawing") as tell:
        captions = [question.captions[place - 1] for place in question.right]
        drawn = generate_images(pipe, captions, seed, STEPS, scale, partial(tell, "drawing"), batch=32)
    files.write_whole(output / "blind.png", sheet(drawn.images, [str(i + 1) for i in range(SHOWN)]), force=True)
    Blind(
        created_utc=utc_now(), weights_sha256=weights_sha256(unet), guidance_scale=scale, steps=STEPS, seed=seed,
        captions=question.captions,
    ).save(path, force=True)  # fmt: skip
    console.say(f"Look at {output / 'blind.png'}, and answer with --answers.")
    console.say("\n".join(f"{place:3d}  {caption}" for place, caption in enumerate(question.captions, start=1)))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    console.run(app)
