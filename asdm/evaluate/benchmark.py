"""Teacher against students in pairs: latency, MACs, memory and quality (docs/methods/measurement.md).

A student is a folder, a plan or a preset; the latter two are built in memory from the teacher's weights, grafted
blocks from those of the stage-1 student that the plan names. All run in the same backend, except that text encoders
and VAE decoder always run in eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from asdm.evaluate.compared import ComparedUNet, load_weights, with_distinct_names, without_weights
from asdm.evaluate.image_latency import compose_image, run_images, time_components
from asdm.evaluate.judging import judge_all, open_judgement
from asdm.evaluate.latency import compare_latency
from asdm.evaluate.memory import require_memory
from asdm.evaluate.results import student_record, teacher_record
from asdm.evaluate.settings import BenchSettings
from asdm.measure import backends, clocks, machine
from asdm.models import execution, loading
from asdm.models.families import load_family
from asdm.plan import presets
from asdm.records.bench import BenchResult, Pipeline
from asdm.utils.io import utc_now
from asdm.utils.progress import Tell

MOST_KEPT = 16


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

    # Bad input is found on the meta device, before gigabytes are loaded.
    shapes = loading.meta_unet(family, settings.dtype)
    drafts = with_distinct_names([without_weights(source, shapes, family, settings) for source in sources])
    judging = open_judgement(settings) if settings.quality else None
    require_memory(shapes, family, drafts, settings, backend)

    tell("loading", 0, None)
    unet, students = shapes, drafts
    if backend.NEEDS_WEIGHTS:
        unet = loading.load_unet(family, weights, settings.device, settings.dtype, settings.seed)
        students = [replace(one, unet=load_weights(one, unet, settings)) for one in drafts]
    first = ComparedUNet(family.name, weights, shapes, unet)
    everyone = [first, *students]

    with machine.quiet_torch(settings.threads) as threads:
        compare = partial(compare_latency, backend, everyone, family, settings, clock, tell)
        single = compare(settings.batch, settings.min_rounds, "UNet")
        batch = settings.batch * (2 if settings.guided else 1)
        step = single
        if settings.guided:
            step = compare(batch, settings.guided_rounds, "guided step", warm_ups=1)  # only the batch is new
        parts = time_components(family, settings, clock, tell) if backend.NEEDS_WEIGHTS else {}
        images = run_images(everyone, family, settings, clock, tell) if settings.run_image else None
        judged, drawings = (
            judge_all(judging, everyone, family, settings, tell) if judging else ([{} for _ in everyone], ())
        )
        facts = machine.environment(settings.device, threads)

    composed = [compose_image(step, i, parts, settings) for i in range(len(everyone))] if parts else None
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
        teacher=teacher_record(first, family, settings, single[0], step[0], parts, images or composed),
        students=tuple(
            student_record(
                student, i, family, settings, single, step if settings.guided else None, images or composed, threads
            ).model_copy(update={"quality": judged[i]})
            for i, student in enumerate(students, 1)
        ),
        drawings=drawings,
        environment=facts,
    )


def _check(sources: Sequence[str], settings: BenchSettings) -> None:
    if not sources:
        raise ValueError(f"name at least one student: a folder, a plan or a preset ({', '.join(presets.PRESETS)}).")
    if settings.run_image and settings.backend != "eager":
        raise ValueError(
            f"--image runs whole pipelines in eager PyTorch; leave it out with the backend {settings.backend}."
        )
    if settings.quality and not backends.load(settings.backend, settings.dtype, settings.device).NEEDS_WEIGHTS:
        raise ValueError(f"the backend {settings.backend} computes no images; leave --quality out.")
    if settings.keep and not settings.quality:
        raise ValueError(f"--keep {settings.keep} needs --quality, which generates the pictures.")
    if not 0 <= settings.keep <= min(settings.pictures, MOST_KEPT):
        raise ValueError(f"keep must be between 0 and {min(settings.pictures, MOST_KEPT)}, got {settings.keep}.")
