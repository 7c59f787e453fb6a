"""`python -m benchmarks.mini.evaluate -o reports/mini`: how good the mini is, beside the best it could be.

Real drawings and the VAE's reconstructions are the ceiling, and other real drawings what pictures as good as those, but
not of these captions, would reach; generated pictures of captions that were trained on and of held-out ones follow, at
several guidance scales. One picture a caption and style, judged by the judge, which knows the
captions and so these drawings, and by one from outside that does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from asdm.data.datasets import emoji
from asdm.evaluate import quality
from asdm.evaluate.generation import GeneratedImages, decode_latents, generate_images
from asdm.evaluate.metrics import JudgedImages, mean
from asdm.evaluate.metrics.recall_at_1 import CANDIDATES
from asdm.mini import PIPELINE
from asdm.models.families import load_family
from asdm.models.loading import load_unet, weights_sha256
from asdm.models.networks import Judge, Vgg
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.records.bench import Metric
from asdm.utils import console, io as files
from asdm.utils.progress import Tell
from asdm.utils.record import Frozen, Record, later, utc_now
from benchmarks import script
from benchmarks.mini.outside import OutsideJudge, judged_by, matches

GUIDANCE = (1.0, 2.0, 3.0, 5.0, 8.0)
STEPS = 30
SPLITS = ("train", "held_out")
KINDS = {"real": "real drawings", "other": "other real drawings", "reconstructed": "the VAE's reconstructions",
         "generated": "the UNet's"}  # fmt: skip
SHOWN = (
    "red heart, twemoji style", "broken heart, openmoji style", "grinning face, twemoji style",
    "smiling face with sunglasses, openmoji style", "clown face, twemoji style", "robot, openmoji style",
    "ghost, twemoji style", "alien, openmoji style", "fox, twemoji style", "panda, openmoji style",
    "lion, twemoji style", "frog, openmoji style", "penguin, twemoji style", "owl, openmoji style",
    "octopus, twemoji style", "spouting whale, openmoji style", "lady beetle, twemoji style", "snail, openmoji style",
    "tulip, twemoji style", "cactus, openmoji style", "four leaf clover, twemoji style", "mushroom, openmoji style",
    "watermelon, twemoji style", "banana, openmoji style", "strawberry, twemoji style", "doughnut, openmoji style",
    "rainbow, twemoji style", "snowman, openmoji style", "guitar, twemoji style", "crescent moon, openmoji style",
    "green heart, twemoji style", "blue circle, openmoji style",
)  # fmt: skip


class Row(Frozen):
    """Pictures of one kind, and what the judge makes of them."""

    name: Literal["real", "other", "reconstructed", "generated"]
    split: str
    guidance_scale: float | None = None
    pictures: int
    metrics: dict[str, Metric]


class MiniQuality(Record, schema="asdm.mini-quality/1"):
    """`asdm.mini-quality/1`."""

    created_utc: str
    weights_sha256: str | None = later(None)  # of the UNet
    steps: int
    seed: int
    psnr_db: dict[str, float]  # split → the VAE's
    rows: tuple[Row, ...]

    def beside(self, before: MiniQuality) -> MiniQuality:
        """With the rows of an evaluation of the same weights with the same steps and seed that this one lacks."""
        if any(getattr(self, name) != getattr(before, name) for name in ("weights_sha256", "steps", "seed", "psnr_db")):
            return self
        rows = {_key(row): row for row in (*before.rows, *self.rows)}
        return self.model_copy(update={"rows": tuple(rows[key] for key in sorted(rows))})


def _key(row: Row) -> tuple[int, int, int, float]:
    """The place of a row, and what makes it another one."""
    kind = list(KINDS).index(row.name)
    return SPLITS.index(row.split), kind, row.pictures, row.guidance_scale or 0.0


def table(quality: MiniQuality) -> str:
    """Markdown: a row for each kind of pictures, with what both judges make of them."""
    names = {
        "found_from_outside": "found, from outside", "frechet_from_outside": "Fréchet, from outside",
        "picture_found": "found", "recall_at_1": "R@1", "frechet_distance": "Fréchet distance",
    }  # fmt: skip
    lines = ["", f"| pictures | n | {' | '.join(names.values())} |", "|---|---|" + "---|" * len(names)]
    for row in quality.rows:
        what = KINDS[row.name] + ("" if row.guidance_scale is None else f", guidance {row.guidance_scale:g}")
        cells = [
            "{:.3g} [{:.3g}, {:.3g}]".format(*(round(value, 3) + 0.0 for value in (m.value, m.low, m.high)))
            for m in (row.metrics[name] for name in names)
        ]
        lines.append(f"| {what}, {'held out' if row.split == 'held_out' else 'trained'} | {row.pictures} | "
                     f"{' | '.join(cells)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def evaluate(
    folder: Path, guidance: Sequence[float], seed: int, pictures: int, judges: tuple[Judge, OutsideJudge], tell: Tell
) -> MiniQuality:
    """Judge real, reconstructed and generated pictures of both splits, at most `pictures` of each."""
    family = load_family(str(folder))
    unet = load_unet(family, str(folder))
    pipe = pipeline(family, unet, Setup(weights=str(folder), seed=seed))
    (judge, outside), vgg = judges, Vgg.load()
    rows, psnr = [], {}
    everything = {split: emoji.open_data(split, family.size) for split in SPLITS}
    pools = {split: tuple(data.captions) for split, data in everything.items()}
    others = everything["train"].images()
    candidates, from_outside = JudgedImages(judge, others).embeddings, JudgedImages(outside, others)
    for split, data in everything.items():
        real = some(data, pictures)
        images = real.images()
        truth, truth_outside = JudgedImages(judge, images).embeddings, JudgedImages(outside, images)
        judging = quality.Judgement(judge, vgg, real, _pool(pools[split], pools))
        rebuilt = _reconstructed(pipe.vae, images)
        psnr[split] = round(_psnr(rebuilt, images), 2)

        def judged(
            drawn: GeneratedImages, judging: Any = judging, truth: Any = truth, real: Any = truth_outside
        ) -> Any:
            recall = mean(matches(JudgedImages(judge, drawn.images).embeddings, truth, candidates))
            return (
                judging.alone(drawn) | {"picture_found": recall} | judged_by(outside, drawn.images, real, from_outside)
            )

        unlike = some(without(everything["train"], set(real.captions)), len(real)).images()
        for name, pixels in (("real", images), ("other", unlike), ("reconstructed", rebuilt)):
            drawn = GeneratedImages(pixels, torch.zeros(len(real), 1, 1, 1))
            rows.append(Row(name=name, split=split, pictures=len(real), metrics=judged(drawn)))
        for scale in guidance:
            report = partial(tell, f"{split}, guidance {scale:g}")
            drawn = generate_images(pipe, real.captions, seed, STEPS, scale, report, batch=32)
            rows.append(
                Row(name="generated", split=split, guidance_scale=scale, pictures=len(real), metrics=judged(drawn))
            )
    return MiniQuality(created_utc=utc_now(), weights_sha256=weights_sha256(unet), steps=STEPS, seed=seed, psnr_db=psnr,
                       rows=tuple(rows))  # fmt: skip


def some(data: emoji.Emoji, count: int) -> emoji.Emoji:
    """At most `count` of the drawings, at equal distances, so that all their kinds and both styles are among them."""
    return _at(data, np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int).tolist())


def without(data: emoji.Emoji, captions: Collection[str]) -> emoji.Emoji:
    """The drawings of other captions."""
    return _at(data, [i for i, caption in enumerate(data.captions) if caption not in captions])


def _at(data: emoji.Emoji, places: list[int]) -> emoji.Emoji:
    columns = (data.names, data.styles, data.categories, data.subcategories)
    return emoji.Emoji(data.pixels[places], *(tuple(column[i] for i in places) for column in columns))


def _pool(captions: Sequence[str], pools: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The candidates for a split; where its captions are too few, the training captions are added."""
    return tuple(captions) if len(captions) >= CANDIDATES else (*captions, *pools["train"])


@torch.inference_mode()
def _reconstructed(vae: Any, images: torch.Tensor) -> torch.Tensor:
    parts = [
        decode_latents(vae, vae.encode(part).latent_dist.mean * vae.config.scaling_factor) for part in images.split(32)
    ]
    return torch.cat(parts)


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over images, in dB; pixels span 2."""
    mse = (a - b).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / mse)).mean())


def contact_sheet(folder: Path, path: Path, guidance_scale: float, seed: int = 0) -> None:
    """32 images with their captions, from one seed and not selected."""
    family = load_family(str(folder))
    pipe = pipeline(family, load_unet(family, str(folder)), Setup(weights=str(folder)))
    drawn = generate_images(pipe, SHOWN, seed, STEPS, guidance_scale, batch=32)
    titles = [caption.replace(", ", "\n") for caption in SHOWN]
    files.write_whole(path, sheet(drawn.images, titles), force=True)


def sheet(images: torch.Tensor, titles: Sequence[str]) -> bytes:
    """A PNG of pictures (n, 3, h, w) in [-1, 1] with their titles, eight in a row."""
    import io
    import textwrap

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(images) // 8)
    figure, axes = plt.subplots(rows, 8, figsize=(12, 1.8 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(((image.permute(1, 2, 0) + 1) / 2).clamp(0, 1))
        axis.set_title("\n".join(textwrap.fill(line, 24) for line in title.splitlines()), fontsize=7)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for quality.json and the contact sheets.")],
    weights: Annotated[Path, typer.Option(help="A trained pipeline; default: the one that ships.")] = PIPELINE,
    guidance: Annotated[list[float] | None, typer.Option(help="Guidance scales to try.")] = None,
    shown: Annotated[float, typer.Option(help="Guidance scale of the first contact sheet; the second has 8.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    pictures: Annotated[int, typer.Option(help="Pictures of each split, at most.", min=10)] = 500,
    judge: Annotated[Path, typer.Option(help="The judge that knows the drawings.")] = Judge.FOLDER,
    sheets_only: Annotated[
        bool, typer.Option("--sheets-only", help="Draw the contact sheets and nothing else.")
    ] = False,
    readme: script.Readme = False,
) -> None:
    """Judge the mini, and draw its contact sheets. Rows of earlier evaluations of the same weights stay."""
    judges = Judge.load(judge), OutsideJudge.load()
    for scale in (shown, 8.0):
        contact_sheet(weights, output / f"contact-guidance-{scale:g}.png", scale, seed)
    if sheets_only:
        return
    with console.progress("Judging") as tell:
        result = evaluate(weights, guidance or GUIDANCE, seed, pictures, judges, tell)
    if (path := output / "quality.json").exists():
        result = result.beside(MiniQuality.load(path))
    result.save(path, force=True)
    if readme:
        script.put_into_results("mini-quality", table(result))
    console.emit(
        [
            {
                "pictures": f"{row.name} {row.split}"
                + ("" if row.guidance_scale is None else f" ×{row.guidance_scale:g}")
            }
            | {name: f"{m.value:.3g} [{m.low:.3g}, {m.high:.3g}]" for name, m in row.metrics.items()}
            for row in result.rows
        ],
        console.Format.table,
    )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    console.run(app)
