"""A report on SD1.5 whose MACs are real and whose times are made up: time = MACs at a fixed rate, with seeded noise.

For tests of ranking, planning and rendering, which need a profile and not a measurement.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch

from asdm import flops, models, quality, units
from asdm.families import Family, load_family
from asdm.measure import estimate, latency
from asdm.plan import AnyEdit, PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.results import (
    BenchResult,
    BenchStudent,
    BenchTeacher,
    Drawing,
    Estimate,
    ImageParts,
    Macs,
    Metric,
    Pipeline,
)
from asdm_prof import roofline, transfer, validate
from asdm_prof.records import (
    Comparison,
    ComponentRecord,
    OptionRecord,
    PartRecord,
    Peaks,
    Profile,
    TrustLine,
    ValidatedPlan,
    Validation,
    WholeRecord,
)
from asdm_prof.redundancy import rank
from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.renderers._drawn import (
    Additivity,
    Amount,
    DamageFile,
    EditDamage,
    FrontierFile,
    FrontierPoint,
    TrainingLog,
)

RUNS = 12
SECONDS_PER_MAC = 1e-11
ENVIRONMENT = {"cpu": "made-up CPU", "cores": "2", "torch": "0.0", "diffusers": "0.0", "load_1min": "0.00"}


def times(macs: int, rng: np.random.Generator, noise: float = 0.02) -> list[float]:
    return [float(t) for t in (macs + 2e8) * SECONDS_PER_MAC * (1 + noise * rng.standard_normal(RUNS))]


def columns(macs: Macs) -> dict[str, int]:
    return macs.model_dump(include={"conv_macs", "linear_macs", "attention_macs"})


@cache
def profile(family_name: str = "sd15", seed: int = 0) -> Profile:
    return profile_of(load_family(family_name), seed)


def profile_of(family: Family, seed: int = 0) -> Profile:
    rng = np.random.default_rng(seed)
    unet = models.meta_unet(family)
    parts = list(units.iter_parts(unet))
    counted = flops.count(unet, (), models.unet_inputs(family, device="meta"), parts)
    samples = {part.fqn: times(counted.by_part[part.fqn].macs, rng) for part in parts}
    samples["other"] = times(0, rng)
    whole = np.sum(list(samples.values()), axis=0)

    def record(fqn: str, label: str, kind: str, block: str, layer: int | None, params: int) -> PartRecord:
        return PartRecord(
            fqn=fqn,
            label=label,
            kind=kind,
            block=block,
            layer=layer,
            params=params,
            peak_memory_bytes=counted.peak_by_part.get(fqn, 0),
            latency_s=latency(samples[fqn]),
            share=estimate(np.asarray(samples[fqn]) / whole),
            **columns(counted.by_part[fqn]),
        )

    records = [record(p.fqn, p.label, p.kind, p.block, p.layer, p.params) for p in parts]
    records.append(record("other", "other", "glue", "", None, 0))
    return Profile(
        created_utc="2026-01-01T00:00:00Z",
        command=f"asdm-prof profile {family.name}",
        family=family.name,
        title=family.title,
        weights="random",
        config_sha256=models.unet_config_sha256(unet.config),
        backend="fake",
        dtype="fp32",
        device="cpu",
        threads=2,
        seed=seed,
        batch=1,
        size=family.size,
        latent=family.latent,
        topology=units.topology(unet),
        whole=WholeRecord(
            params=counted.params,
            peak_memory_bytes=counted.peak_memory_bytes,
            thop_macs=counted.thop_macs,
            latency_s=latency(list(whole)),
            hooked_latency_s=latency(list(whole)),
            **columns(counted.total),
        ),
        units=tuple(r for r in records if r.kind != "glue"),
        glue=tuple(r for r in records if r.kind == "glue"),
        options=tuple(_options(records, whole, rng)),
        components=(
            ComponentRecord(
                name="text_encoder", params=123060480, linear_macs=6539968512, attention_macs=109283328,
                calls_per_image=2, latency_s=latency(times(6649251840, rng)),
            ),
            ComponentRecord(
                name="vae_decoder", params=49490179, conv_macs=1235784531968, linear_macs=4295000064,
                attention_macs=17179869184, calls_per_image=1, latency_s=latency(times(1257259401216, rng)),
            ),
        ),
        trust=(
            TrustLine(check="FLOPs agree with fvcore", value="24 of 24 columns equal", passed=True),
            TrustLine(check="units + glue = whole", value="unattributed 0.05 %", passed=True),
            TrustLine(
                check="noise", value="spread 7.1 %", passed=False, remedy="close other programs and run again."
            ),
        ),
        environment=ENVIRONMENT,
    )  # fmt: skip


def _options(records: list[PartRecord], whole: np.ndarray, rng: np.random.Generator) -> list[OptionRecord]:
    """GRI on every transformer of the first level: a quarter of the attention."""
    options = []
    for unit in records:
        if unit.kind != "transformer" or unit.block not in ("down_blocks.0", "up_blocks.3"):
            continue
        after = Macs(
            conv_macs=unit.conv_macs,
            linear_macs=unit.linear_macs - 3 * 4096 * 320 * 80,
            attention_macs=unit.attention_macs // 4,
        )
        samples = times(after.macs, rng)
        options.append(
            OptionRecord(
                unit=unit.fqn,
                replacement="gri_attention",
                params=unit.params,
                latency_s=latency(samples),
                share=estimate(np.asarray(samples) / whole),
                **columns(after),
            )
        )
    return options


def plan() -> PruningPlan:
    source = profile()
    return PruningPlan(
        family="sd15",
        teacher_config_sha256=source.config_sha256,
        edits=tuple(ReplaceUnit(unit=option.unit, with_=option.replacement) for option in source.options[:3]),
        budget="0.9",
        budget_ratio=0.9,
        confidence=0.95,
        damage_from="structural prior",
        profile_sha256=source.sha256(),
    )


def bench(predicted: float | None = 0.78) -> BenchResult:
    rng = np.random.default_rng(1)
    teacher_times, student_times = times(401636720640, rng), times(310000000000, rng)

    def student(name: str, scale: float) -> BenchStudent:
        ratio = estimate(np.asarray(student_times) / np.asarray(teacher_times)).scaled(scale)
        return BenchStudent(
            name=name,
            source="plan.json",
            params=848791044,
            macs=310000000000,
            peak_memory_bytes=3_500_000_000,
            removed=("down_blocks.0.resnets.1", "down_blocks.0.attentions.1"),
            replaced={"up_blocks.3.attentions.0": "gri_attention"},
            plan_sha256=plan().sha256() if name == "plan" else None,
            unet_latency_s=latency([t * scale for t in student_times]),
            paired_teacher_latency_s=latency(teacher_times),
            unet_latency_ratio=ratio,
            guided_latency_ratio=ratio,
            predicted_ratio=predicted if name == "plan" else None,
            predicted_low=0.77 if name == "plan" else None,
            predicted_high=0.79 if name == "plan" else None,
            image_latency_s=Estimate(median=200.0, low=198.0, high=203.0),
            image_latency_ratio=Estimate(median=0.80, low=0.79, high=0.81),
        )

    return BenchResult(
        created_utc="2026-01-01T00:10:00Z",
        command="asdm bench --teacher sd15 --student student/",
        family="sd15",
        weights="random",
        dtype="fp32",
        device="cpu",
        threads=2,
        seed=0,
        batch=1,
        size=512,
        teacher_config_sha256=profile().config_sha256,
        pipeline=Pipeline(steps=30, guidance_scale=8.0, composed=True),
        teacher=BenchTeacher(
            name="sd15",
            params=859520964,
            macs=401636720640,
            peak_memory_bytes=3_600_000_000,
            unet_latency_s=latency(teacher_times),
            image_latency_s=Estimate(median=250.0, low=245.0, high=255.0),
            image_parts=ImageParts(
                text_encoder_s=latency([0.1, 0.1]), unet_step_s=latency([8.0, 8.1]), vae_decoder_s=latency([14.0, 14.2])
            ),
        ),
        students=(student("plan", 1.0), student("bk_sdm_base", 0.9)),
        environment=ENVIRONMENT,
    )


def family_costs() -> tuple[FamilyCost, ...]:
    rows = []
    for name in ("sd15", "sd21_base"):
        family = load_family(name)
        unet = models.meta_unet(family)
        counted = flops.count(unet, (), models.unet_inputs(family, device="meta"))
        rows.append(FamilyCost(name, family.title, "unet", counted.params, counted.total.macs, calls=60))
        rows.append(FamilyCost(name, family.title, "text_encoder", 123060480, 6649251840, calls=2))
        rows.append(FamilyCost(name, family.title, "vae_decoder", 49490179, 1257259401216, calls=1))
    return tuple(rows)


def validated_plan(predicted: float, error: float, kind: str = "remove_unit") -> ValidatedPlan:
    """A plan whose only kind of edit saves all that is saved."""
    return ValidatedPlan(
        predicted_ratio=predicted,
        low=predicted - 0.02,
        high=predicted + 0.02,
        measured_ratio=predicted + error,
        measured_low=predicted + error,
        measured_high=predicted + error,
        saves={kind: 1 - predicted},
        teacher_s=(1.0,),
        student_s=(predicted + error,),
        edits=(),
    )


def validation(source: Profile, errors: list[float], kind: str = "remove_unit") -> Validation:
    """Plans from 40 to 95 % of the teacher that are off by `errors`."""
    plans = [validated_plan(p, e, kind) for p, e in zip(np.linspace(0.4, 0.95, len(errors)), errors, strict=True)]
    return Validation(
        created_utc="", command="", family=source.family, weights="random", backend=source.backend,
        dtype=source.dtype, device=source.device, threads=source.threads, seed=0, batch=source.batch,
        size=source.size, teacher_config_sha256=source.config_sha256, profile_sha256=source.sha256(),
        plans=tuple(plans), environment={}, **validate.judge(plans),
    )  # fmt: skip


def comparison() -> Comparison:
    """Two runs of the same, and one plan's price by both."""
    return transfer.compare([(profile(), "a.json"), (profile(seed=1), "b.json")], [plan()])


def report() -> Report:
    return Report(
        profile=profile(),
        plan=plan(),
        benches=(bench(),),
        sources={
            "profile": "reports/sd15/profile.json",
            "plan": "reports/sd15/plan.json",
            "bench": "reports/sd15/bench.json",
        },
        family_costs=family_costs(),
        validation=validation(profile(), [0.01, -0.02, 0.03, -0.01, 0.02, 0.0]),
        comparison=comparison(),
    )


# ---------------------------------------------------------------------------------------------- all that a report holds

PEAKS = Peaks(gemm_flops_per_s=3.2e11, conv_flops_per_s=2.4e11, bytes_per_s=1.2e10, seconds_per_call=4e-6)


def with_roofline(source: Profile) -> Profile:
    """The profile under a made-up roof, as if every part moved four bytes a parameter and its peak of activations."""

    def placed(part: PartRecord) -> PartRecord:
        moved = 4 * part.params + part.peak_memory_bytes
        under = roofline.place(part.macs, moved, 10, part.latency_s.median, PEAKS)
        return part.model_copy(update={"moved_bytes": moved, "roofline": under})

    return source.model_copy(
        update={
            "peaks": PEAKS,
            "units": tuple(map(placed, source.units)),
            "glue": tuple(map(placed, source.glue)),
        }
    )


@cache
def large_profile() -> Profile:
    """Ten times the units of SD1.5: every layer of every block, ten times over."""
    source = with_roofline(profile())
    layers = {block: len(source.topology.layers(block)) for block in source.topology.blocks}

    def again(unit: Any, n: int) -> Any:
        stem, _, index = unit.fqn.rpartition(".")
        place = int(index) + n * layers[unit.block]
        changes = {
            "fqn": f"{stem}.{place}",
            "label": f"{unit.label.rstrip('0123456789')}{place}",
            "layer": unit.layer + n * layers[unit.block],
        }
        return unit.model_copy(update=changes | ({"share": unit.share.scaled(0.1)} if hasattr(unit, "share") else {}))

    def ten(units_: Any) -> Any:
        order = {block: i for i, block in enumerate(source.topology.blocks)}
        many = [again(unit, n) for unit in units_ for n in range(10)]
        return tuple(sorted(many, key=lambda unit: (order[unit.block], unit.layer)))

    topology = source.topology.model_copy(update={"units": ten(source.topology.units)})
    return source.model_copy(update={"topology": topology, "units": ten(source.units), "options": ()})


def damage(source: Profile) -> DamageFile:
    """Each unit's removal or replacement, worth its share of the parameters."""
    rng = np.random.default_rng(3)
    edits: list[AnyEdit] = [RemoveUnit(unit=unit.fqn) for unit in source.units if unit.kind == "transformer"]
    edits += [ReplaceUnit(unit=option.unit, with_=option.replacement) for option in source.options]
    edits += [RemoveLayer(block="down_blocks.0", layer=1), RemoveBlock(block="mid_block")]
    values = rng.lognormal(-5, 1, len(edits))
    rows = tuple(
        EditDamage(edit=edit, damage=Amount(value=float(v), low=float(0.8 * v), high=float(1.3 * v)))
        for edit, v in zip(edits, values, strict=True)
    )
    return DamageFile(
        schema="asdm.damage/1", family=source.family, edits=rows, additivity=Additivity(spearman=0.93, r2=0.9)
    )


def frontier(source: Profile) -> FrontierFile:
    """From the teacher itself to all transformers of the shallow blocks gone, the costliest first."""
    shallow = [unit for unit in rank(source) if unit.kind == "transformer"][:9]
    left, points = source.whole.latency_s.median, []
    for n in range(len(shallow) + 1):
        edits = tuple(RemoveUnit(unit=unit.fqn) for unit in shallow[:n])
        taken = sum(unit.latency_s.median for unit in shallow[:n])
        done = 0.01 * n**2
        points.append(
            FrontierPoint(latency_s=left - taken, damage=Amount(value=done, low=done, high=done), edits=edits)
        )
    return FrontierFile(schema="asdm.frontier/1", family=source.family, points=tuple(points))


def log() -> TrainingLog:
    """A training that gets better, with noise."""
    rng, steps = np.random.default_rng(4), tuple(range(0, 4000, 10))
    terms = {
        name: tuple(float(scale * (0.2 + np.exp(-step / 900)) * rng.lognormal(0, 0.1)) for step in steps)
        for name, scale in (("loss", 1.4), ("denoising", 0.9), ("output", 0.3), ("features", 0.2))
    }
    return TrainingLog(steps=steps, terms=terms)


def drawing(caption: str, seed: int, students: int) -> Drawing:
    """Coloured noise, which is what a PNG finds hardest."""
    generator = torch.Generator().manual_seed(seed)

    def picture() -> str:
        small = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
        return quality.thumbnail(torch.nn.functional.interpolate(small, 64, mode="bilinear")[0])

    made = tuple(picture() for _ in range(students))
    return Drawing(caption=caption, seed=seed, real=picture(), teacher=picture(), students=made)


def judged_bench() -> BenchResult:
    """The benchmark with quality and pictures."""
    found = bench()
    metrics = {
        "frechet_distance": Metric(value=61.0, low=52.0, high=70.0, teacher=55.0, noise_floor=4.1),
        "kernel_distance": Metric(value=0.012, low=0.004, high=0.02, teacher=0.008, noise_floor=0.003),
        "clip_score": Metric(value=27.1, low=26.5, high=27.8, teacher=28.0, noise_floor=0.4),
        "recall_at_1": Metric(value=0.29, low=0.23, high=0.35, teacher=0.34, noise_floor=0.03),
        "perceptual_to_teacher": Metric(value=0.31, low=0.29, high=0.33, teacher=0.0, noise_floor=0.52),
    }
    students = tuple(student.model_copy(update={"quality": metrics}) for student in found.students)
    drawings = tuple(
        drawing(f"a {word} heart", seed, len(students)) for seed, word in enumerate(("red", "green", "big"))
    )
    return found.model_copy(update={"students": students, "drawings": drawings})


@cache
def full_report() -> Report:
    """Everything that a report can hold."""
    source = report()
    return dataclasses.replace(
        source,
        profile=with_roofline(source.profile),
        benches=(judged_bench(),),
        damage=damage(source.profile),
        frontier=frontier(source.profile),
        log=log(),
    )
