"""Rank transfer: what agrees and what does not between profiles, and a plan's price by each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asdm.measure.statistics import estimate, latency
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm_prof.analysis import transfer
from asdm_prof.planner import plan as planner
from asdm_prof.records import Comparison, Profile
from asdm_prof.renderers import figures
from tests.asdm_prof import synthetic
from tests.commands import Result, refused


def elsewhere(profile: Profile, resnet: float = 1.0, **settings: Any) -> Profile:
    """Another setting, in which ResNets take `resnet` times as long."""

    def times(part: Any) -> list[float]:
        return [(resnet if part.kind == "resnet" else 1.0) * s for s in part.latency_s.samples]

    whole = np.sum([times(part) for part in profile.parts], axis=0)

    def changed(part: Any) -> Any:
        return part.model_copy(
            update={"latency_s": latency(times(part)), "share": estimate(np.asarray(times(part)) / whole)}
        )

    return profile.model_copy(
        update={"units": tuple(map(changed, profile.units)), "glue": tuple(map(changed, profile.glue)), **settings}
    )


def compared(*profiles: Profile, **options: Any) -> Comparison:
    return transfer.compare([(profile, f"{i}.json") for i, profile in enumerate(profiles)], **options)


def test_the_matrix_is_symmetric_with_ones_on_its_diagonal() -> None:
    base = synthetic.profile()
    found = compared(base, elsewhere(base, 3.0, dtype="bf16"), synthetic.profile(seed=1))
    matrix = np.array(found.spearman)
    assert np.allclose(np.diag(matrix), 1)
    assert np.allclose(matrix, matrix.T)
    assert matrix[0, 2] > 0.98
    assert matrix[0, 1] < matrix[0, 2], "a runtime with slow ResNets ranks otherwise than a second run"


def test_profiles_are_named_by_what_sets_them_apart() -> None:
    base = synthetic.profile()
    others = [
        elsewhere(base, dtype="bf16"),
        elsewhere(base, dtype="bf16", batch=2),
        elsewhere(base, batch=2, threads=4),
    ]
    assert transfer.names_of([base, *others]) == [
        "fp32 2 threads batch 1", "bf16 2 threads batch 1", "bf16 2 threads batch 2", "fp32 4 threads batch 2",
    ]  # fmt: skip
    assert transfer.names_of([base, synthetic.profile(seed=1)]) == ["run #1", "run #2"]
    xeon, epyc = (
        base.model_copy(update={"environment": base.environment | {"cpu": name}})
        for name in ("Intel(R) Xeon(R) Processor", "AMD EPYC")
    )
    assert transfer.names_of([xeon, epyc]) == ["Intel Xeon", "AMD EPYC"]


def test_a_plan_is_priced_by_every_profile() -> None:
    """The plan for cheap ResNets removes attention; where ResNets are slow that saves less."""
    base = synthetic.profile()
    slow = elsewhere(base, 3.0, backend="eager")
    found = compared(base, slow, budget="0.8")
    (first, second) = found.plans
    assert (first.made_for, second.made_for) == (0, 1)
    assert first.name == "for fake"
    for plan, profile, j in ((first, base, 0), (second, slow, 1)):
        assert plan.predicted[j] == planner.make_plan(profile, "0.8").predicted
    assert first.predicted[0].ratio < 0.8 < first.predicted[1].ratio


def test_a_replacement_that_was_not_timed_has_no_price() -> None:
    base = synthetic.profile()
    found = compared(base, elsewhere(base, dtype="bf16", options=()), plans=[synthetic.plan()])
    assert found.plans[0].predicted[0] == planner.price(base, synthetic.plan().edits)
    assert found.plans[0].predicted[1] is None
    (option, *_) = [one for one in base.options if one.replacement == "gri_attention"]
    other = ReplaceUnit(unit=option.unit, with_="gri_attention", options={"regions": "quadrants"})
    setting = synthetic.plan().model_copy(update={"edits": (other,)})
    assert compared(base, base, plans=[setting]).plans[0].predicted == (None, None)


def test_two_models_do_not_compare() -> None:
    with pytest.raises(ValueError, match=r"1.json is of sd21_base and 0.json of sd15"):
        compared(synthetic.profile(), synthetic.profile("sd21_base"))
    with pytest.raises(ValueError, match="compare needs at least two profiles, got 1"):
        compared(synthetic.profile())
    other = synthetic.plan().model_copy(update={"teacher_config_sha256": "0" * 64})
    with pytest.raises(ValueError, match="made for another teacher"):
        compared(synthetic.profile(), synthetic.profile(), plans=[other])


def test_compare_as_typed(run: Any, tmp_path: Path) -> None:
    """Two profiles and a budget: a matrix, a file, and figures in the next report."""
    base = synthetic.profile()
    base.save(tmp_path / "reports" / "a" / "profile.json")
    elsewhere(base, 3.0, dtype="bf16").save(tmp_path / "reports" / "b" / "profile.json")
    found: Result = run("asdm-prof", "compare", "reports/a", "reports/b", "--budget", "0.8", "-o", "reports/a")
    assert found.code == 0, found.err
    assert "fp32 and bf16 rank the units of sd15 with Spearman" in found.out
    assert "*" in found.out
    data = json.loads((tmp_path / "reports" / "a" / "compare.json").read_text())
    assert data["schema"] == "asdm.compare/1"
    report: Result = run("asdm-prof", "report", "reports/a", "--format", "figures", "-o", "out")
    assert "comparison: reports/a/compare.json" in report.err
    assert (tmp_path / "out" / "figures" / "rank_transfer.svg").exists()
    refused(run("asdm-prof", "compare", "reports/a"), "compare needs at least two profiles, got 1")
    refused(run("asdm-prof", "compare", "reports/a", "reports/b", "--budget", "0.01"), "lowest reachable", code=3)


def test_the_figure_shows_every_number() -> None:
    base = synthetic.profile()
    found = compared(base, elsewhere(base, 3.0, dtype="bf16"))
    figure = figures.rank_transfer(replace(synthetic.report(), comparison=found))
    assert figure is not None
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {f"{value:.2f}" for row in found.spearman for value in row}


# ---------------------------------------------------------------------------------------------- used elsewhere


def test_a_plan_remembers_where_it_was_measured(tmp_path: Path) -> None:
    plan = planner.make_plan(synthetic.profile(), "0.8")
    assert PruningPlan.load(plan.save(tmp_path / "plan.json")) == plan
    same = {"backend": "fake", "dtype": "fp32", "device": "cpu", "threads": 2, "batch": 1, "size": 512}
    assert plan.not_measured_at(**same) is None
    said = plan.not_measured_at(**same | {"dtype": "bf16", "batch": 4})
    assert said is not None
    assert "dtype bf16 (measured at fp32), batch 4 (measured at 1)" in said
    assert "device cuda" in str(plan.not_measured_at(**same | {"device": "cuda"}))
    on_gpu = planner.make_plan(synthetic.profile().model_copy(update={"device": "cuda"}), "0.8")
    assert on_gpu.not_measured_at(**same | {"device": "cuda:1"}) is None, "a card has its twins' times"
    assert synthetic.plan().not_measured_at(dtype="bf16") is None, "a plan without a profile has nothing to say"


def test_bench_and_build_warn_of_a_plan_from_elsewhere(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    profiled: Result = run("asdm-prof", "profile", tiny_folder, "--backend", "fake", "--batch", "3", "-o", "p.json")
    assert profiled.code == 0, profiled.err
    assert run("asdm-prof", "plan", "--budget", "0.8", "--profile", "p.json", "-o", "plan.json").code == 0
    build: Result = run("asdm", "build", "plan.json", "-o", "s", "--dtype", "bf16", "--weights", "random", "--json")
    assert build.code == 0, build.err
    assert "Warning: plan was not measured where it is used: " in build.err
    assert "dtype bf16 (measured at fp32)" in build.err
    assert "dtype bf16" in json.loads(build.out)["warning"]
    bench: Result = run(
        "asdm", "bench", "--teacher", tiny_folder, "--student", "plan.json", "--time-budget", "1", "--json"
    )
    assert bench.code == 0, bench.err
    (student,) = json.loads(bench.out)["students"]
    assert "backend eager (measured at fake)" in student["warning"]
    assert "batch 1 (measured at 3)" in student["warning"]
