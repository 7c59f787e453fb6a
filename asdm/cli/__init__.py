"""`asdm`: build a student from a plan, train it, measure it against its teacher, and export it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from asdm.cli.options import (
    Backend,
    Batch,
    Device,
    Dtype,
    Force,
    Json,
    Seed,
    Size,
    Threads,
    Weights,
    device_or_default,
    root_options,
    target,
    this_command,
    warn_if_slow,
)
from asdm.evaluate.settings import BenchSettings
from asdm.models.settings import Setup
from asdm.utils import console
from asdm.utils import io as files

app = typer.Typer(
    help="Build a smaller Stable Diffusion UNet from a pruning plan, and measure it against its teacher.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(root_options)


@app.command()
def build(
    plan: Annotated[
        str,
        typer.Argument(
            help="A plan file, or a preset: a_sdm, a_sdm_clme, a_sdm_clme_timestep, bk_sdm_base, bk_sdm_small, "
            "bk_sdm_tiny."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the student (a diffusers folder).")],
    teacher: Annotated[
        str | None, typer.Option(help="Family or diffusers folder; default: the plan's family, sd15 for a preset.")
    ] = None,
    stage1: Annotated[
        str | None,
        typer.Option(help="Folder of a stage-1 student: its compressed blocks are grafted on the frozen teacher."),
    ] = None,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = "fp32",
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply a plan to its teacher and save the student, which inherits the teacher's weights."""
    source = str(files.find_input(Path(plan)))
    if source != plan:
        console.say(f"Using {source}, the newest {plan}.")
    files.check_writable(output, force)
    from asdm.models import build as builder

    with console.progress("Building") as tell:
        result = builder.build_student(
            source, teacher, output, stage1, weights, device_or_default(device), dtype, seed, force, tell
        )
    if as_json:
        print(result.to_json(), end="")
    else:
        print(builder.describe(result, output))
    if result.warning:
        console.say(f"Warning: {result.warning}")


@app.command()
def distill(
    plan: Annotated[str, typer.Argument(help="A plan file or a preset: what the student is to be in the end.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run's folder, which becomes the student's.")],
    teacher: Annotated[str, typer.Option(help="Family or diffusers folder.")] = "sd15",
    data: Annotated[
        str,
        typer.Option(help="emoji, folder:DIR, webdataset:SHARDS ({0000..0099} expands; files or URLs), latents:DIR."),
    ] = "emoji",
    split: Annotated[str, typer.Option(help="Split of a data set that has some.")] = "train",
    steps: Annotated[int, typer.Option(help="Optimiser steps, of all stages together.")] = 10_000,
    recipe: Annotated[
        str, typer.Option(help="progressive_incubation, without_incubation, bk_sdm, or FILE.py:FUNCTION.")
    ] = "progressive_incubation",
    stage: Annotated[str | None, typer.Option(help="Run this stage alone, such as compressed, combined.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="How grafted blocks learn: end_to_end, or blockwise (cheaper).")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="TERM=NUMBER or STAGE.TERM=NUMBER; 0 leaves a term out. May be repeated.")
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--raw", help="Features as a share of the teacher's, or as they are; default: the recipe's."
        ),
    ] = None,
    balance: Annotated[
        bool,
        typer.Option("--balance", help="Scale every term to the first one's size, so that none drowns the others."),
    ] = False,
    batch: Annotated[int, typer.Option(help="Pictures of a step, over all processes.")] = 16,
    micro_batch: Annotated[
        int | None, typer.Option(help="Pictures per forward of a process; default: its whole part of the batch.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="AdamW's, at its highest.")] = 1e-4,
    schedule: Annotated[str, typer.Option(help="constant, linear or cosine, after the warm-up.")] = "cosine",
    warm_up: Annotated[
        int | None, typer.Option(help="Steps of it; default: a twentieth of a stage, 500 at most.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or adamw8bit (needs bitsandbytes).")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.01,
    clip: Annotated[float, typer.Option(help="Longest gradient; 0: any.")] = 1.0,
    ema: Annotated[float, typer.Option(help="Decay of the running average that becomes the student; 0: none.")] = 0.999,
    min_snr: Annotated[float, typer.Option(help="γ of Min-SNR on denoising and output; 0: off.")] = 5.0,
    caption_dropout: Annotated[float, typer.Option(help="Share of pictures that are shown without a caption.")] = 0.1,
    vgg: Annotated[str, typer.Option(help="Network of the perceptual term: mini, imagenet, or a folder.")] = "mini",
    spike: Annotated[
        float, typer.Option(help="Stop where a term is this many times its running mean; 0: never.")
    ] = 20.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice instead of keeping them.")
    ] = False,
    weights: Weights = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="What forward and backward compute in: fp32, bf16 or fp16.")] = "fp32",
    size: Size = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    threads: Threads = None,
    workers: Annotated[int, typer.Option(help="Threads that read and decode pictures.")] = 2,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints; 0: after every step.")] = 600.0,
    keep: Annotated[int, typer.Option(help="Checkpoints to keep.")] = 2,
    validate_every: Annotated[
        int, typer.Option(help="Steps between pictures of teacher and student at fixed seeds; 0: none.")
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the log for TensorBoard as well.")] = False,
    until: Annotated[
        int | None,
        typer.Option(help="Pause after this step of all stages: its student is in paused/, and the run can go on."),
    ] = None,
    amend: Annotated[
        bool, typer.Option("--amend", help="Go on in a run's folder with another learning rate, weights or the like.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would learn, in how much memory and how many steps, and stop.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Throw away another run that is in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Train a plan's student from its teacher; the same command again goes on with an unfinished run."""
    from asdm import distill as trainer
    from asdm.cli import progress
    from asdm.distill import recipes

    source = str(files.find_input(Path(plan)))
    if source != plan:
        console.say(f"Using {source}, the newest {plan}.")
    settings = trainer.DistillSettings(
        data=data,
        steps=steps,
        split=split,
        seed=seed,
        weights=weights,
        device=device_or_default(device),
        dtype=dtype,
        size=size,
        batch=batch,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        schedule=schedule,
        warm_up=warm_up,
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip=clip,
        ema=ema,
        min_snr=min_snr,
        caption_dropout=caption_dropout,
        balance=balance,
        spike=spike,
        vgg=vgg,
        gradient_checkpointing=gradient_checkpointing,
        workers=workers,
        threads=threads,
        checkpoint_s=checkpoint_every,
        keep=keep,
        validate_every=validate_every,
        tensorboard=tensorboard,
    )
    warn_if_slow(settings.device, settings.dtype)
    chosen = recipes.adjust(recipes.load(recipe), mode, recipes.parse_weights(weight or []), normalise)
    if dry_run:
        found = trainer.preview(source, teacher, settings, chosen, stage)
        print(progress.preview_json(found) if as_json else progress.preview_text(found, settings))
        return
    try:
        with progress.watching("Distilling") as watch:
            result = trainer.distill(
                source, teacher, output, settings, chosen, stage, force, amend, watch, this_command("asdm"), until
            )
    except KeyboardInterrupt:
        if (output / "run.json").exists():
            console.say(f"The run in {output} is saved as far as it got; the same command goes on with it.")
        raise
    if trainer.is_main_process():
        print(result.to_json() if as_json else f"{progress.result_text(result, output)}\n", end="")


@app.command()
def cache(
    data: Annotated[str, typer.Argument(help="emoji, or folder:DIR.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the shards; train with --data latents:DIR.")
    ],
    teacher: Annotated[
        str, typer.Option(help="Family or diffusers folder whose VAE and text encoder are used.")
    ] = "sd15",
    split: Annotated[str, typer.Option(help="Split of a data set that has some.")] = "train",
    weights: Weights = None,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="What is stored: fp16, bf16 or fp32.")] = "fp16",
    seed: Seed = 0,
    size: Size = None,
    per_shard: Annotated[int, typer.Option(help="Examples of a shard.")] = 512,
    as_json: Json = False,
) -> None:
    """Encode a data set once, for many runs; the same command again goes on with an unfinished cache."""
    from asdm.data import cache as caching
    from asdm.models import execution

    if per_shard < 1:
        raise ValueError(f"per-shard {per_shard} is none; choose 1 or more.")
    setup = Setup(weights, device_or_default(device), dtype, seed=seed, size=size)
    execution.check_setup(setup)
    with console.progress("Caching", "pictures") as tell:
        found = caching.cache_latents(data, teacher, output, setup, split, per_shard, tell)
    if as_json:
        print(json.dumps(found.model_dump(mode="json", by_alias=True, exclude={"shards"}), indent=1))
    else:
        lost = f", {found.skipped} could not be read" if found.skipped else ""
        print(f"{found.examples - found.skipped} examples in {len(found.shards)} shards{lost}: --data latents:{output}")


@app.command()
def bench(
    student: Annotated[list[str], typer.Option(help="A student's folder, a plan or a preset; may be repeated.")],
    teacher: Annotated[str, typer.Option(help="Family or diffusers folder.")] = "sd15",
    weights: Weights = None,
    backend: Backend = "eager",
    device: Device = None,
    dtype: Dtype = "fp32",
    threads: Threads = None,
    seed: Seed = 0,
    batch: Batch = 1,
    size: Size = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of one image.")] = 30,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance, above 1 at twice the batch; default: what suits the family."),
    ] = None,
    image: Annotated[
        bool,
        typer.Option("--image", help="Run whole pipelines from prompt to pixels instead of adding up their parts."),
    ] = False,
    image_rounds: Annotated[int, typer.Option(help="Pairs of whole images per two (with --image).")] = 1,
    quality: Annotated[
        bool, typer.Option("--quality", help="Draw pictures with teacher and students, and have them judged.")
    ] = False,
    data: Annotated[str, typer.Option(help="Data set with the real pictures and captions (with --quality).")] = "emoji",
    split: Annotated[str, typer.Option(help="Its split: train, held_out or others.")] = "train",
    pictures: Annotated[int, typer.Option(help="Pictures that each draws (with --quality).")] = 200,
    keep: Annotated[
        int, typer.Option(help="Pictures of each that bench.json keeps, for the report (with --quality).")
    ] = 0,
    judge: Annotated[
        str | None, typer.Option(help="A CLIP's folder or hub id as the judge; default: the one that ships, for emoji.")
    ] = None,
    time_budget: Annotated[float, typer.Option(help="Seconds for each of the two comparisons.")] = 75.0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File or folder; default: a folder of its own under reports/.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure students against their teacher, in pairs: UNet, whole image, MACs, parameters, memory."""
    from asdm.evaluate import benchmark
    from asdm.models.families import load_family

    settings = BenchSettings(
        weights=weights,
        backend=backend,
        device=device_or_default(device),
        dtype=dtype,
        threads=threads,
        seed=seed,
        batch=batch,
        size=size,
        steps=steps,
        guidance_scale=load_family(teacher).guidance_scale if guidance_scale is None else guidance_scale,
        time_budget_s=time_budget,
        run_image=image,
        image_rounds=image_rounds,
        quality=quality,
        data=data,
        split=split,
        pictures=pictures,
        keep=keep,
        judge=judge,
    )
    warn_if_slow(settings.device, settings.dtype, settings.backend)
    path = target(output, files.run_folder(files.short_name(teacher), backend, dtype), "bench.json")
    files.check_writable(path, force)
    sources = [str(files.find_input(Path(name))) for name in student]
    with console.progress("Comparing") as tell:
        result = benchmark.bench(teacher, sources, settings, tell, this_command("asdm"))
    result.save(path, force)
    if as_json:
        print(result.to_json(), end="")
    else:
        console.emit([_bench_row(s, result.teacher.macs) for s in result.students], console.Format.table)
        if quality:
            console.emit([row for s in result.students for row in _quality_rows(s)], console.Format.table)
        _say_teacher(result)
    for one in result.students:
        if one.warning:
            console.say(f"Warning: {one.warning}")
    if warning := benchmark.noise_warning(result, settings):
        console.say(f"Warning: {warning}")
    console.say(f"Wrote {path}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")],
    family: Annotated[str, typer.Option(help="Family or diffusers folder.")] = "mini",
    student: Annotated[
        str | None, typer.Option(help="A student's folder: its UNet draws instead of the family's.")
    ] = None,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = "fp32",
    seed: Seed = 0,
    size: Size = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; default: what suits the family.")
    ] = None,
    force: Force = False,
) -> None:
    """Draw one picture from a prompt, with a family's UNet or a student's."""
    import io

    if output.suffix != ".png":
        raise ValueError(f"{output} is no PNG file; name one that ends in .png.")
    files.check_writable(output, force)
    from asdm.models import pipeline
    from asdm.models.families import load_family

    chosen = load_family(family)
    setup = Setup(weights, device_or_default(device), dtype, seed=seed, size=size)
    guidance = chosen.guidance_scale if guidance_scale is None else guidance_scale
    with console.progress("Generating", "steps") as tell:
        picture = pipeline.generate(chosen, prompt, setup, student, steps, guidance, tell)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    files.write_whole(output, stream.getvalue(), force)
    console.say(f"Wrote {output}")


def _bench_row(student: Any, teacher_macs: int) -> dict[str, Any]:
    from asdm.records.measurement import mac_unit

    macs, unit = mac_unit(teacher_macs)

    def ratio(found: Any) -> str:
        return "" if found is None else f"{found.median:.3f} [{found.low:.3f}, {found.high:.3f}]"

    return {
        "student": student.name,
        "params M": f"{student.params / 1e6:.1f}",
        unit: f"{student.macs / macs:.1f}",
        "UNet ×": ratio(student.unet_latency_ratio),
        "predicted ×": "" if student.predicted_ratio is None else f"{student.predicted_ratio:.3f}",
        "image ×": ratio(student.image_latency_ratio),
    }


def _quality_rows(student: Any) -> list[dict[str, Any]]:
    """One line a metric; the noise floor is the teacher against itself with other seeds."""
    return [
        {
            "student": student.name,
            "quality": name,
            "value": f"{m.value:.4g} [{m.low:.4g}, {m.high:.4g}]",
            "teacher": f"{m.teacher:.4g}",
            "noise floor": f"{m.noise_floor:.4g}",
        }
        for name, m in student.quality.items()
    ]


def _say_teacher(result: Any) -> None:
    from asdm.records.measurement import mac_unit

    teacher = result.teacher
    macs, unit = mac_unit(teacher.macs)
    print(
        f"teacher {teacher.name}: {teacher.params / 1e6:.1f} M parameters, {teacher.macs / macs:.1f} {unit}, "
        f"{teacher.unet_latency_s.median:.3g} s a UNet call; × is student / teacher with its 95 % interval"
    )


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A student's folder, a family, a diffusers folder or a config file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for what is exported.")],
    to: Annotated[str, typer.Option(help="onnx, openvino or diffusers.")] = "onnx",
    weights: Weights = None,
    dtype: Dtype = "fp32",
    seed: Seed = 0,
    size: Size = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a UNet in a form that runs without this package, compared with PyTorch before it is handed over."""
    from asdm.models import export as exporter

    with console.progress("Exporting") as tell:
        result = exporter.export(source, to, output, weights, dtype, size, seed, force, tell)
    if as_json:
        print(result.to_json(), end="")
    else:
        print(exporter.describe(result, output))


def main() -> None:
    """Entry point of `asdm`."""
    console.run(app)
