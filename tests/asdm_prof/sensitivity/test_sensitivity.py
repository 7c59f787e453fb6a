"""Measured damage: the plain loop's numbers to the bit, nothing computed twice, and files that know their teacher."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asdm.measure import machine
from asdm.models import loading, student as students
from asdm.models.families import load_family
from asdm.models.sources import own_weights
from asdm.plan.edits import PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.unet.blocks import topology
from asdm.unet.replacements import shared_copy
from asdm.unet.surgery import resolved_on
from asdm_prof.planner import plan as planner
from asdm_prof.records import Damage
from asdm_prof.sensitivity import additivity, calibration, dry_run, measure as sensitivity, racing, study, variants
from asdm_prof.sensitivity.settings import SensitivitySettings
from tests.asdm_prof import synthetic
from tests.commands import refused
from tests.tiny import hooks_on, unet_args

FEW = SensitivitySettings(prompts=2, timesteps=2, threads=1, size=64)
EDITS = [
    (RemoveUnit(unit="down_blocks.0.attentions.0"),),
    (RemoveUnit(unit="mid_block.attentions.0"),),
    (ReplaceUnit(unit="up_blocks.3.attentions.1", with_="gri_attention"),),
    (RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=1)),
    (RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=2)),
    (RemoveBlock(block="mid_block"),),
    (RemoveBlock(block="down_blocks.3"), RemoveBlock(block="mid_block")),
]


@pytest.fixture(scope="module")
def measured() -> sensitivity.DamageMeasurement:
    return sensitivity.measure_damage("mini", EDITS, FEW)


@pytest.fixture(scope="module")
def mini() -> torch.nn.Module:
    family = load_family("mini")
    return loading.load_unet(family, own_weights(family))


def test_the_numbers_are_the_plain_loops_to_the_bit(
    measured: sensitivity.DamageMeasurement, mini: torch.nn.Module
) -> None:
    """Each student as it is built for users, run from the start."""
    with machine.quiet_torch(1):
        data = calibration.make_calibration(load_family("mini"), mini, FEW)
        inputs = data.inputs(slice(0, 2))
        teacher = mini(**inputs)[0]
        for edits, samples in zip(EDITS, measured.samples, strict=True):
            student, _ = students.build(mini, PruningPlan(family="mini", edits=edits))
            plain = sensitivity.squared(student(**inputs)[0] - teacher).view(2, 2)
            assert samples.tolist() == plain.tolist(), edits
            assert plain.min() > 0


def test_every_legal_edit_and_joint_plans_are_the_plain_loops_to_the_bit(mini: torch.nn.Module) -> None:
    """Students that share a beginning by their parts' names but not by the skips that those take are among them."""
    plans = variants.measurable_edits(mini)
    for first, second in [(plans[i].edits, plans[i + 20].edits) for i in range(0, len(plans) - 20, 3)]:
        with suppress(ValueError):  # not all of them are legal together
            plans.append(resolved_on(mini, (*first, *second)))
    ordered = variants.make_variants(mini, plans)
    assert len(ordered) > 75
    with machine.quiet_torch(1):
        inputs = calibration.make_calibration(load_family("mini"), mini, FEW).inputs(slice(0, 1))
        reused = {variant.index: out for variant, out in variants.outputs(ordered, inputs)}
        for variant, plain in variants.outputs(ordered, inputs, reuse=False):
            assert torch.equal(reused[variant.index], plain), plans[variant.index].edits
        for index in range(0, len(plans), 9):  # built for themselves, of modules that they share with no other
            student, _ = students.build(mini, plans[index])
            assert torch.equal(reused[index], student(**inputs)[0]), plans[index].edits
        assert torch.equal(reused[-1], mini(**inputs)[0])


def test_the_overlap_is_of_output_errors(measured: sensitivity.DamageMeasurement) -> None:
    assert np.diag(measured.overlap) == pytest.approx(measured.samples.mean(axis=(1, 2)), rel=1e-4)
    assert measured.overlap == pytest.approx(measured.overlap.T, rel=1e-5, abs=1e-10)  # in fp32


def test_nothing_is_computed_twice(tiny_unet: torch.nn.Module) -> None:
    """Calls of every part are counted: each distinct beginning of a forward is computed once, and no more."""
    ordered = variants.make_variants(tiny_unet, [resolved_on(tiny_unet, edits) for edits in EDITS])
    distinct = {variant.names[: i + 1] for variant in ordered for i in range(len(variant.steps))}
    calls, steps = [], [module for variant in ordered for _, module in variant.steps]
    for first in {next(module.children()) for module in steps if next(module.children(), None) is not None}:
        first.register_forward_hook(lambda *_: calls.append(1))
    inside = {names for names in distinct if _has_children(ordered, names)}
    with torch.no_grad():
        list(variants.outputs(ordered, unet_args()))
    assert len(calls) == len(inside)
    assert sum(len(v.steps) for v in ordered) > 1.4 * len(distinct), "students share beginnings"


def _has_children(ordered: list[variants.Variant], names: tuple[str, ...]) -> bool:
    variant = next(v for v in ordered if v.names[: len(names)] == names)
    return next(variant.steps[len(names) - 1][1].children(), None) is not None


def test_nothing_stays_patched(tiny_unet: torch.nn.Module, nothing_left_hooked: None) -> None:
    ordered = variants.make_variants(tiny_unet, [resolved_on(tiny_unet, edits) for edits in EDITS])
    before = [hooks_on(variant.unet) for variant in ordered]
    with torch.no_grad():
        first = [out for _, out in variants.outputs(ordered, unet_args())]
        again = [variant.unet(**unet_args())[0] for variant in ordered]
    assert [hooks_on(variant.unet) for variant in ordered] == before
    assert not [m for v in ordered for m in v.unet.modules() if "forward" in m.__dict__]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_work_is_counted_in_forwards(tiny_unet: torch.nn.Module) -> None:
    """By hand: an edit at the last step costs the last step, and what two share is counted once."""
    ordered = variants.make_variants(tiny_unet, [resolved_on(tiny_unet, edits) for edits in EDITS[:2]])
    macs = {name: 1 for variant in ordered for name in variant.names}
    found = variants.work_of(ordered, macs, reuse=True)
    n = len(ordered[0].steps)
    removed = [ordered[0].names.index(next(x for x in ordered[0].names if x.startswith(e[0].unit))) for e in EDITS[:2]]
    assert found["plain_forwards"] == pytest.approx((n + 2 * (n - 1)) / n)
    assert found["done_forwards"] == pytest.approx((n + sum(n - 1 - at for at in removed)) / n)
    assert found["least_forwards"] == pytest.approx(found["done_forwards"])
    assert variants.work_of(ordered, macs, reuse=False)["done_forwards"] == found["plain_forwards"]


def test_every_legal_edit_is_one(tiny_unet: torch.nn.Module) -> None:
    shape = topology(tiny_unet)
    found = [plan.edits for plan in variants.measurable_edits(tiny_unet)]
    for edits in found:
        resolve(shape, edits)
    transformers = [u.fqn for u in shape.units if u.kind == "transformer"]
    assert {e[0].unit for e in found if e[0].op == "replace_unit"} == set(transformers)
    assert {e[0].with_ for e in found if e[0].op == "replace_unit"} == {"gri_attention", "kv_downsample"}
    assert (RemoveBlock(block="down_blocks.3"), RemoveBlock(block="mid_block")) in found
    assert len({str(e) for e in found}) == len(found)
    with pytest.raises(ValueError, match=r"unknown name 'gri' in replacements; choose from"):
        variants.measurable_edits(tiny_unet, ["gri"])


def test_an_interrupted_run_goes_on_and_gives_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "SAMPLES_AT_ONCE", 1)  # a batch for each prompt
    few, spelled = (replace(FEW, data=f"folder:{photos}{end}") for end in ("", "/."))
    whole = sensitivity.measure_damage("mini", EDITS[:2], few)
    run_file, seen = tmp_path / "damage.json.run", []

    def stop(stage: str, *_: object) -> None:
        seen.append(stage)
        if stage.startswith("batch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity.measure_damage("mini", EDITS[:2], few, run_file, stop)
    assert len(sensitivity.DamageRun.load(run_file).batches) == 1
    before = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(before[:-1] + b"!")
    with pytest.raises(ValueError, match="unfinished run of another teacher or with other data or options"):
        sensitivity.measure_damage("mini", EDITS[:2], few, run_file)
    (photos / "3.png").write_bytes(before)
    stages: list[str] = []
    again = sensitivity.measure_damage("mini", EDITS[:2], spelled, run_file, lambda stage, *_: stages.append(stage))
    assert not [stage for stage in stages if stage.startswith("batch 1")]
    assert again.samples.tolist() == whole.samples.tolist()
    with pytest.raises(ValueError, match="unfinished run of another teacher or with other data or options"):
        sensitivity.measure_damage("mini", EDITS[:1], few, run_file)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (SensitivitySettings(prompts=1), "prompts must be at least 2, got 1"),
        (SensitivitySettings(timesteps=0), "timesteps must be at least 1, got 0"),
        (SensitivitySettings(prompts=10**6), "prompts must be at most the .* got 1000000"),
        (SensitivitySettings(data="emojis"), "unknown name 'emojis' in datasets; choose from"),
        (SensitivitySettings(split="test"), "unknown split 'test'"),
    ],
)
def test_bad_settings_are_one_sentence(settings: SensitivitySettings, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sensitivity.measure_damage("mini", EDITS[:1], settings)


@pytest.mark.parametrize(
    ("kind", "judge", "said"),
    [
        ("folder", "mini", "clip must be at most the 12 images of folder:.*, got 50"),
        ("webdataset", "mini", "clip must be at most the 40 usable examples of webdataset:.*, got 50"),
        ("folder", "./nowhere", "nowhere"),
    ],
)
def test_what_clip_scores_lack_is_told_before_anything_is_measured(
    photos: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, kind: str, judge: str, said: str
) -> None:
    monkeypatch.setattr(sensitivity, "measure_damage", lambda *_: pytest.fail("it came to measuring"))
    data = f"{kind}:{photos if kind == 'folder' else shards}"
    with pytest.raises(ValueError, match=said):
        study.measure_sensitivity("mini", replace(FEW, data=data, judge=judge), clip=50)


# ---------------------------------------------------------------------------------------------- the record


@pytest.fixture(scope="module")
def record() -> Damage:
    return study.measure_sensitivity("mini", FEW, plans=3, replacements=["gri_attention"])


def test_a_dry_run_counts_what_the_run_computes(run: Any, record: Damage, tiny_pipeline: Path) -> None:
    found = dry_run.forecast("mini", FEW, 3, ["gri_attention"], False, None)
    assert (found.edits, found.plans) == (len(record.edits), 3)
    assert found.samples == FEW.prompts * FEW.timesteps
    assert found.forwards == pytest.approx(found.samples * record.work.done_forwards)
    assert found.plain_forwards == pytest.approx(found.samples * record.work.plain_forwards)
    assert found.seconds is None
    raced = dry_run.forecast(
        str(tiny_pipeline), replace(FEW, prompts=20), 0, ["narrow_resnet"], True, synthetic.profile()
    )
    assert raced.race_samples == racing.PROMPTS * FEW.timesteps
    assert raced.race_edits <= raced.edits
    assert raced.seconds == pytest.approx(raced.forwards * synthetic.profile().whole.latency_s.median)
    words = ("--dry-run", "--prompts", 4, "--timesteps", 2, "--plans", 0, "--replacement", "gri_attention")
    done = run("asdm-prof", "sensitivity", tiny_pipeline, *words)
    assert done.code == 0, done.err
    assert "and 0 joint plans, on 8 noised pictures." in done.out
    refused(run("asdm-prof", "sensitivity", "mini", "--dry-run", "--clip", 4), "leave out --across-steps and --clip")


def test_the_record_says_what_was_measured(record: Damage) -> None:
    assert record.to_json().startswith('{\n "schema": "asdm.damage/1"')
    assert Damage.parse(__import__("json").loads(record.to_json()), "here") == record
    first = record.edits[0]
    assert first.damage.low <= first.damage.value <= first.damage.high
    assert first.damage.value == pytest.approx(np.mean(first.by_prompt))
    assert first.damage.value == pytest.approx(np.mean(first.by_timestep))
    assert record.additivity is not None
    assert len(record.additivity.plans) == 3
    for plan in record.additivity.plans:
        parts = [one for one in record.edits if all(edit in plan.edits for edit in one.edits)]
        assert plan.summed >= max(one.damage.value for one in parts)
    assert record.work.least_forwards == pytest.approx(record.work.done_forwards)
    assert record.work.plain_forwards > record.work.done_forwards
    assert 0 < record.work.reached <= 1
    assert {one.score for one in record.agreement} >= {"structural prior", "parameters", "magnitude", "cosine change"}


def test_joint_plans_are_legal_and_made_of_measured_edits(record: Damage, mini: torch.nn.Module) -> None:
    assert record.additivity is not None
    measured = {str(edit) for one in record.edits for edit in one.edits}
    for plan in record.additivity.plans:
        resolve(topology(mini), plan.edits)
        assert {str(edit) for edit in plan.edits} <= measured


def test_two_plans_are_too_few_for_a_correlation() -> None:
    with pytest.raises(ValueError, match=r"plans must be 0 or at least 3 \(a correlation needs three\), got 2"):
        study.measure_sensitivity("mini", FEW, plans=2)


def test_damage_of_another_teacher_is_refused(record: Damage) -> None:
    """Another model; the same model with other weights; the same at another size."""
    with pytest.raises(ValueError, match=r"measured on mini .* another model than the profile's sd15"):
        planner.make_plan(synthetic.profile(), "0.8", damage=record)
    mini = synthetic.profile("mini").model_copy(update={"size": 64})
    assert planner.make_plan(mini, "0.8", damage=record).damage_sha256 == record.sha256()
    other = mini.model_copy(update={"weights_sha256": "0" * 64, "weights": "elsewhere"})
    with pytest.raises(ValueError, match=r"measured on other weights .* than the profile was taken with \(elsewhere"):
        planner.make_plan(other, "0.8", damage=record)
    with pytest.raises(ValueError, match="measured at 64 pixels, the profile at 128"):
        planner.make_plan(mini.model_copy(update={"size": 128}), "0.8", damage=record)


def test_weights_tell_teachers_apart(mini: torch.nn.Module) -> None:
    same, other = shared_copy(mini), shared_copy(mini)
    assert loading.weights_sha256(same) == loading.weights_sha256(mini)
    other.conv_in.bias = torch.nn.Parameter(other.conv_in.bias + 1)
    assert loading.weights_sha256(other) != loading.weights_sha256(mini)


# ---------------------------------------------------------------------------------------------- additivity


def test_a_perfect_and_a_scaled_prediction() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    perfect = additivity.fit(values, values)
    assert (perfect.spearman.value, perfect.r2.value) == pytest.approx((1.0, 1.0))
    doubled = additivity.fit([2 * v for v in values], values)
    assert doubled.spearman.value == pytest.approx(1.0)
    assert doubled.r2_line.value == pytest.approx(1.0)
    mean = sum(values) / 5
    assert doubled.r2.value == pytest.approx(1 - sum(v**2 for v in values) / sum((v - mean) ** 2 for v in values))
    assert additivity.fit(values[::-1], values).spearman.value == pytest.approx(-1.0)
    assert math.isfinite(perfect.spearman.low)


def test_pairs_are_of_neighbours_that_may_go_together(record: Damage, mini: torch.nn.Module, monkeypatch: Any) -> None:
    shape, n = topology(mini), len(record.edits)
    overlap, edits = np.arange(n * n, dtype=float).reshape(n, n), [resolve(shape, one.edits) for one in record.edits]
    strong = {(pair.first, pair.second) for pair in additivity.neighbour_pairs(edits, overlap)}
    monkeypatch.setattr(additivity, "MOST_PAIRS", n * n)
    pairs = additivity.neighbour_pairs(edits, overlap)
    assert strong == {(p.first, p.second) for p in sorted(pairs, key=lambda p: -p.damage)[: len(strong)]}
    assert len(strong) == 100 < len(pairs)
    names = {(str(record.edits[p.first].edit), str(record.edits[p.second].edit)): p for p in pairs}
    near = ("remove down_blocks.0.attentions.0", "remove up_blocks.3.attentions.2")
    assert names[near].damage == 2 * overlap[names[near].first, names[near].second]
    assert ("remove down_blocks.0.attentions.0", "remove down_blocks.1.attentions.0") not in names
    assert ("remove down_blocks.0.attentions.0", "replace down_blocks.0.attentions.0 with gri_attention") not in names
