"""`python -m benchmarks.levers`: each lever on some steps, then all that help on whole images, within a time budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from asdm.measure import machine
from asdm.measure.statistics import estimate
from asdm.models import loading
from asdm.models.drawing import scheduler_by_name
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.models.sources import resolve
from asdm.records.levers import Lever, Levers, LeversResult
from asdm.schedule import presets
from asdm.schedule.graphs.passes import RUNTIMES
from asdm.schedule.schedule import TEACHER
from asdm.schedule.unet import use
from asdm.utils import console, io, sizes
from benchmarks import script
from benchmarks.levers.measure import Bench

LEVER_STEPS = 15  # plain steps that a lever takes about, with what it exports and opens
KEPT, DECODER = "freed memory kept", "decoder"


def main(
    family: script.FamilyName = "sd15",
    weights: Annotated[
        str | None, typer.Option(help="Folder, checkpoint or random; default: the family's, or random.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="A student's folder, a plan or a preset.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="A schedule file or preset, of the student if there is one.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A lever to leave out; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps of an image.")] = 30,
    size: Annotated[str | None, typer.Option(help="Pixels per side, or WIDTHxHEIGHT.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the family's.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Sampler; default: the weights' own.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of steps for each lever.")] = 2,
    images: Annotated[int, typer.Option(min=1, help="Whole plain images, each between two fast ones.")] = 1,
    max_error: Annotated[
        float, typer.Option(help="Of a runtime or of 8 bits in the product: RMS of a step's output to eager's.")
    ] = 0.02,
    time_budget: Annotated[float, typer.Option(help="Seconds; levers that do not fit are left out.")] = 1500.0,
    threads: script.Threads = None,
    output: script.JsonFile = Path("reports/sd15/levers.json"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Measure what makes an image faster on this machine, one lever at a time and all together."""
    io.check_writable(output, force)
    own_size = sizes.parse(size) if size else None
    setup = Setup(weights=weights, threads=threads, size=own_size)
    loaded, used_weights = resolve(family, setup)
    setup = Setup(weights=used_weights, threads=threads, size=own_size)
    scale = loaded.guidance_scale if guidance_scale is None else guidance_scale
    with machine.quiet_torch(threads) as used, console.progress("Measuring", "levers") as tell:
        pipe = pipeline(loaded, loading.load_teacher(loaded, setup), setup)
        if scheduler:
            pipe.scheduler = scheduler_by_name(pipe, scheduler)
        bench = Bench(pipe, loaded, setup, steps, scale, pairs, time_budget, tell)
        if schedule:  # before minutes of measuring
            bench.networks(Levers(student=student, schedule=schedule))
        levers, left_out = _measure_levers(bench, student, schedule, skip or [])
        levers, chosen = choose(levers, max_error)
        decoder = None
        if DECODER in (skip or []):
            left_out[DECODER] = "as asked"
        elif chosen.runtime in RUNTIMES:
            lever, graph = bench.decoder(chosen)
            gains = lever.factor.median > 1 and (lever.error or 0.0) <= max_error
            levers.append(lever.model_copy(update={"in_product": gains}))
            decoder = graph if gains else None
            chosen = chosen.model_copy(update={"decoder": gains})
        together = _together(bench, chosen, decoder, images)
    result = LeversResult(
        **script.run_fields("levers", loaded.name, used),
        weights=loading.weights_name(loaded, used_weights), size=own_size or loaded.size, steps=steps,
        sampler=type(pipe.scheduler).__name__, guidance_scale=scale, plain_step_s=bench.step_s,
        around_s=bench.around_s, levers=tuple(levers), max_error=max_error, chosen=chosen, left_out=left_out,
        **together,
    )  # fmt: skip
    script.finish(result, output, force, _rows(result), _summary(result))


def candidates(student: str | None, schedule: str | None) -> Iterator[tuple[str, Levers]]:
    """Levers by name, those that are most likely in the product first."""
    if student:
        yield "student", Levers(student=student)
    if schedule:  # a file for a student is run on it, so that its factor is of both
        yield "schedule", Levers(student=None if presets.is_preset(schedule) else student, schedule=schedule)
    yield "openvino bf16", Levers(runtime="openvino", precision="bf16")
    yield "openvino fp32", Levers(runtime="openvino")
    yield "openvino 8 bits", Levers(runtime="openvino", precision="bf16", eight_bits=True)
    yield KEPT, Levers(keep_memory=True)
    yield "onnxruntime", Levers(runtime="onnxruntime")
    yield "onnxruntime 8 bits", Levers(runtime="onnxruntime", eight_bits=True)
    yield "compiled", Levers(runtime="compiled")


def _measure_levers(
    bench: Bench, student: str | None, schedule: str | None, skip: list[str]
) -> tuple[list[Lever], dict[str, str]]:
    """Every lever that can be moved here within the budget, and why others were not."""
    levers, left_out = list[Lever](), dict[str, str]()
    known = [name for name, _ in candidates("", "")] + ["student", "schedule", DECODER]
    if unknown := [name for name in skip if name not in known]:
        raise ValueError(f"unknown lever {unknown[0]!r}; choose from {', '.join(known)}.")
    product_s = 2 * (bench.around_s + bench.calls * bench.step_s)
    for name, own in candidates(student, schedule):
        if name in skip:
            left_out[name] = "as asked"
        elif bench.left_s() < product_s + LEVER_STEPS * bench.step_s:
            left_out[name] = "no time left within the budget"
        else:
            try:
                levers.append(bench.lever(name, own))
            except Exception as error:  # a runtime or a quantiser may fail in any way
                left_out[name] = f"{type(error).__name__}: {console.first_line(error)}"
    return levers, left_out


def choose(levers: list[Lever], max_error: float) -> tuple[list[Lever], Levers]:
    """The levers that go into the product: those that gain, and the fastest runtime that is exact enough.

    What a student or a schedule changes is not judged here: who names it has measured its quality.
    """
    gaining = [one for one in levers if one.factor.median > 1]
    runtimes = [one for one in gaining if one.levers.runtime != "eager" and (one.error or 0.0) <= max_error]
    fastest = max(runtimes, key=lambda one: one.factor.median, default=None)
    picked = [one for one in gaining if one.levers.runtime == "eager"] + ([fastest] if fastest else [])
    moved: dict[str, Any] = {}
    for one in picked:
        moved |= one.levers.model_dump(exclude_defaults=True)
    names = {one.name for one in picked}
    return [one.model_copy(update={"in_product": one.name in names}) for one in levers], Levers(**moved)


def _together(bench: Bench, chosen: Levers, decoder: nn.Module | None, images: int) -> dict[str, Any]:
    """Whole images fast, plain, fast, …; and the schedule's own factor in the runtime of the product."""
    bench.say("opening all together")
    networks, schedule = bench.networks(chosen)
    fields: dict[str, Any] = {}
    unet = bench.open(chosen, networks, schedule)
    bench.passes(unet)
    if chosen.schedule:
        whole = bench.open(chosen, {TEACHER: networks[TEACHER]}, bench.plain)
        bench.passes(whole)
        both = [(bench.passes(whole)[0], bench.passes(unet)[0]) for _ in range(bench.pairs)]
        plain, moved = [a for a, _ in both], [b for _, b in both]
        fields["schedule_in_product"] = bench.factor(plain, bench.plain, moved, schedule)
        del whole
    plain_s, fast_s, own = list[float](), list[float](), bench.pipe.vae.decoder
    for n in range(2 * images + 1):
        bench.say(f"whole image {n + 1} of {2 * images + 1}")
        if n % 2:
            use(bench.pipe, bench.unet)
            bench.pipe.vae.decoder = own
            plain_s.append(bench.image())
        else:
            use(bench.pipe, unet)
            bench.pipe.vae.decoder = decoder or own
            machine.keep_freed_memory(chosen.keep_memory)
            fast_s.append(bench.image())
            machine.keep_freed_memory(False)
    ratios = [plain / near for n, plain in enumerate(plain_s) for near in fast_s[n : n + 2]]
    return fields | {"product": estimate(ratios), "plain_image_s": tuple(plain_s), "fast_image_s": tuple(fast_s)}


def _rows(result: LeversResult) -> list[dict[str, Any]]:
    rows = [
        {
            "lever": one.name,
            "factor": f"{one.factor.median:.2f} [{one.factor.low:.2f}, {one.factor.high:.2f}]",
            "error": "" if one.error is None else f"{one.error:.2g}",
            "in the product": "yes" if one.in_product else "",
        }
        for one in result.levers
    ]
    return rows + [
        {"lever": name, "factor": why, "error": "", "in the product": ""} for name, why in result.left_out.items()
    ]


def _summary(result: LeversResult) -> str:
    if result.product is None:
        return ""
    own = result.schedule_in_product
    alone = f", of which the schedule {own.median:.2f}" if own else ""
    return f"All together {result.product.median:.2f}{alone}. "


if __name__ == "__main__":
    script.run(main)
