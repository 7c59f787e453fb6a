"""Both commands as their users type them: the whole chain on a small real UNet, and every kind of bad input."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import children
from tests.asdm_prof import synthetic
from tests.commands import files_in, refused


@pytest.fixture
def profiled(tmp_path: Path) -> Path:
    return synthetic.profile().save(tmp_path / "reports" / "sd15-eager" / "profile.json")


# ---------------------------------------------------------------------------------------------- the chain


def test_the_chain_as_typed(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """profile → rank → plan → build → bench → report, each finding what the one before wrote."""
    profile = run("asdm-prof", "profile", tiny_folder, "--time-budget", "1")
    assert profile.code == 0, profile.err
    assert "Can I believe it?" in profile.out
    assert run("asdm-prof", "rank").code == 0
    plan = run("asdm-prof", "plan", "--budget", "0.85")
    assert plan.code == 0, plan.err
    assert "the newest profile" in plan.err
    build = run("asdm", "build", "plan.json", "-o", "student/")
    assert build.code == 0, build.err
    assert "the newest plan.json" in build.err
    assert {"config.json", "plan.json", "build.json"} <= set(files_in(tmp_path / "student"))
    bench = run("asdm", "bench", "--teacher", tiny_folder, "--student", "student/", "--time-budget", "1", "--json")
    assert bench.code == 0, bench.err
    (student,) = json.loads(bench.out)["students"]
    assert student["predicted_ratio"] < 0.85
    report = run("asdm-prof", "report")
    assert report.code == 0, report.err
    (page,) = tmp_path.glob("reports/*/report.html")
    text = page.read_text()
    assert f"{student['predicted_ratio']:.2f}×" in text
    assert f"{student['unet_latency_ratio']['median']:.2f}×" in text


def test_flops_json_is_the_golden_table(run: Any) -> None:
    golden = json.loads((Path(__file__).parents[2] / "golden" / "sd15_unet.json").read_text())
    found = run("asdm-prof", "flops", "sd15", "--json")
    data = json.loads(found.out)
    rows = {row["fqn"]: row for row in [*data["units"], *data["glue"]]}
    assert set(rows) == set(golden["units"])
    assert len(rows) == 47
    for fqn, expected in golden["units"].items():
        assert {key: rows[fqn][key] for key in expected} == expected
    assert data["total"]["macs"] == golden["total"]["macs"]
    assert data["total"]["flops"] == golden["total"]["flops"]
    assert data["uncounted_ops"] == []


def test_flops_like_thop_are_the_published_totals(run: Any) -> None:
    published = json.loads((Path(__file__).parents[2] / "golden" / "published.json").read_text())["models"]
    data = json.loads(run("asdm-prof", "flops", "sd15", "--json", "--like", "thop").out)
    assert data["total"]["macs"] == published["sd15"]["thop_macs"]
    assert sum(row["macs"] for row in [*data["units"], *data["glue"]]) == data["total"]["macs"]
    components = {row["name"]: row["macs"] for row in data["components"]}
    assert components["text_encoder"] == published["clip_l_text_encoder"]["thop_macs"]
    assert components["vae_decoder"] == published["vae_decoder"]["thop_macs"]


def test_sdxl_rows_add_up_with_what_lies_outside_the_parts(run: Any) -> None:
    data = json.loads(run("asdm-prof", "flops", "sdxl", "--json").out)
    rows = [*data["units"], *data["glue"]]
    assert rows[-1]["fqn"] == "other"
    for column in ("params", "macs", "conv_macs", "linear_macs", "attention_macs"):
        assert sum(row[column] for row in rows) == data["total"][column]


@pytest.mark.parametrize("form", ["csv", "md", "json", "table"])
def test_tables_come_in_four_formats(run: Any, profiled: Path, form: str) -> None:
    found = run("asdm-prof", "rank", profiled, "--format", form)
    assert found.code == 0, found.err
    leader = "up_blocks.3.attentions" if form != "table" else "up3.t"
    assert found.out.count(leader) >= 3


def test_json_is_alone_on_stdout(run: Any, profiled: Path) -> None:
    found = run("asdm-prof", "plan", "--budget", "0.8", "--json")
    assert json.loads(found.out)["schema"] == "asdm.plan/1"
    assert "Wrote" in found.err


def test_the_same_plan_twice_is_the_same_file(run: Any, profiled: Path, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        assert run("asdm-prof", "plan", "--budget", "80%", "-o", name).code == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_plan_may_be_named_by_its_profile(run: Any, profiled: Path) -> None:
    assert run("asdm-prof", "plan", "--budget", "0.8", "--profile", profiled.parent).code == 0


def test_validate_then_plan_with_what_it_measured(run: Any, tmp_path: Path) -> None:
    """In an empty folder the family is profiled first; the plan is made from that profile and the measured error."""
    found = run("asdm-prof", "validate", "sd15", "--plans", "3", "--backend", "fake", "-o", "validate.json")
    assert found.code == 0, found.err
    assert "profiling it first" in found.err
    assert "Predicted and measured" in found.out
    validation = json.loads((tmp_path / "validate.json").read_text())
    assert validation["schema"] == "asdm.validate/1"
    assert len(validation["plans"]) == 3
    assert not (tmp_path / "validate.json.run").exists()
    again = run("asdm-prof", "validate", "sd15", "--plans", "3", "--backend", "fake", "-o", "b.json", "--json")
    assert "the newest profile of sd15" in again.err
    assert json.loads(again.out)["profile_sha256"] == validation["profile_sha256"]
    plan = run("asdm-prof", "plan", "--budget", "0.8", "--validation", "validate.json", "--json")
    assert plan.code == 0, plan.err
    assert "validation_sha256" in json.loads(plan.out)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("budget", ["0", "1.5", "-3", "fast", "NaN"])
def test_a_budget_that_is_none(run: Any, profiled: Path, budget: str, tmp_path: Path) -> None:
    before = files_in(tmp_path)
    refused(run("asdm-prof", "plan", "--budget", budget), repr(budget), "0.8", "80%", "250ms", "x1.3")
    assert files_in(tmp_path) == before


def test_an_infeasible_budget(run: Any, profiled: Path) -> None:
    refused(run("asdm-prof", "plan", "--budget", "0.02"), "0.02", "lowest reachable", code=3)


def test_an_unknown_family(run: Any) -> None:
    refused(run("asdm-prof", "flops", "sd16"), "'sd16'", "sd15", "sdxl")
    refused(run("asdm-prof", "profile", "sd16"), "'sd16'", "sd15", "sdxl")
    refused(run("asdm-prof", "flops", "./nowhere/"), "./nowhere/")


def test_a_validation_with_other_settings_than_its_profile(run: Any, profiled: Path) -> None:
    found = run("asdm-prof", "validate", "sd15", "--profile", profiled, "--dtype", "bf16", "-o", "v.json")
    refused(found, str(profiled), "dtype fp32, not bf16")


def test_no_profile_yet(run: Any) -> None:
    refused(run("asdm-prof", "rank"), "asdm-prof profile sd15")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "asdm.profile/1", "units": [', ("not valid JSON", "line 1")),
        ('{"schema": "asdm.profile/2"}', ("asdm.profile/2", "upgrade asdm")),
        ('{"schema": "asdm.plan/1"}', ("'asdm.plan/1'", "asdm.profile/1")),
        ("[]", ("asdm.profile/1",)),
        ('{"schema": "asdm.profile/1"}', ("created_utc", "required")),
        ('{"schema": "asdm.profile/1", "seed": NaN}', ("NaN",)),
    ],
)
def test_a_broken_profile(run: Any, tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "broken.json").write_text(text)
    refused(run("asdm-prof", "rank", "broken.json"), "broken.json" if "NaN" not in text else "", *words)


def test_an_output_that_exists(run: Any, profiled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("mine")
    refused(run("asdm-prof", "plan", "--budget", "0.8", "-o", "mine.json"), "mine.json exists", "--force")
    assert (tmp_path / "mine.json").read_text() == "mine"
    assert run("asdm-prof", "plan", "--budget", "0.8", "-o", "mine.json", "--force").code == 0


def test_a_student_folder_that_exists_is_refused_before_any_work(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "notes.txt").write_text("mine")
    refused(run("asdm", "build", "a_sdm", "--teacher", tiny_folder, "-o", "student"), "student exists", "--force")


def test_a_folder_that_cannot_be_written(run: Any, profiled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("asdm-prof", "plan", "--budget", "0.8", "-o", "file/plan.json"), "cannot write")
    refused(run("asdm-prof", "plan", "--budget", "0.8", "-o", "/proc/nowhere/plan.json"), "cannot write")


def edited_plan(tmp_path: Path, **changes: Any) -> Path:
    plan = json.loads(synthetic.plan().to_json()) | changes
    path = tmp_path / "hand.json"
    path.write_text(json.dumps(plan))
    return path


def test_a_plan_with_an_unknown_unit(run: Any, tmp_path: Path) -> None:
    path = edited_plan(tmp_path, edits=[{"op": "remove_unit", "unit": "up_blocks.3.attentions.7"}])
    refused(run("asdm", "build", path, "-o", "s"), "up_blocks.3.attentions.7", "up_blocks.3.attentions.0")
    assert not (tmp_path / "s").exists()


def test_a_plan_with_a_misspelt_field(run: Any, tmp_path: Path) -> None:
    path = edited_plan(tmp_path, edits=[{"op": "remove_unit", "unti": "mid_block.attentions.0"}])
    refused(run("asdm", "build", path, "-o", "s"), "hand.json", "edits.0")
    path = edited_plan(tmp_path, edits=[{"op": "delete", "unit": "x"}])
    refused(run("asdm", "build", path, "-o", "s"), "edits.0", "remove_layer", "replace_unit")


def test_a_plan_for_another_teacher(run: Any, tmp_path: Path) -> None:
    path = edited_plan(tmp_path)
    refused(run("asdm", "build", path, "--teacher", "sd21_base", "-o", "s"), "another teacher", "sd21_base")


def test_a_replacement_that_does_not_exist(run: Any, tmp_path: Path) -> None:
    edit = {"op": "replace_unit", "unit": "up_blocks.3.attentions.0", "with": "magic"}
    refused(run("asdm", "build", edited_plan(tmp_path, edits=[edit]), "-o", "s"), "'magic'", "gri_attention")


def test_neither_plan_nor_preset(run: Any) -> None:
    refused(run("asdm", "build", "b_sdm", "-o", "s"), "'b_sdm'", "a_sdm", "bk_sdm_base")
    refused(run("asdm", "bench", "--student", "b_sdm"), "'b_sdm'", "a_sdm", "bk_sdm_base")


def test_an_unknown_renderer(run: Any, profiled: Path) -> None:
    refused(run("asdm-prof", "report", "--format", "html,docx"), "'docx'", "html")


def test_weights_that_are_not_there(run: Any) -> None:
    refused(run("asdm-prof", "profile", "sd15", "--weights", "./gone"), "./gone")


def test_wrong_usage(run: Any) -> None:
    found = run("asdm-prof", "plan")
    assert found.code == 2
    assert "--budget" in found.err


def test_a_report_does_not_mix_teachers(run: Any, profiled: Path, tmp_path: Path) -> None:
    other = edited_plan(tmp_path, teacher_config_sha256="0" * 64)
    refused(run("asdm-prof", "report", profiled, "--plan", other), "another teacher")
    assert not list(tmp_path.rglob("report.html"))


def test_a_report_is_never_written_over_another(run: Any, profiled: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "units.csv").write_text("mine")
    refused(run("asdm-prof", "report", profiled, "--format", "csv", "-o", "out"), "units.csv exists", "--force")
    assert (tmp_path / "out" / "units.csv").read_text() == "mine"


def test_more_memory_than_there_is(run: Any) -> None:
    refused(run("asdm-prof", "profile", "sd15", "--batch", "5000"), "needs about", "GiB", "--batch")


def test_ctrl_c_in_mid_profile_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    folder, console = tmp_path / "here", tmp_path / "console"
    folder.mkdir()
    words = ["profile", tiny_folder, "--time-budget", 500, "--size", 256]
    process = children.start(words, console, program="asdm-prof", folder=folder)
    while not (console.exists() and "warming up" in console.read_text()):
        assert process.is_alive(), console.read_text()
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    assert children.ended(process, 60) == 130
    assert "Interrupted" in console.read_text()
    assert "Traceback" not in console.read_text()
    assert files_in(folder) == []


# ---------------------------------------------------------------------------------------------- damage


def test_from_sensitivity_to_plan_and_frontier(run: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    few = ("--prompts", "2", "--timesteps", "1", "--plans", "0", "--replacement", "gri_attention")
    measured = run("asdm-prof", "sensitivity", tiny_pipeline, "--data", "emoji", *few, "-o", "damage.json")
    assert measured.code == 0, measured.err
    assert "teacher's forwards" in measured.out
    assert files_in(tmp_path) == ["damage.json"], "nothing unfinished is left"
    found = json.loads((tmp_path / "damage.json").read_text())
    assert found["schema"] == "asdm.damage/1"
    assert {"value", "low", "high"} <= found["edits"][0]["damage"].keys()
    assert found["edits"][0]["edit"]["op"] == "remove_unit"
    assert "exists" in run("asdm-prof", "sensitivity", tiny_pipeline, *few, "-o", "damage.json").err

    assert run("asdm-prof", "profile", tiny_pipeline, "--backend", "fake").code == 0
    plan = run("asdm-prof", "plan", "--budget", "0.8", "--damage", "damage.json", "--json")
    assert plan.code == 0, plan.err
    made = json.loads(plan.out)
    assert made["damage_from"] == "measured damage"
    assert made["proof"]["gap"] == 0
    assert made["why"]["binding"] == ["latency"]
    assert {regret["unit"] for regret in made["why"]["regrets"]} >= {"mid_block.attentions.0"}

    front = run("asdm-prof", "frontier", "--damage", "damage.json", "--budget", "0.8", "--best", "3", "--json")
    assert front.code == 0, front.err
    points = json.loads(front.out)
    assert points["schema"] == "asdm.frontier/1"
    assert points["points"][0]["edits"] == []
    assert points["best"][0]["damage"] == pytest.approx(made["proof"]["damage"])
    assert len(points["best"]) == 3


def test_damage_of_another_teacher_is_refused(run: Any, profiled: Path, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(DAMAGE_OF_ANOTHER))
    refused(run("asdm-prof", "plan", "--budget", "0.8", "--damage", "d.json"), "another model than the profile's sd15")
    refused(run("asdm-prof", "frontier", "--damage", "d.json"), "another model than the profile's sd15")


DAMAGE_OF_ANOTHER: dict[str, Any] = {
    "schema": "asdm.damage/1", "created_utc": "", "command": "", "family": "mini", "weights": "w",
    "weights_sha256": "0" * 64, "teacher_config_sha256": "1" * 64, "data": "emoji", "split": "train", "prompts": 2,
    "timesteps": [1], "seed": 0, "dtype": "fp32", "device": "cpu", "threads": 1, "size": 512,
    "prediction_type": "epsilon", "teacher_power": 1.0, "edits": [], "environment": {},
    "work": {"students": 0, "plain_forwards": 1, "least_forwards": 1, "done_forwards": 1, "seconds": 1,
             "forward_s": 1, "least_s": 1, "reached": 1},
}  # fmt: skip


def test_budgets_of_several_kinds(run: Any, profiled: Path) -> None:
    plan = run("asdm-prof", "plan", "--budget", "0.9", "--params", "0.8", "--no-why")
    assert plan.code == 0, plan.err
    refused(run("asdm-prof", "plan"), "no budget; give one or more of --budget", "--memory")
    refused(run("asdm-prof", "plan", "--params", "2"), "for params", "got '2'", "a fraction (0.8)")
    refused(run("asdm-prof", "frontier", "--by", "beauty"), "'beauty'", "latency, macs, params")
    refused(run("asdm-prof", "frontier", "--best", "3"), "the best plans need a budget")
    both = run("asdm-prof", "plan", "--budget", "0.2", "--params", "0.9")
    refused(both, "0.2 and 0.9 of params together", "Cheapest relaxation of all: latency 0.", code=3)
    refused(run("asdm-prof", "plan", "--macs", "0.01"), "lowest reachable is", "of the teacher's macs", code=3)
