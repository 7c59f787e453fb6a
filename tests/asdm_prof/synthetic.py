"""A report on SD1.5 whose MACs are real and whose times are made up: time = MACs at a fixed rate, with seeded noise.

For tests of ranking, planning and rendering, which need a profile and not a measurement.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch

from asdm.evaluate.generation import thumbnail
from asdm.measure.statistics import estimate, latency
from asdm.models import example_inputs, loading
from asdm.models.families import Family, load_family
from asdm.plan.edits import AnyEdit, Prediction, PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.records.bench import BenchResult, BenchStudent, BenchTeacher, Drawing, ImageParts, Metric, Pipeline
from asdm.records.measurement import Estimate, Macs
from asdm.unet import blocks, flops
from asdm_prof.analysis import transfer
from asdm_prof.analysis.rank import rank
from asdm_prof.planner import choices, frontier, validate
from asdm_prof.profiler import roofline
from asdm_prof.records import (
    Additivity,
    Agreement,
    Comparison,
    ComponentRecord,
    Damage,
    DamagePair,
    EditDamage,
    Fit,
    Frontier,
    FrontierPoint,
    Interval,
    JointDamage,
    OptionRecord,
    PartRecord,
    Peaks,
    Profile,
    Rung,
    Search,
    SearchedStudent,
    TrainingLog,
    TrustLine,
    ValidatedPlan,
    Validation,
    WholeRecord,
    Work,
)
from asdm_prof.renderers import FamilyCost, Report
from asdm_prof.sensitivity import additivity
from benchmarks.budgets.records import BudgetRow, Budgets, Contestant
from benchmarks.proof.records import Judged, Proof, ProofLatency, ProofResult, ProofRow

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
    unet = loading.meta_unet(family)
    parts = list(blocks.iter_parts(unet))
    counted = flops.count(unet, (), example_inputs.unet_inputs(family, device="meta"), parts)
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
        config_sha256=loading.unet_config_sha256(unet.config),
        backend="fake",
        dtype="fp32",
        device="cpu",
        threads=2,
        seed=seed,
        batch=1,
        size=family.size,
        latent=family.latent,
        topology=blocks.topology(unet),
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
            linear_macs=max(unit.linear_macs - 3 * 4096 * 320 * 80, 0),
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


@cache
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


@cache
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


@cache
def family_costs() -> tuple[FamilyCost, ...]:
    rows = []
    for name in ("sd15", "sd21_base"):
        family = load_family(name)
        unet = loading.meta_unet(family)
        counted = flops.count(unet, (), example_inputs.unet_inputs(family, device="meta"))
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


@cache
def comparison() -> Comparison:
    """Two runs of the same, and one plan's price by both."""
    return transfer.compare([(profile(), "a.json"), (profile(seed=1), "b.json")], [plan()])


@cache
def damage() -> Damage:
    """Every choice of the made-up profile at a made-up damage, and six joint plans that are nearly the sum."""
    source, rng = profile(), np.random.default_rng(0)

    def interval(value: float) -> Interval:
        return Interval(value=value, low=0.9 * value, high=1.1 * value)

    edits = tuple(
        EditDamage(
            edit=choice.edits[0],
            also=choice.edits[1:],
            damage=interval(value),
            by_prompt=(value,),
            by_timestep=(value,),
        )
        for choice in choices.make_choices(source)
        for value in [float(rng.lognormal(-6))]
    )
    units = [i for i, one in enumerate(edits) if one.edit.op == "remove_unit"]
    plans = []
    for n in range(2, 8):
        parts = units[:n]
        total = sum(edits[i].damage.value for i in parts)
        plans.append((parts, interval(total * float(rng.uniform(0.9, 1.1)))))
    pairs = [DamagePair(first=units[0], second=units[1], damage=1e-3)]
    return Damage(
        created_utc="2026-01-01T00:00:00Z", command="asdm-prof sensitivity sd15", family="sd15", weights="folder",
        weights_sha256="0" * 64, teacher_config_sha256=source.config_sha256, data="emoji", split="train", prompts=2,
        timesteps=(250, 750), seed=0, dtype="fp32", device="cpu", threads=1, size=source.size,
        prediction_type="epsilon", teacher_power=1.0, edits=edits,
        additivity=additivity.judge(edits, pairs, plans), environment=ENVIRONMENT,
        agreement=(Agreement(score="structural prior", spearman=interval(0.5), edits=len(edits)),),
        work=Work(students=len(edits), plain_forwards=60.0, least_forwards=30.0, done_forwards=30.0, seconds=100.0,
                  forward_s=90.0, least_s=90.0, reached=0.9),
    )  # fmt: skip


@cache
def budgets() -> Budgets:
    """Two budgets: ahead of every baseline at one, behind at the other."""

    def contestant(name: str, value: float, edits: tuple[AnyEdit, ...]) -> Contestant:
        damage = Interval(value=value, low=0.9 * value, high=1.1 * value)
        return Contestant(
            name=name, ours=name == "ours", ratio=0.7, predicted=value, damage=damage, by_prompt=(value, value),
            edits=edits,
        )  # fmt: skip

    rows = []
    for budget, factor in ((0.8, 2.0), (0.7, 0.5)):
        both = (contestant("ours", 0.01, plan().edits), contestant("greedy", 0.01 * factor, plan().edits[:1]))
        gap = 0.01 * (factor - 1)
        rows.append(
            BudgetRow(
                budget=budget,
                contestants=tuple(sorted(both, key=lambda one: one.damage.value)),
                ahead=Interval(value=gap, low=gap, high=gap),
                won=gap > 0,
            )
        )
    return Budgets(
        created_utc="2026-01-01T00:00:00Z", command="", family="sd15", weights_sha256="0" * 64,
        profile_sha256=profile().sha256(), damage_sha256=damage().sha256(), candidates=10, split="held_out",
        prompts=2, timesteps=(250, 750), rows=tuple(rows), seconds=1.0, environment=ENVIRONMENT,
    )  # fmt: skip


@cache
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
        damage=damage(),
        frontier=frontier.make_frontier(profile(), damage(), asked={"latency": "0.8"}, k=2, diverse=2),
        extra={"budgets": budgets()},
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


def around(value: float) -> Interval:
    return Interval(value=value, low=0.8 * value, high=1.3 * value)


def damage_of(source: Profile) -> Damage:
    """Each unit's removal or replacement and a layer's with its mirror image, of made-up damage, and joint plans."""
    rng = np.random.default_rng(3)
    sets: list[tuple[AnyEdit, ...]] = [(RemoveUnit(unit=u.fqn),) for u in source.units if u.kind == "transformer"]
    sets += [(ReplaceUnit(unit=option.unit, with_=option.replacement),) for option in source.options]
    down, up = source.topology.down_blocks[0], source.topology.up_blocks[-1]
    sets += [(RemoveLayer(block=down, layer=1), RemoveLayer(block=up, layer=1))]
    sets += [(RemoveBlock(block="mid_block"),)]
    rows = tuple(
        EditDamage(
            edit=edits[0], also=edits[1:], damage=around(float(v)), by_prompt=(float(v),), by_timestep=(float(v),)
        )
        for edits, v in zip(sets, rng.lognormal(-5, 1, len(sets)), strict=True)
    )
    return Damage(
        created_utc="2026-01-01T00:05:00Z",
        command="asdm-prof sensitivity sd15",
        family=source.family,
        weights="made up",
        weights_sha256="0" * 64,
        teacher_config_sha256=source.config_sha256,
        data="emoji",
        split="train",
        prompts=64,
        timesteps=tuple(range(60, 1000, 125)),
        seed=0,
        dtype="fp32",
        device="cpu",
        threads=2,
        size=source.size,
        prediction_type="epsilon",
        teacher_power=0.9,
        edits=rows,
        additivity=additivity_of(rows),
        agreement=(Agreement(score="structural prior", spearman=Interval(value=0.41, low=0.1, high=0.6), edits=16),),
        work=Work(
            students=20, plain_forwards=20.0, least_forwards=9.0, done_forwards=10.0, seconds=100.0, forward_s=90.0,
            least_s=81.0, reached=0.81,
        ),
        environment=ENVIRONMENT,
    )  # fmt: skip


def additivity_of(rows: tuple[EditDamage, ...]) -> Additivity:
    """Joint plans of the first edits, each a little worse than their sum."""
    sums = [sum(row.damage.value for row in rows[:n]) for n in range(2, 10)]
    plans = tuple(
        JointDamage(
            edits=tuple(edit for row in rows[:n] for edit in row.edits),
            summed=total,
            with_pairs=1.1 * total,
            damage=around(1.2 * total),
        )
        for n, total in enumerate(sums, 2)
    )
    fit = Fit(
        spearman=Interval(value=0.93, low=0.85, high=0.97), r2=Interval(value=0.9, low=0.8, high=0.95),
        r2_line=Interval(value=0.94, low=0.9, high=0.97),
    )  # fmt: skip
    return Additivity(spearman=0.93, r2=0.9, used="sum", summed=fit, with_pairs=fit, plans=plans)


def frontier_of(source: Profile) -> Frontier:
    """From the teacher itself to all transformers of the shallow blocks gone, the costliest first."""
    shallow = [unit for unit in rank(source) if unit.kind == "transformer"][:9]
    whole, points = source.whole.latency_s.median, []
    for n in range(len(shallow) + 1):
        left = whole - sum(unit.latency_s.median for unit in shallow[:n])
        edits = tuple(RemoveUnit(unit=unit.fqn) for unit in shallow[:n])
        points.append(
            FrontierPoint(latency_s=left, ratio=left / whole, macs=1 - n / 50, params=1 - n / 90, damage=0.01 * n**2,
                          edits=edits)
        )  # fmt: skip
    return Frontier(
        family=source.family,
        teacher_config_sha256=source.config_sha256,
        by="latency",
        budgets={"latency": 0.9},
        complete=True,
        damage_from="structural prior",
        profile_sha256=source.sha256(),
        points=tuple(points),
        apart=3,
    )


def budgets_of(source: Profile) -> Budgets:
    """Three budgets, within two of which ours does least."""

    def contestant(name: str, damage_: float, budget: float) -> Contestant:
        return Contestant(
            name=name, ours=name == "ours", ratio=budget - 0.01, predicted=0.9 * damage_, damage=around(damage_),
            by_prompt=(damage_,), edits=(),
        )  # fmt: skip

    rows = []
    for budget, ours, greedy in ((0.9, 0.01, 0.02), (0.8, 0.03, 0.05), (0.7, 0.2, 0.15)):
        everyone = [contestant("ours", ours, budget), contestant("greedy", greedy, budget)]
        gap = greedy - ours
        rows.append(
            BudgetRow(
                budget=budget,
                contestants=tuple(sorted(everyone, key=lambda one: one.damage.value)),
                ahead=Interval(value=gap, low=gap - 0.015, high=gap + 0.015),
                won=gap > 0,
            )
        )
    return Budgets(
        created_utc="", command="", family=source.family, weights_sha256="0" * 64, profile_sha256=source.sha256(),
        damage_sha256="1" * 64, candidates=10, split="held_out", prompts=64, timesteps=(500,), rows=tuple(rows),
        seconds=1.0, environment=ENVIRONMENT,
    )  # fmt: skip


def log() -> TrainingLog:
    """A training that gets better, with noise."""
    rng, steps = np.random.default_rng(4), tuple(range(0, 4000, 10))
    terms = {
        name: tuple(float(scale * (0.2 + np.exp(-step / 900)) * rng.lognormal(0, 0.1)) for step in steps)
        for name, scale in (("loss", 1.4), ("denoising", 0.9), ("output", 0.3), ("features", 0.2))
    }
    return TrainingLog(steps=steps, terms=terms, stages={"compressed": 0, "combined": 2000})


def proof_of(source: Profile, seeds: int = 3) -> Proof:
    """Ours loses a quarter of what its rival loses, CLME helps, and GRI does nothing."""
    rng = np.random.default_rng(5)
    base = {"frechet_distance": 10.0, "kernel_distance": 0.4, "clip_score": 60.0, "recall_at_1": 0.5,
            "latent_mse_to_teacher": 0.0}  # fmt: skip
    worse = {"frechet_distance": 8.0, "kernel_distance": 0.2, "clip_score": -20.0, "recall_at_1": -0.3,
             "latent_mse_to_teacher": 0.4}  # fmt: skip
    pictures, halves = rng.normal(size=60), rng.normal(size=40)

    def judged(name: str, loss: float) -> Judged:
        value = base[name] + loss * worse[name]
        noise, of = (halves, "halves") if "distance" in name else (pictures - pictures.mean(), "pictures")
        samples = value + 0.05 * worse[name] * noise
        return Judged.model_validate({"value": value, "of": of, "samples": samples.tolist()})

    def result(seed: int | None, loss: float) -> ProofResult:
        shift = 0.0 if seed is None else 0.01 * (seed - 1)
        return ProofResult(
            seed=seed, seconds=200.0, pictures=6400, peak_memory_bytes=3 << 27, trainable=10, student_sha256=None,
            metrics={name: judged(name, loss + shift) for name in base},
        )  # fmt: skip

    def row(name: str, loss: float, ratio_: float, rival: str | None = None, ablates: str | None = None) -> ProofRow:
        told = Estimate(median=ratio_, low=ratio_ - 0.01, high=ratio_ + 0.01)
        times = tuple(ratio_ + x for x in (-0.01, 0.0, 0.0, 0.01))
        timed = ProofLatency(
            plan_sha256=f"{ratio_:.3f}", ratio=told, mean_ratio=told, student_s=times, teacher_s=(1.0,) * 4
        )
        return ProofRow(
            name=name, what=f"what {name} is", plan_name=name, recipe="bk_sdm", rival=rival, ablates=ablates,
            plan_sha256=f"{ratio_:.3f}", edits=(), params=700_000_000, macs=300_000_000_000, predicted_ratio=ratio_,
            latency=timed, results=tuple(result(seed, loss) for seed in range(seeds)),
        )  # fmt: skip

    teacher = row("teacher", 0.0, 1.0).model_copy(update={"latency": None, "results": (result(None, 0.0),)})
    rows = (
        teacher, row("bk_sdm", 1.0, 0.77), row("a_sdm", 0.4, 0.9), row("ours", 0.25, 0.76, rival="bk_sdm"),
        row("no_clme", 0.7, 0.88, ablates="a_sdm"), row("no_gri", 0.4, 0.95, ablates="a_sdm"),
    )  # fmt: skip
    return Proof(
        created_utc="", command="python -m benchmarks.proof", family=source.family,
        teacher_config_sha256=source.config_sha256, weights_sha256="0" * 64, profile_sha256=source.sha256(),
        damage_sha256="1" * 64, identity={"steps": 400}, noise={name: judged(name, 0.02) for name in base}, rows=rows,
        environment=ENVIRONMENT,
    )  # fmt: skip


def search_of(source: Profile) -> Search:
    """Four candidates, of which two trained on; the last is over its budget, the second beaten in both."""

    def student(number: int, rung: int, ratio_: float, score: float) -> SearchedStudent:
        told = Estimate(median=ratio_, low=ratio_ - 0.01, high=ratio_ + 0.01)
        mark = Metric(value=score, low=score - 0.02, high=score + 0.02, teacher=0.0, noise_floor=0.4)
        return SearchedStudent(
            candidate=number, rung=rung, steps=100 * 2**rung, edits=(), plan_sha256="2" * 64,
            predicted=Prediction(latency_s=4.0 * ratio_, ratio=ratio_, low=ratio_, high=ratio_), damage=0.1, ratio=told,
            student_s=(ratio_,) * 4, teacher_s=(1.0,) * 4, macs=300_000_000_000, params=700_000_000,
            quality={"perceptual_to_teacher": mark}, within_budget=ratio_ <= 0.8, in_front=number != 1, host="h",
            folder=f"candidates/{number:02d}",
        )  # fmt: skip

    return Search(
        created_utc="", command="asdm-prof search mini --budget 0.8", family=source.family, weights="shipped",
        backend="eager", dtype="fp32", device="cpu", threads=2, seed=0, batch=1, size=64, study="mini-0.8",
        teacher_config_sha256=source.config_sha256, weights_sha256="0" * 64, profile_sha256=source.sha256(),
        damage_sha256=None, budget="0.8", budget_ratio=0.8, metric="perceptual_to_teacher", maximise=False,
        recipe="bk_sdm", data="emoji", split="train", learning_rate=1e-4, training_batch=16, pictures=64,
        rungs=(Rung(candidates=4, steps=100), Rung(candidates=2, steps=200)), training_steps=600,
        trials={"done": 6, "died": 0},
        students=(student(0, 1, 0.78, 0.31), student(1, 1, 0.79, 0.35), student(2, 0, 0.7, 0.5),
                  student(3, 0, 0.82, 0.3)),
        environment=ENVIRONMENT,
    )  # fmt: skip


def drawing(caption: str, seed: int, students: int) -> Drawing:
    """Coloured noise, which is what a PNG finds hardest."""
    generator = torch.Generator().manual_seed(seed)

    def picture() -> str:
        small = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
        return thumbnail(torch.nn.functional.interpolate(small, 64, mode="bilinear")[0])

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
        damage=damage_of(source.profile),
        frontier=frontier_of(with_roofline(source.profile)),
        log=log(),
        beside=with_roofline(profile(seed=7)).model_copy(update={"family": "mini", "title": "Mini Stable Diffusion"}),
        extra={
            "budgets": budgets_of(with_roofline(source.profile)),
            "proof": proof_of(with_roofline(source.profile)),
        },
        search=search_of(with_roofline(source.profile)),
    )
