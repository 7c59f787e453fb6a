"""The experiment end to end on a tiny real Stable Diffusion; what it says is checked on made-up results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

from asdm.evaluate import metrics
from asdm.plan.edits import ReplaceUnit
from asdm.plan.presets import PRESETS
from asdm.records.bench import MEASURES, Measure
from asdm.records.measurement import Estimate
from asdm.records.units import Units
from asdm.utils.record import sha256_of
from asdm_prof.planner import plan as planner
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Profile
from asdm_prof.search.study import FileLocks
from asdm_prof.sensitivity import study
from benchmarks import baselines
from benchmarks.proof import __main__ as script, evidence, power, run, sheet, training
from benchmarks.proof.evidence import parts
from benchmarks.proof.evidence.equal import Equivalence, equivalence_sentence
from benchmarks.proof.evidence.parts import holm
from benchmarks.proof.records import Proof, ProofResult
from benchmarks.proof.rows import ProofSettings, all_rows, chosen_rows, plans_of
from tests.asdm_prof import synthetic

ROWS = "bk_sdm,a_sdm_clme_half,no_vgg"
PROMPTS = 2


def options(teacher: Path, output: Path, **changes: Any) -> dict[str, Any]:
    small = {
        "steps": 4,
        "batch": 2,
        "captions": 5,
        "curve": 5,
        "ablation_captions": 4,
        "drawing_steps": 1,
        "threads": 1,
        "budgets": "0.9",
    }
    settings = asdict(ProofSettings(str(teacher), **small))
    shown = {name: settings[name] for name in settings.keys() - {"data", "split"}}
    measuring = {"seeds": 1, "prompts": PROMPTS, "timesteps": 1, "plans": 0, "pairs": 4, "backend": "fake"}
    return {"output": output, "rows": ROWS} | shown | measuring | changes


@pytest.fixture(scope="module")
def finished(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the experiment has run, in two sittings, and its students have been timed.

    The damage is made up; measuring it is the subject of `tests/asdm_prof/sensitivity`.
    """
    output = tmp_path_factory.mktemp("proof")
    profile = study.load_or_profile(output / "profile.json", str(tiny_pipeline), ProfileSettings(backend="fake"))
    damage = synthetic.damage_of(profile).model_copy(update={"prompts": PROMPTS, "timesteps": (500,)})
    damage.save(output / "damage.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(output)
        patch.setattr(metrics, "HALVES", 8)  # behind the interval of a distance
        with pytest.MonkeyPatch.context() as undrawn:
            undrawn.setattr(script, "PROOF", ())  # the figures are drawn once, of all
            script.main(**options(tiny_pipeline, output, rows="bk_sdm"))
            script.main(**options(tiny_pipeline, output))
        script.main(**options(tiny_pipeline, output, latency=True))
        yield output


def test_every_row_is_trained_judged_and_timed(finished: Path) -> None:
    proof = Proof.load(finished / "proof.json")
    assert [row.name for row in proof.rows] == ["teacher", *ROWS.split(",")]
    teacher, *others = proof.rows
    for row in others:
        (result,) = row.results
        assert (result.seed, result.pictures) == (0, 4 if row.ablates or row.name.endswith("half") else 8)
        assert {"commit", "cpu"} <= result.environment.keys()
        assert result.seconds > 0
        assert result.peak_memory_bytes > 4 * row.params
        assert result.metrics.keys() == teacher.results[0].metrics.keys()
        assert result.drawn == (4 if row.name in ("a_sdm_clme_half", "no_vgg") else 5)
        assert row.latency is not None
        assert len(row.latency.student_s) == len(row.latency.teacher_s) == 4
        assert row.params < teacher.params
    trainable = {row.name: row.results[0].trainable for row in others}
    assert trainable["bk_sdm"] == proof.rows[1].params
    assert [bool(row.results[0].gates) for row in others] == [False, True, True]
    assert trainable["a_sdm_clme_half"] == trainable["no_vgg"] < proof.row("no_vgg").params
    assert proof.row("a_sdm_clme_half").latency == proof.row("no_vgg").latency  # one plan, timed once
    assert proof.timing.backend == "fake"
    assert set(proof.noise) == set(teacher.results[0].metrics)
    assert {one.value for name, one in teacher.results[0].metrics.items() if "to_teacher" in name} == {0.0}


def test_a_decisive_row_has_a_learning_curve_that_ends_with_the_student(finished: Path) -> None:
    proof = Proof.load(finished / "proof.json")
    (result,) = proof.row("bk_sdm").results
    assert [point.pictures for point in result.curve] == [2, 4, 6, 8]
    assert all(point.metrics.keys() == result.metrics.keys() for point in result.curve)
    drawn = [point.metrics["latent_mse_to_teacher"] for point in result.curve]
    assert len(set(drawn)) == 4
    assert drawn[-1] == pytest.approx(result.metrics["latent_mse_to_teacher"].value, rel=1e-4)
    assert proof.row("no_vgg").results[0].curve == ()


def test_an_ablation_takes_the_first_stage_that_it_has_in_common(finished: Path) -> None:
    base, ablation = (finished / "proof-work/students" / name / "seed-0" for name in ("a_sdm_clme_half", "no_vgg"))
    first, last = (f"stages/{stage}/diffusion_pytorch_model.safetensors" for stage in ("compressed", "combined"))
    assert (base / first).read_bytes() == (ablation / first).read_bytes()
    assert (base / last).read_bytes() != (ablation / last).read_bytes()
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (base, ablation)]
    assert logs[0][0] == logs[1][0], "with its time"
    assert logs[0][1] != logs[1][1]


def a_tenth(measured: Any) -> Any:
    """A latency or a share at a tenth of its value; the fake clock has every unit of a tiny network at its floor."""
    tenth = {name: tuple(one / 10 for one in value) if name == "samples" else value / 10 for name, value in measured}
    return measured.model_copy(update=tenth)


def test_ours_is_planned_on_what_was_measured_elsewhere_and_starts_from_refitted_units(
    finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PROOF", ())
    measured, output = tmp_path / "measured", tmp_path / "out"
    measured.mkdir()
    settings = ProfileSettings(backend="fake", options="no_feed_forward")
    profile = study.load_or_profile(measured / "profile.json", str(tiny_pipeline), settings)
    cheap = [option.model_copy(update={name: a_tenth(getattr(option, name)) for name in ("latency_s", "share")})
             for option in profile.options]  # fmt: skip
    profile = profile.model_copy(update={"options": tuple(cheap)})
    profile.save(measured / "profile.json", force=True)
    damage = synthetic.damage_of(profile)
    replaced = tuple(row for row in damage.edits if isinstance(row.edit, ReplaceUnit))
    damage.model_copy(update={"edits": replaced}).save(measured / "damage.json")
    script.main(**options(tiny_pipeline, output, rows="ours_0.98", budgets="0.98", measured=measured))
    saved = Proof.load(output / "proof.json")
    assert [path.name for path in output.glob("*.json")] == ["proof.json"]  # nothing was measured again
    assert saved.profile_sha256 == profile.sha256()
    work = output / "proof-work"
    run_record = json.loads((work / "students/ours_0.98/seed-0/run.json").read_text())
    library = Units.load(work / "units/ours_0.98/units.json")
    assert sorted(unit.edit.unit for unit in library.units) == sorted(
        edit.unit for edit in saved.row("ours_0.98").edits
    )
    assert len(library.units) > 0
    assert run_record["identity"]["units_sha256"] == library.sha256()


def test_a_profile_of_other_weights_is_refused(finished: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    other = Profile.load(finished / "profile.json").model_copy(update={"weights_sha256": "0" * 64})
    other.save(tmp_path / "profile.json")
    shutil.copy(finished / "damage.json", tmp_path)
    with pytest.raises(ValueError, match=r"^the profile is of weights 000000000000, but .* has [0-9a-f]{12}\.$"):
        script.main(**options(tiny_pipeline, tmp_path / "out", measured=tmp_path))


def test_the_same_command_again_does_nothing(
    finished: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trains(*_: Any, **__: Any) -> None:
        raise AssertionError("a student was trained again")

    before = Proof.load(finished / "proof.json")
    monkeypatch.setattr(training, "distill", trains)
    monkeypatch.setattr(script, "PROOF", ())
    script.main(**options(tiny_pipeline, finished))
    assert Proof.load(finished / "proof.json") == before


def test_a_student_that_another_process_trains_is_left_to_it(
    finished: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr(script, "PROOF", ())
    monkeypatch.setattr(run, "train_and_judge", lambda row, *_: trained.append(row.name))
    locks = FileLocks(finished / "proof-work" / "locks")
    assert locks.take("a_sdm-0")
    script.main(**options(tiny_pipeline, finished, rows=f"{ROWS},a_sdm"))
    assert trained == []
    assert Proof.load(finished / "proof.json").row("a_sdm").results == ()
    locks.close()
    with pytest.raises(AttributeError):  # let go of, it is trained here: by a stand-in, which gives nothing to keep
        script.main(**options(tiny_pipeline, finished, rows=f"{ROWS},a_sdm"))
    assert trained == ["a_sdm"]


def test_another_experiment_is_refused(finished: Path, tiny_pipeline: Path) -> None:
    with pytest.raises(ValueError, match=r"holds another experiment: its batch is 2, not 3"):
        script.main(**options(tiny_pipeline, finished, batch=3))
    with pytest.raises(ValueError, match=r"unknown row 'best'; choose from teacher, bk_sdm"):
        script.main(**options(tiny_pipeline, finished, rows="best"))
    with pytest.raises(ValueError, match=r"captions must be at most \d+ for emoji held_out,train, got 99999"):
        script.main(**options(tiny_pipeline, finished, captions=99999))
    with pytest.raises(ValueError, match=r"budgets must be numbers with commas between them, got '0\.9;0\.8'"):
        script.main(**options(tiny_pipeline, finished, budgets="0.9;0.8"))
    with pytest.raises(ValueError, match="curve must be 0 or between 4 and 5, got 3"):
        script.main(**options(tiny_pipeline, finished, curve=3))
    with pytest.raises(ValueError, match="ablation_captions must be between 4 and 5, got 7"):
        script.main(**options(tiny_pipeline, finished, ablation_captions=7))


def test_what_is_written_follows_from_the_record(finished: Path) -> None:
    text = (finished / "proof.md").read_text()
    table, _, parts = text.partition("What each part buys")
    for name in ("teacher", "bk_sdm", "noise floor", "1 seed"):
        assert name in table
    assert "a_sdm_clme_half" not in table, "it drew fewer pictures than the teacher"
    assert "| no_vgg | without the VGG loss |" in parts
    assert text.splitlines()[0].count("|") <= 9
    for name in ("quality_at_latency", "components", "learning_curves"):
        names = sorted(path.name for path in (finished / "figures").glob(f"{name}.*"))
        assert names == [f"{name}.{kind}" for kind in ("pdf", "png", "svg")]
    json.loads((finished / "proof.json").read_text())


def test_a_sheet_shows_every_row_that_is_asked_for(
    finished: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "STEPS", 1)
    work = finished / "proof-work"
    sheet.main(tmp_path / "sheet.png", work, "teacher,bk_sdm", str(tiny_pipeline))
    with Image.open(tmp_path / "sheet.png") as drawn:
        width, height = drawn.size
    assert width > 2.5 * height  # two rows of eight
    with pytest.raises(
        ValueError, match=r"no_stage1/seed-0 holds no student; train it with python -m benchmarks\.proof"
    ):
        sheet.main(tmp_path / "more.png", work, "teacher,no_stage1", str(tiny_pipeline))


def test_there_must_be_a_proof_to_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        script.main(**options(tmp_path, tmp_path / "none", latency=True))
    assert not (tmp_path / "none").exists()


def test_rows_are_data_and_keep_their_order() -> None:
    settings = ProofSettings()
    chosen = chosen_rows(settings, ["ours_0.5", "bk_sdm_base"])
    assert [row.name for row in chosen] == ["teacher", "bk_sdm_base", "ours_0.5"]
    rows = all_rows(settings)
    known = {row.name for row in rows}
    assert {row.rival for row in rows} | {row.ablates for row in rows} <= known | {None}
    assert len({sha256_of(str(row)) for row in rows}) == len(rows)
    assert {row.name: row.rival for row in rows if row.name.startswith("ours")} == {
        "ours_0.78": None, "ours_0.65": "bk_sdm_base", "ours_0.5": "bk_sdm",
    }  # fmt: skip
    assert sum(row.decisive for row in rows[1:]) == 7  # six and the teacher in training
    assert {row.share for row in rows if row.ablates} == {next(r for r in rows if r.name == "a_sdm_clme_half").share}


def test_every_row_has_its_plan(tmp_path: Path) -> None:
    profile, rows = synthetic.profile(), all_rows(ProofSettings(budgets="0.9,0.8"))
    plans = plans_of(rows, profile, synthetic.damage_of(profile), tmp_path)
    assert [path.stem for path in sorted((tmp_path / "plans").iterdir())] == sorted(plans)
    used = {name: {getattr(edit, "with_", edit.op) for edit in plan.edits} for name, plan in plans.items()}
    assert used["a_sdm_clme"] == used["a_sdm_clme_half"] == {"remove_layer", "gri_attention", "cond_conv"}
    assert used["teacher_trained"] == set()
    assert used["plain_attention"] == {"remove_layer", "cond_conv"}
    assert used["kv_downsample"] == {"remove_layer", "kv_downsample", "cond_conv"}
    assert used["a_sdm"] == {"remove_layer", "gri_attention"}
    options = {
        name: {str(edit.options) for edit in plan.edits if getattr(edit, "with_", "") == with_}
        for name, plan in plans.items()
        for with_ in (("cond_conv" if "clme" in name else "gri_attention"),)
    }
    assert options["gri_quadrants"] == {"{'regions': 'quadrants'}"}
    assert options["gri_whole"] == {"{'regions': 'whole'}"}
    assert options["clme_original"] == {"{'gate': 'input', 'original': True}"}
    ratio = {name: planner.price(profile, plans[name].edits).ratio for name in ("ours_0.9", "ours_0.8", "bk_sdm")}
    assert ratio["ours_0.8"] <= 0.8 < ratio["ours_0.9"] <= 0.9
    assert ratio["bk_sdm"] == pytest.approx(ratio["ours_0.8"], abs=0.06)


# ---------------------------------------------------------------------------------------------- what it says


def made_up(seeds: int = 3) -> Proof:
    return synthetic.proof_of(synthetic.profile(), seeds)


def test_what_seeds_do_is_pooled_over_rows_that_lack_some() -> None:
    """By simulation: the variance of what neither a row nor a seed explains, with its degrees of freedom."""
    rng, measure, found = np.random.default_rng(0), MEASURES["clip_score"], []

    def row(seeds: range, of_seed: np.ndarray) -> Any:
        level, results = rng.normal(0, 5), []
        for seed in seeds:
            value = SimpleNamespace(value=level + of_seed[seed] + rng.normal())
            results.append(SimpleNamespace(seed=seed, metrics={"clip_score": value}))
        return SimpleNamespace(results=results)

    for _ in range(300):
        of_seed = rng.normal(0, 3, 3)
        base, *rest = [row(range(count), of_seed) for count in (3, 3, 2, 2, 1)]
        variance, freedom = parts._seed_noise(base, rest, measure) or (0.0, 0)
        assert freedom == 10 - 4 - 3 + 1
        found.append(variance)
    assert np.mean(found) == pytest.approx(1, abs=0.1)
    assert parts._seed_noise(base, rest[2:], measure) is None


def test_how_far_gates_opened_is_told() -> None:
    proof = made_up()
    assert evidence.gates_sentence(proof) == ""
    gates = {"down_blocks.0.resnets.0.conv1": (0.02, 0.1), "up_blocks.3.resnets.0.conv2": (0.05, 0.01, 0.3)}
    results = tuple(one.model_copy(update={"gates": gates}) for one in proof.row("a_sdm").results)
    rows = (one.model_copy(update={"results": results}) if one.name == "a_sdm" else one for one in proof.rows)
    text = evidence.markdown(proof.model_copy(update={"rows": tuple(rows)}), "proof.json")
    assert "and its other experts): a_sdm 0.0200 to 0.0500 and 0.0100 to 0.300." in text


def test_a_quarter_of_the_rivals_loss_is_told_as_such() -> None:
    (verdict,) = evidence.verdicts(made_up())
    assert (verdict.row.name, verdict.rival.name) == ("ours", "bk_sdm")
    for share in verdict.shares:
        assert share.share is not None
        assert share.share.median == pytest.approx(0.25)
        assert share.share.low < 0.25 < share.share.high
    assert verdict.met
    said = evidence.verdict_sentence(verdict)
    assert "ours at 0.760× [0.750, 0.770] against bk_sdm at 0.770×" in said
    assert "With the whole interval below half of its rival’s loss in 4 of 4" in said
    assert said.endswith("worse in none: the aim is met.")


def test_half_of_the_loss_is_counted_with_its_interval_and_at_equal_latency_alone() -> None:
    """A student of 0.4 of the loss that its seeds leave at ± 0.3, and one that is slower than its rival."""
    proof = made_up()

    def wild(result: ProofResult) -> ProofResult:
        factor, moved = 1 + 0.3 * ((result.seed or 0) - 1), {}  # of the loss of 0.4
        for name, one in result.metrics.items():
            by = (factor - 1) * (one.value - proof.rows[0].results[0].metrics[name].value)
            samples = tuple(sample + by for sample in one.samples)
            moved[name] = one.model_copy(update={"value": one.value + by, "samples": samples})
        return result.model_copy(update={"metrics": moved})

    def verdict_of(row: Any) -> Any:
        rows = tuple(row if one.name == "ours" else one for one in proof.rows)
        (verdict,) = evidence.verdicts(proof.model_copy(update={"rows": rows}))
        return verdict

    ours, unsure = proof.row("ours"), proof.row("a_sdm")
    uncertain = ours.model_copy(update={"results": tuple(map(wild, unsure.results))})
    assert all(share.share.median == pytest.approx(0.4, abs=0.01) for share in verdict_of(uncertain).shares)
    assert (verdict_of(uncertain).won, verdict_of(uncertain).lost, verdict_of(uncertain).met) == ([], [], False)
    slow = ours.model_copy(update={"latency": proof.row("no_gri").latency})
    assert len(verdict_of(slow).won) == 4
    assert not verdict_of(slow).met
    assert "worse in none, but slower: the aim is not met." in evidence.verdict_sentence(verdict_of(slow))


def test_a_defeat_is_told_too() -> None:
    proof = made_up()
    other = {"ours": "bk_sdm", "bk_sdm": "ours"}
    results = {row.name: row.results for row in proof.rows}
    rows = [row.model_copy(update={"results": results[other.get(row.name, row.name)]}) for row in proof.rows]
    (verdict,) = evidence.verdicts(proof.model_copy(update={"rows": tuple(rows)}))
    assert not verdict.met
    sentence = "worse in Fréchet distance, CLIP score, R@1, latent MSE to teacher: the aim is not met."
    assert sentence in evidence.verdict_sentence(verdict)


def test_equivalence_is_shown_where_the_whole_interval_is_allowed() -> None:
    proof = made_up()
    equal = [one.shown for one in evidence.equivalences(proof, proof.row("no_gri"))]
    assert equal == [False, False, False]
    twin = proof.row("ours").model_copy(update={"results": tuple(
        result.model_copy(update={"seed": seed}) for seed in range(3) for result in proof.rows[0].results
    )})  # fmt: skip
    found = evidence.equivalences(proof, twin)
    assert [one.measure.name for one in found] == ["frechet_distance", "clip_score", "recall_at_1"]
    assert all(one.shown and one.difference.median == 0 == one.seeds[0] == one.seeds[1] for one in found)
    assert [one.margin for one in found] == pytest.approx([0.5, 3.0, 0.03])
    (said,) = evidence.equivalence_sentences(proof)
    assert said == (
        "ours at 0.760× [0.750, 0.770] is neither equal nor better, as far as is shown, in Fréchet distance, CLIP "
        "score, R@1."
    )
    table = evidence.equivalence_table(proof)
    assert [(row["metric"], row["allowed"], row["these students are"]) for row in table] == [
        ("Fréchet distance", "±0.5", "not shown"), ("CLIP score", "±3", "not shown"), ("R@1", "±0.03", "not shown"),
    ]  # fmt: skip


def test_ours_stands_beside_the_teacher_that_was_trained_as_it_was() -> None:
    """Its loss beside the control is what it loses beside the teacher, less what the control does."""
    proof = made_up()
    trained_on = proof.row("no_gri").model_copy(update={"name": "teacher_trained", "ablates": None})
    proof = proof.model_copy(update={"rows": (*proof.rows, trained_on)})
    ours = proof.row("ours")
    clip = {one.measure.name: one for one in evidence.equivalences(proof, ours, trained_on)}["clip_score"]
    assert clip.difference.median == pytest.approx(0.15 * 20)
    assert clip.seeds == pytest.approx((0.15 * 20, 0.15 * 20))
    assert clip.of_trainings.low == pytest.approx(clip.difference.low)  # seeds do the same to both
    assert [row["beside"] for row in evidence.equivalence_table(proof)] == ["the teacher"] * 3 + ["teacher_trained"] * 3
    fewer = trained_on.model_copy(update={"results": (trained_on.results[0].model_copy(update={"seed": 9}),)})
    assert evidence.equivalences(proof, ours, fewer) == []


def test_captions_of_training_and_held_out_ones_are_told_apart() -> None:
    proof = made_up()
    n = proof.pictures
    assert evidence.splits_table(proof) == []
    halves = proof.model_copy(update={"splits": ("train",) * (n - 20) + ("held_out",) * 20})
    rows = evidence.splits_table(halves)
    assert [row["row"] for row in rows] == ["teacher", "bk_sdm", "a_sdm", "ours", "no_clme", "no_gri"]
    own = np.array(proof.rows[0].results[0].metrics["clip_score"].samples)
    assert rows[0]["CLIP score, held_out (20)"].startswith(f"{own[-20:].mean():.1f} [")
    assert rows[0][f"CLIP score, train ({n - 20})"].startswith(f"{own[:-20].mean():.1f} [")


def test_a_distance_of_ever_more_pictures_is_told_from_halves() -> None:
    proof = made_up()
    one = proof.rows[0].results[0].metrics["frechet_distance"]
    said = evidence.unbiased_sentence(proof)
    assert f"they are teacher {2 * one.value - np.mean(one.samples):#.3g}, bk_sdm" in said


def test_rows_of_other_pictures_are_not_compared() -> None:
    proof = made_up()
    few = proof.row("no_gri").results[0]
    fewer = few.model_copy(update={"metrics": {name: one.model_copy(update={"samples": one.samples[:-1]})
                                               for name, one in few.metrics.items()}})  # fmt: skip
    rows = tuple(row.model_copy(update={"results": (fewer,)}) if row.name == "no_gri" else row for row in proof.rows)
    with pytest.raises(ValueError, match=r"^no_gri and a_sdm were judged by 59 and 60 pictures\.$"):
        evidence.components(proof.model_copy(update={"rows": rows}))


@pytest.mark.parametrize(
    ("more_is_better", "low", "high", "verdict"),
    [
        (False, -0.4, 0.4, "equal"),
        (False, -2.0, -1.0, "better"),
        (False, -2.0, 0.4, "not worse"),
        (False, -2.0, 0.6, "not shown"),
        (True, 1.0, 2.0, "better"),
        (True, -0.4, 2.0, "not worse"),
        (True, -2.0, -1.0, "not shown"),
    ],
)
def test_what_is_no_equal_may_still_be_no_worse(more_is_better: bool, low: float, high: float, verdict: str) -> None:
    measure = Measure("some", "some", more_is_better)
    between = Estimate(median=(low + high) / 2, low=low, high=high)
    one = Equivalence(measure, between, between, (low, high), margin=0.5)
    assert one.verdict == verdict
    sentence = equivalence_sentence(made_up().row("ours"), [one])
    said = {"equal": "is equal to", "better": "is better than", "not worse": "is not worse", "not shown": "is neither"}
    assert said[verdict] in sentence


def test_a_pilot_says_how_many_pictures_and_seeds_are_enough() -> None:
    """Three seeds differ by 0.01 of their loss each, and pictures by nothing that their teacher's do not."""
    proof = made_up()
    row = proof.row("ours")
    fewest = {one.measure.name: one for one in power.variations(proof, row)}["clip_score"]
    assert fewest.of_seeds == pytest.approx(0.01 * 20)
    assert fewest.of_pictures == pytest.approx(0, abs=1e-9)
    assert fewest.power(100, 4) == pytest.approx(1 - 2 * norm.sf(3.0 / (0.2 / 2)))  # within 5 % of 60
    designs = power.designs(proof)
    assert [one.hours for one in designs] == sorted(one.hours for one in designs)
    assert "100 pictures and 1 seed show with" in power.sentence(proof)
    assert power.sentence(made_up(1)) is None


def test_power_is_the_chance_that_an_interval_fits() -> None:
    """By simulation: pictures tell how wide the interval of no difference is, they and seeds where it lies."""
    own = made_up().rows[0].results[0].metrics["frechet_distance"]
    one = power.Variation(MEASURES["frechet_distance"], 0.15, 0.05, 60, own)
    assert one.margin(60) == pytest.approx(0.05 * own.value)
    by_few = np.mean(own.samples) - own.value
    assert one.margin(30) == pytest.approx(0.05 * (own.value + by_few))
    rng = np.random.default_rng(0)
    se = 0.15 * 60**0.5 / 90**0.5
    drawn = rng.normal(0, np.hypot(se, 0.05 / 2**0.5), 100_000)
    fits = np.abs(drawn) + 1.96 * se < one.margin(90)
    assert one.power(90, 2) == pytest.approx(fits.mean(), abs=0.01)
    assert one.power(90, 2, two_sided=False) == pytest.approx((drawn + 1.96 * se < one.margin(90)).mean(), abs=0.01)
    assert one.power(10, 1) == 0


def test_only_our_rows_are_to_be_their_teachers_equal() -> None:
    proof = made_up()
    designs = power.designs(proof)

    def wild(result: ProofResult) -> ProofResult:
        far = {name: one.model_copy(update={"value": one.value * (2 + (result.seed or 0))})
               for name, one in result.metrics.items()}  # fmt: skip
        return result.model_copy(update={"metrics": far})

    rival = proof.row("bk_sdm").model_copy(update={"results": tuple(map(wild, proof.row("bk_sdm").results))})
    rows = tuple(rival if row.name == rival.name else row for row in proof.rows)
    assert power.designs(proof.model_copy(update={"rows": rows})) == designs, "it is not to be the teacher's equal"


def test_components_that_help_and_that_do_not() -> None:
    clme, gri = evidence.components(made_up())
    every = "Fréchet distance, CLIP score, R@1, latent MSE to teacher"
    assert [(one.row.name, one.effect) for one in (clme, gri)] == [
        ("no_clme", f"helped ({every})"), ("no_gri", "not told apart"),
    ]  # fmt: skip
    assert clme.bought["frechet_distance"].estimate.median == pytest.approx(0.3 * 8)
    assert clme.latency is not None
    assert clme.latency.value == pytest.approx(0.02)
    said, none = evidence.parts_table(made_up())
    assert len(said) <= 8
    assert said["changed"] == "what no_clme is"
    assert said["Fréchet distance"].startswith("+2.4 [+2.4, +2.4] ±")
    assert none["the part"] == "not told apart"
    assert none["UNet ×"] == "-0.050"
    assert [one.effect for one in evidence.components(made_up(1))] == ["one seed"] * 2
    text = evidence.markdown(made_up(), "proof.json")
    assert "than a_sdm (above 0: the part helps)" in text
    assert "worse in none: the aim is met." in text
    assert "| allowed | these students are |" in text
    assert "3 training seeds of 6,400 pictures each, 60 captions, paired by picture and seed" in text
    assert "for all 8 comparisons together" in text
    assert "| no_clme | what no_clme is | +2.4 [" in text


def test_an_ablation_is_compared_seed_by_seed() -> None:
    """What all students of a seed have in common is not noise between them, and what they do not have is."""
    proof = made_up()
    (clme, _), unlike = evidence.components(proof), proof.row("no_clme").model_copy(
        update={"results": tuple(
            result.model_copy(update={"seed": seed})
            for result, seed in zip(reversed(proof.row("no_clme").results), range(3), strict=True)
        )}
    )  # fmt: skip
    rows = tuple(unlike if row.name == unlike.name else row for row in proof.rows)
    (crossed, _) = evidence.components(proof.model_copy(update={"rows": rows}))
    alike, apart = (one.bought["clip_score"].estimate for one in (clme, crossed))
    assert alike.high - alike.low < 0.01 < apart.high - apart.low
    assert alike.median == pytest.approx(apart.median)


def test_a_part_has_the_interval_that_pictures_and_seeds_leave_open() -> None:
    """By simulation: 95 % of intervals hold what is true, and are no wider than it takes, with and without seeds."""
    rng, n, rows, seeds = np.random.default_rng(0), 60, 9, 3
    proof = made_up()
    base, ablation = proof.row("a_sdm"), proof.row("no_gri")
    clip = base.results[0].metrics["clip_score"]

    def drawn(row: Any, name: str, pictures: np.ndarray, own: float) -> Any:
        each = 40 + pictures + rng.normal(0, 1, n) + own * rng.normal(0, 1, (seeds, 1)) + rng.normal(0, 2, (seeds, n))
        results = tuple(
            result.model_copy(update={"metrics": result.metrics | {
                "clip_score": clip.model_copy(update={"value": float(one.mean()), "samples": tuple(one.tolist())})}})
            for result, one in zip(row.results, each, strict=True)
        )  # fmt: skip
        return row.model_copy(update={"name": name, "results": results})

    for own in (0.0, 1.0):
        held, widths = [], []
        for _ in range(20):
            pictures = rng.normal(0, 5, n)  # what all rows make of a caption
            others = [drawn(ablation, f"no_{i}", pictures, own) for i in range(rows - 1)]
            found = (*proof.rows[:2], drawn(base, "a_sdm", pictures, own), *others)
            for one in evidence.components(proof.model_copy(update={"rows": found})):
                estimate = one.bought["clip_score"].estimate
                held.append(estimate.low < 0 < estimate.high)
                widths.append(estimate.high - estimate.low)
        assert 0.89 < np.mean(held) < 0.99
        exact = 2 * 1.96 * np.sqrt(2 * (1 / n + (own**2 + 4 / n) / seeds))
        assert np.mean(widths) == pytest.approx(exact, rel=0.2)


def test_a_label_holds_for_all_comparisons_together() -> None:
    """Holm's own rule: the smallest chance by all comparisons, the next by one less, until one is not small enough."""
    chances = {("a", "x"): 0.012, ("b", "x"): 0.04, ("c", "x"): 0.016, ("d", "x"): 0.3}
    assert holm(chances) == {("a", "x"), ("c", "x")}
    assert holm({("a", "x"): 0.013, ("b", "x"): 0.3, ("c", "x"): 0.3, ("d", "x"): 0.3}) == set()
    assert holm({}) == set()


def test_more_seeds_say_more_than_one() -> None:
    """With one seed the interval is of the pictures alone; several add their spread by Student's t."""
    one, three = (evidence.spread(made_up(n).row("ours"), "clip_score").estimate() for n in (1, 3))
    assert three.high - three.low > one.high - one.low
    assert "1 seed, so what training seeds do is not in the intervals" in evidence.markdown(made_up(1), "proof.json")
    assert "(3 seeds)" in evidence.markdown(made_up(), "proof.json")


def test_rows_are_compared_by_the_seeds_that_both_have() -> None:
    proof = made_up()
    lucky = proof.row("a_sdm").results[0].model_copy(update={"metrics": proof.rows[0].results[0].metrics, "seed": 7})
    rows = [
        row.model_copy(update={"results": {"a_sdm": (*row.results[:1], lucky), "no_clme": row.results[:1]}.get(
            row.name, row.results)}) for row in proof.rows
    ]  # fmt: skip
    uneven = proof.model_copy(update={"rows": tuple(rows)})
    (even,), (compared,) = (
        [one for one in evidence.components(proof_) if one.row.name == "no_clme"] for proof_ in (made_up(1), uneven)
    )
    assert compared.bought == even.bought
    assert compared.effect == "one seed"
    said = evidence.markdown(uneven, "proof.json")
    assert "(1 to 3 seeds; with 1, what training seeds do is not in the intervals; rows are compared" in said


def test_bk_sdms_rule_comes_nearest_to_a_latency() -> None:
    profile = synthetic.profile()
    for name in ("bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny"):
        published = PRESETS[name](profile.topology)
        at = planner.price(profile, published).ratio
        assert set(map(str, baselines.bk_style(profile, at))) == set(map(str, published))
    assert planner.price(profile, baselines.bk_style(profile, 0.8)).ratio == pytest.approx(0.8, abs=0.06)
