"""`python -m benchmarks.mini.trials -o FILE`: short runs of the UNet side by side, before the long one.

All trials train on equally many images from the same seed, and each differs from the first in one setting. They
are ranked by how often the judge's nearest real drawing, among 200, is the caption's, because the losses of ε- and
v-prediction are not comparable.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from asdm.data.datasets import emoji
from asdm.evaluate import quality
from asdm.evaluate.generation import generate_images
from asdm.evaluate.metrics import JudgedImages, mean
from asdm.models.families import load_family
from asdm.models.loading import load_unet
from asdm.models.networks import Judge
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.bench import Metric
from asdm.utils import console
from asdm.utils.io import Frozen, Record, utc_now
from benchmarks.mini.parts import unet
from benchmarks.mini.picture_found import matches
from benchmarks.mini.training import train

FIRST = unet.Hyperparameters()
TRIALS = {
    "first": FIRST,
    "epsilon": replace(FIRST, prediction="epsilon"),
    "frozen text": replace(FIRST, text="frozen"),
    "rate 2e-3": replace(FIRST, learning_rate=2e-3),
    "rate 5e-4": replace(FIRST, learning_rate=5e-4),
    "muon": replace(FIRST, optimizer="muon"),
    "muon 2e-3": replace(FIRST, optimizer="muon", learning_rate=2e-3),
    "batch 128": replace(FIRST, batch=128, learning_rate=1.4e-3),
}
GUIDANCE, STEPS, DRAWN = 3.0, 20, 200


class Trial(Frozen):
    """One short run, and the quality of its images."""

    name: str
    recipe: dict[str, Any]
    pictures_seen: int
    seconds: float
    picture_found: Metric  # share of drawn pictures whose nearest real one among 200 is the right one
    recall_at_1: Metric
    frechet_distance: Metric


class Trials(Record, schema="asdm.mini-trials/1"):
    """`asdm.mini-trials/1`."""

    created_utc: str
    trials: tuple[Trial, ...]


def run(name: str, pictures: int, folder: Path, tell: Callable[..., None]) -> Trial:
    """Train one trial, from its checkpoint where there is one, and judge it."""
    hp, home = TRIALS[name], folder / "trials" / name.replace(" ", "-")
    task = unet.training_task(pictures // hp.batch, folder, hp)
    began = time.monotonic()
    module = train(task, home, partial(_renamed, tell, name))
    seconds = time.monotonic() - began
    for part in ("vae", "clip"):
        (home / part).unlink(missing_ok=True)
        (home / part).symlink_to((folder / part).resolve())
    unet.ship(module, home, hp.prediction)
    return Trial(
        name=name,
        recipe=asdict(hp),
        pictures_seen=task.steps * hp.batch,
        seconds=round(seconds, 1),
        **judged(home / "weights", partial(tell, f"{name} draws")),
    )


def _renamed(tell: Callable[..., None], name: str, _: str, step: int, left: float | None) -> None:
    tell(name, step, left)


def judged(weights: Path, tell: Callable[..., None]) -> dict[str, Metric]:
    """The judge's metrics of 200 images of training captions."""
    family, judge, real = load_family(str(weights)), Judge.load(), emoji.open_data("train")
    picks = np.random.default_rng(0).permutation(len(real))[:DRAWN]
    examples = [real[int(i)] for i in picks]
    pipe = pipeline(family, load_unet(family, str(weights)), Setup(weights=str(weights)))
    drawn = generate_images(pipe, [e.caption for e in examples], 0, STEPS, GUIDANCE, tell, batch=50)
    truth = JudgedImages(judge, torch.stack([e.image for e in examples])).embeddings
    matched = matches(JudgedImages.of(judge, drawn).embeddings, truth, truth, DRAWN)
    alone = quality.Judgement(judge, None, examples, real.captions).alone(drawn)
    return {"picture_found": mean(matched)} | {name: alone[name] for name in ("recall_at_1", "frechet_distance")}


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; trials that it holds are kept.")],
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(TRIALS)}; default: all.")] = None,
    folder: Annotated[Path, typer.Option(help="Where vae and clip were trained.")] = Path("mini-training"),
    pictures: Annotated[int, typer.Option(help="Pictures that each trial sees.")] = 25_600,
) -> None:
    """Compare short runs of the UNet's training."""
    if unknown := sorted(set(names or ()) - TRIALS.keys()):
        raise ValueError(f"unknown trial {unknown[0]!r}; choose from {', '.join(TRIALS)}.")
    done = {trial.name: trial for trial in Trials.load(output).trials} if output.exists() else {}
    with console.progress("Trying", "steps") as tell:
        for name in names or TRIALS:
            if name not in done:
                done[name] = run(name, pictures, folder, tell)
                Trials(created_utc=utc_now(), trials=tuple(done.values())).save(output, force=True)
    console.emit(
        [
            {"trial": t.name, "seconds": f"{t.seconds:.0f}"}
            | {
                key.replace("_", " "): f"{m.value:.3g} [{m.low:.3g}, {m.high:.3g}]"
                for key, m in t
                if isinstance(m, Metric)
            }
            for t in done.values()
        ],
        console.Format.table,
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    console.run(app)
