"""Teacher against students, interleaved in one process: latency ratios with intervals, MACs, memory (DESIGN §5).

A student is a folder, a plan or a preset; the latter two are built in memory from the teacher's weights, grafted
blocks from those of the stage-1 student that the plan names. All run in the same backend. The whole image is composed
of the measured parts, of which text encoders and VAE decoder run in eager PyTorch whatever runs the UNet; or with
`run_image` the real pipeline is run from prompt to pixels. With `quality` teacher and students draw the same captions
from the same seeds, and a judge looks at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from asdm.data.datasets import Example
from asdm.evaluate import quality
from asdm.evaluate.settings import BenchSettings
from asdm.measure import backends, clocks, machine, repeats, statistics
from asdm.measure.clocks import Clock
from asdm.measure.statistics import estimate, latency, paired_ratio
from asdm.models import build, example_inputs, execution, graft, loading, networks
from asdm.models import student as students
from asdm.models.components import components_of, time_calls
from asdm.models.families import Family, load_family
from asdm.models.pipeline import pipeline
from asdm.plan import presets
from asdm.plan.legality import ResolvedPlan
from asdm.records.bench import BenchResult, BenchStudent, BenchTeacher, Drawing, ImageParts, Metric, Pipeline
from asdm.records.build import BuildResult
from asdm.records.measurement import Estimate
from asdm.unet import flops, surgery
from asdm.utils import registry
from asdm.utils.io import utc_now
from asdm.utils.progress import Tell

PROMPT = "a photograph of an astronaut riding a horse"
MOST_KEPT = 16


@dataclass
class Contestant:
    """A UNet in the race: as shapes for counting, and with weights for timing."""

    name: str
    source: str
    shapes: nn.Module
    unet: nn.Module
    resolved: ResolvedPlan | None = None
    removed: tuple[str, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return Path(self.source).is_dir()


def bench(
    teacher: str,
    sources: Sequence[str],
    settings: BenchSettings = BenchSettings(),
    tell: Tell = lambda *_: None,
    command: str = "",
) -> BenchResult:
    """Measure students against their teacher.

    Raises ValueError for an unknown family or student, a student of another teacher, or too little memory.
    """
    family = load_family(teacher)
    execution.check_setup(settings)
    if settings.guidance_scale is None:
        settings = replace(settings, guidance_scale=family.guidance_scale)
    _check(sources, settings)
    backend = backends.load(settings.backend, settings.dtype, settings.device)
    clock = clocks.clock_for(settings.device)
    weights = settings.weights or loading.default_weights(family)

    # Everything that can be wrong is found on the meta device, before gigabytes are loaded.
    shapes = loading.meta_unet(family, settings.dtype)
    drafts = distinct([_draft(source, shapes, family, settings) for source in sources])
    judging = _judging(settings) if settings.quality else None
    _require_memory(shapes, family, drafts, settings, backend)

    tell("loading", 0, None)
    unet, racers = shapes, drafts
    if backend.NEEDS_WEIGHTS:
        unet = loading.load_unet(family, weights, settings.device, settings.dtype, settings.seed)
        racers = [replace(draft, unet=_with_weights(draft, unet, settings)) for draft in drafts]
    first = Contestant(family.name, weights, shapes, unet)
    everyone = [first, *racers]

    with machine.quiet_torch(settings.threads) as threads:
        race = partial(_race, backend, everyone, family, settings, clock, tell)
        single = race(settings.batch, settings.min_rounds, "UNet")
        batch = settings.batch * (2 if settings.guided else 1)
        step = single
        if settings.guided:
            step = race(batch, settings.guided_rounds, "guided step", warm_ups=1)  # only the batch is new
        parts = _components(family, settings, clock, tell) if backend.NEEDS_WEIGHTS else {}
        images = _images(everyone, family, settings, clock, tell) if settings.run_image else None
        judged, drawings = (
            _judged(judging, everyone, family, settings, tell) if judging else ([{} for _ in everyone], ())
        )
        facts = machine.environment(settings.device, threads)

    composed = [_compose(step, i, parts, settings) for i in range(len(everyone))] if parts else None
    return BenchResult(
        created_utc=utc_now(),
        command=command,
        family=family.name,
        weights=loading.weights_name(family, weights),
        backend=settings.backend,
        dtype=settings.dtype,
        device=settings.device,
        threads=threads,
        seed=settings.seed,
        batch=settings.batch,
        size=settings.size or family.size,
        teacher_config_sha256=loading.unet_config_sha256(first.shapes.config),
        pipeline=Pipeline(steps=settings.steps, guidance_scale=settings.guidance_scale, composed=images is None)
        if parts or images
        else None,
        teacher=_teacher_record(first, family, settings, single[0], step[0], parts, images or composed),
        students=tuple(
            _student_record(
                racer, i, family, settings, single, step if settings.guided else None, images or composed, threads
            ).model_copy(update={"quality": judged[i]})
            for i, racer in enumerate(racers, 1)
        ),
        drawings=drawings,
        environment=facts,
    )


def _check(sources: Sequence[str], settings: BenchSettings) -> None:
    if not sources:
        raise ValueError(f"name at least one student: a folder, a plan or a preset ({', '.join(presets.PRESETS)}).")
    if settings.run_image and settings.backend != "eager":
        raise ValueError(
            f"whole pipelines run in eager PyTorch; leave --image out with the backend {settings.backend}."
        )
    if settings.quality and not backends.load(settings.backend, settings.dtype, settings.device).NEEDS_WEIGHTS:
        raise ValueError(f"the backend {settings.backend} computes nothing; leave --quality out.")
    if settings.keep and not settings.quality:
        raise ValueError(f"keeping pictures ({settings.keep}) needs --quality, which draws them.")
    if not 0 <= settings.keep <= min(settings.pictures, MOST_KEPT):
        raise ValueError(f"{settings.keep} pictures cannot be kept; choose 0 to {min(settings.pictures, MOST_KEPT)}.")


# ---------------------------------------------------------------------------------------------- contestants


def _require_memory(
    shapes: nn.Module, family: Family, drafts: Sequence[Contestant], settings: BenchSettings, backend: Any
) -> None:
    """Teacher, one activation peak at the guided batch, what comes from disk beside it, and what sessions copy."""
    if not backend.NEEDS_WEIGHTS:
        return
    batch = settings.batch * (2 if settings.guided else 1)
    inputs = example_inputs.unet_inputs(family, batch, settings.size, "meta", settings.dtype)
    counted = flops.count(shapes, (), inputs)
    from_disk = sum(
        draft.is_folder or bool(draft.resolved and graft.stage1_of(draft.resolved.plan)) for draft in drafts
    )
    session = backends.session_bytes(backend, counted.parameter_bytes, counted.peak_memory_bytes)
    torchs = counted.peak_memory_bytes + from_disk * counted.parameter_bytes
    need = int(1.1 * torchs + (1 + len(drafts)) * session) + machine.SPARE_BYTES
    many = f" with {len(drafts)} students at a time" if session and len(drafts) > 1 else ""
    machine.require_memory(need, settings.device, f"comparing {family.name} in {settings.dtype}{many}")


def _draft(source: str, teacher: nn.Module, family: Family, settings: BenchSettings) -> Contestant:
    """A student as shapes alone: what can be wrong with it is found here."""
    if Path(source).is_dir():
        return _draft_of_folder(Path(source), source, teacher, family, settings)
    resolved = students.read_plan(source, teacher, family.name)
    shapes, applied = _made(resolved, teacher, lambda stage1: loading.meta_unet(stage1, settings.dtype))
    return Contestant(resolved.plan.name, source, shapes, shapes, resolved, applied.removed, applied.replaced)


def distinct(drafts: Sequence[Contestant]) -> list[Contestant]:
    """Folders of one name, such as `a/seed-1` and `b/seed-1`, are told apart by as much of their path as it takes."""
    named = list(drafts)
    for parts in range(2, 1 + max(len(Path(draft.source).parts) for draft in drafts)):
        counts = Counter(draft.name for draft in named)
        named = [
            replace(one, name="/".join(Path(one.source).parts[-parts:]))
            if one.is_folder and counts[one.name] > 1
            else one
            for one in named
        ]
    return named


def _draft_of_folder(
    folder: Path, source: str, teacher: nn.Module, family: Family, settings: BenchSettings
) -> Contestant:
    """The plan in a student's folder is checked against the teacher; a folder of somebody else's has none."""
    shapes = loading.meta_unet(load_family(source), settings.dtype)
    path = folder / "plan.json"
    resolved = students.read_plan(str(path), teacher, family.name) if path.exists() else None
    built = BuildResult.load(folder / "build.json") if (folder / "build.json").exists() else None
    removed, replaced = (built.removed, built.replaced) if built else ((), {})
    return Contestant(folder.resolve().name, source, shapes, shapes, resolved, removed, replaced)


def _with_weights(draft: Contestant, teacher: nn.Module, settings: BenchSettings) -> nn.Module:
    """The UNet of a draft; what a plan leaves of the teacher shares his memory."""

    def load(folder: Family) -> nn.Module:
        return loading.load_unet(folder, str(folder.folder), settings.device, settings.dtype)

    if draft.is_folder:
        return load(load_family(draft.source))
    assert draft.resolved is not None, "only a folder has no plan"
    return _made(draft.resolved, teacher, load)[0]


def _made(
    resolved: ResolvedPlan, teacher: nn.Module, load: Callable[[Family], nn.Module]
) -> tuple[nn.Module, surgery.Applied]:
    """A plan's student; `load` gives the stage-1 student that its grafts come from."""
    if not resolved.grafted:
        return students.build(teacher, resolved)
    source = graft.stage1_of(resolved.plan)
    if source is None:
        raise ValueError(
            f"the plan {resolved.plan.name} grafts blocks and names no stage-1 student; give its graft_block edits a "
            "source, or build it (asdm build --stage1) and name its folder."
        )
    stage1 = graft.stage1_family(source)
    return graft.assemble(teacher, load(stage1), resolved, graft.edits_in(stage1))


# ---------------------------------------------------------------------------------------------- the race


def _race(
    backend: Any,
    everyone: Sequence[Contestant],
    family: Family,
    settings: BenchSettings,
    clock: Clock,
    tell: Tell,
    batch: int,
    rounds: int,
    what: str,
    warm_ups: int = 2,
) -> list[list[float]]:
    """Seconds of every contestant, in turns there and back, so that drift falls on all alike."""
    inputs = example_inputs.unet_inputs(family, batch, settings.size, settings.device, settings.dtype, settings.seed)
    calls: dict[str, Callable[[], float]] = {}
    for i, racer in enumerate(everyone):
        tell(f"opening, {what} at batch {batch}", i, None)
        calls[str(i)] = backend.open_session(racer.unet, inputs, (), clock).run
    for i, call in enumerate(calls.values()):
        tell(f"warming up, {what} at batch {batch}", i, None)
        repeats.warm_up(call, at_least=warm_ups, budget_s=settings.time_budget_s / 20)
    order = list(calls)
    samples = repeats.interleave(
        calls,
        (*order, *reversed(order)),
        clocks.HostClock(),
        rounds,
        budget_s=settings.time_budget_s,
        enough=lambda s: all(_half_width(paired_ratio(s[i], s["0"])) <= settings.target for i in order[1:]),
        progress=lambda n, eta: tell(f"{what} at batch {batch}", n, eta),
    )
    return [samples[name] for name in order]


def _half_width(ratio: Estimate) -> float:
    return (ratio.high - ratio.low) / 2


def noise_warning(result: BenchResult, settings: BenchSettings) -> str | None:
    """One sentence where the time budget ended with an interval wider than the target; None where none is."""
    ratios = [
        (f"{what} of {student.name}", ratio)
        for student in result.students
        for what, ratio in (("UNet", student.unet_latency_ratio), ("guided step", student.guided_latency_ratio))
        if ratio is not None
    ]
    what, widest = max(ratios, key=lambda named: _half_width(named[1]))
    if _half_width(widest) <= settings.target:
        return None
    return (
        f"this machine is too noisy for the time budget of {settings.time_budget_s:g} s: the latency ratio of the "
        f"{what} is known to ±{_half_width(widest):.3f}, and the target is ±{settings.target:g}; close other programs "
        "or raise --time-budget."
    )


# ---------------------------------------------------------------------------------------------- the whole image


def _components(
    family: Family, settings: BenchSettings, clock: Clock, tell: Tell
) -> dict[str, tuple[int, list[float]]]:
    """Seconds of the text encoders and the VAE decoder, and how often an image calls them."""
    times = {}
    for component in components_of(family, settings.size, settings.guided):
        tell(f"timing the {component.name}", 0, None)
        taken = time_calls(component, settings.device, settings.dtype, settings.seed, clock)
        times[component.name] = (component.calls, taken)
    return times


def _compose(
    step: list[list[float]], i: int, parts: dict[str, tuple[int, list[float]]], settings: BenchSettings
) -> Image:
    """Text encoding + steps · UNet + decoding, with everything resampled together for the interval."""

    def whole(draw: Callable[[list[float]], Any], j: int) -> Any:
        return settings.steps * draw(step[j]) + sum(calls * draw(times) for calls, times in parts.values())

    def median(times: list[float]) -> float:
        return float(np.median(times))

    def draws(times: list[float]) -> np.ndarray:  # one seed: the same rounds are drawn for teacher and student
        return statistics.bootstrap(np.asarray(times))

    ours, theirs = whole(draws, i), whole(draws, 0)
    return Image(_interval(whole(median, i), ours), _interval(whole(median, i) / whole(median, 0), ours / theirs))


@dataclass(frozen=True)
class Image:
    """Seconds of one image, and their ratio to the teacher's."""

    latency_s: Estimate
    ratio: Estimate


def _interval(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(median=value, low=float(low), high=float(high))


def _images(
    everyone: Sequence[Contestant], family: Family, settings: BenchSettings, clock: Clock, tell: Tell
) -> list[Image]:
    """The real pipeline from prompt to pixels, teacher and students in turns."""
    made = pipeline(family, everyone[0].unet, settings)

    def run(unet: nn.Module) -> float:
        made.register_modules(unet=unet)
        return clocks.timed(
            lambda: made(
                PROMPT,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                height=settings.size or family.size,
                width=settings.size or family.size,
                output_type="np",
            ),
            clock,
        )

    calls = {str(i): (lambda u=racer.unet: run(u)) for i, racer in enumerate(everyone)}
    order = list(calls)
    samples = repeats.interleave(
        calls,
        (*order, *reversed(order)),
        clocks.HostClock(),
        min_rounds=settings.image_rounds,
        max_rounds=settings.image_rounds,
        progress=lambda n, eta: tell("whole image", n, eta),
    )
    return [Image(estimate(samples[i]), paired_ratio(samples[i], samples["0"])) for i in order]


# ---------------------------------------------------------------------------------------------- quality


def _judging(settings: BenchSettings) -> quality.Judgement:
    data = registry.load("asdm.data.datasets", settings.data).open_data(settings.split)
    return judgement(data, f"{settings.data} has {len(data)} in its split {settings.split}", settings)


def judgement(data: Sequence[Example], has: str, settings: BenchSettings) -> quality.Judgement:
    """The judge, and the real pictures and captions that he compares with: some of the data, the same ones each time.

    Raises ValueError, saying what the data `has`, where that is too few.
    """
    if not 2 <= settings.pictures <= len(data):
        raise ValueError(f"{settings.pictures} pictures cannot be compared: {has}, and two is the least.")
    picks = np.random.default_rng(0).permutation(len(data))[: settings.pictures]
    judge = networks.ClipJudge(settings.judge) if settings.judge else networks.Judge.load()
    pool = sorted({example.caption for example in data})
    return quality.Judgement(judge, networks.Vgg.load(), [data[int(i)] for i in picks], pool)


def _judged(
    judging: quality.Judgement, everyone: Sequence[Contestant], family: Family, settings: BenchSettings, tell: Tell
) -> tuple[list[dict[str, Metric]], tuple[Drawing, ...]]:
    """What the judge says of every contestant, and the pictures to keep.

    The teacher draws twice, since two seeds of his are the noise floor.
    """
    made = pipeline(family, everyone[0].unet, settings)
    captions = [example.caption for example in judging.real]
    guidance_scale = settings.guidance_scale
    assert guidance_scale is not None, "bench() fills it in"

    def draw(racer: Contestant, seed: int) -> quality.Drawn:
        made.register_modules(unet=racer.unet)
        done = partial(tell, f"{racer.name} draws from seed {seed}")
        return quality.draw(made, captions, seed, settings.steps, guidance_scale, done, size=settings.size)

    teacher, again = draw(everyone[0], settings.seed), draw(everyone[0], settings.seed + len(captions))
    drawn = [teacher, *(draw(racer, settings.seed) for racer in everyone[1:])]
    tell("judging", 0, None)
    kept = tuple(_drawing(judging, drawn, i, settings.seed) for i in range(settings.keep))
    return judging.of(drawn, again), kept


def _drawing(judging: quality.Judgement, drawn: Sequence[quality.Drawn], i: int, first_seed: int) -> Drawing:
    teacher, *others = (quality.thumbnail(pictures.images[i]) for pictures in drawn)
    real = judging.real[i]
    return Drawing(
        caption=real.caption,
        seed=first_seed + i,
        real=quality.thumbnail(real.image),
        teacher=teacher,
        students=tuple(others),
    )


# ---------------------------------------------------------------------------------------------- records


def _teacher_record(
    racer: Contestant,
    family: Family,
    settings: BenchSettings,
    seconds: list[float],
    step: list[float],
    parts: dict[str, tuple[int, list[float]]],
    images: list[Image] | None,
) -> BenchTeacher:
    counted = build.count(family, racer.shapes, settings.dtype, settings.batch, settings.size)
    texts = [times for name, (_, times) in parts.items() if name.startswith("text_encoder")]
    return BenchTeacher(
        name=racer.name,
        params=counted.params,
        macs=counted.total.macs,
        peak_memory_bytes=counted.peak_memory_bytes,
        unet_latency_s=latency(seconds),
        image_latency_s=images[0].latency_s if images else None,
        image_parts=ImageParts(
            text_encoder_s=latency([sum(times) for times in zip(*texts, strict=False)]),
            unet_step_s=latency(step),
            vae_decoder_s=latency(parts["vae_decoder"][1]),
        )
        if texts and "vae_decoder" in parts
        else None,
    )


def _student_record(
    racer: Contestant,
    i: int,
    family: Family,
    settings: BenchSettings,
    single: list[list[float]],
    guided: list[list[float]] | None,
    images: list[Image] | None,
    threads: int,
) -> BenchStudent:
    counted = build.count(family, racer.shapes, settings.dtype, settings.batch, settings.size)
    predicted = racer.resolved.plan.predicted if racer.resolved else None
    used: dict[str, str | int] = {
        "backend": settings.backend, "dtype": settings.dtype, "device": settings.device, "threads": threads,
        "batch": settings.batch, "size": settings.size or family.size,
    }  # fmt: skip
    return BenchStudent(
        name=racer.name,
        source=racer.source,
        params=counted.params,
        macs=counted.total.macs,
        peak_memory_bytes=counted.peak_memory_bytes,
        removed=racer.removed,
        replaced=racer.replaced,
        plan_sha256=racer.resolved.plan.sha256() if racer.resolved else None,
        unet_latency_s=latency(single[i]),
        paired_teacher_latency_s=latency(single[0]),
        unet_latency_ratio=paired_ratio(single[i], single[0]),
        guided_latency_ratio=paired_ratio(guided[i], guided[0]) if guided else None,
        predicted_ratio=predicted.ratio if predicted else None,
        predicted_low=predicted.low if predicted else None,
        predicted_high=predicted.high if predicted else None,
        image_latency_s=images[i].latency_s if images else None,
        image_latency_ratio=images[i].ratio if images else None,
        warning=racer.resolved.plan.not_measured_at(**used) if racer.resolved else None,
    )
