"""The one script for a GPU: stages that are killed, fail and refuse, results that stay, and figures beside targets."""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asdm.plan.edits import PruningPlan
from asdm.utils import console
from asdm_prof.profiler import options
from asdm_prof.records import Comparison, Profile
from benchmarks import script
from benchmarks.gpu import __main__ as command, context, process, render, run, stages, suite, targets
from benchmarks.gpu.records import Files, MemoryCheck, PartRun, StageFile, StageRun, TrainingCost, result_of
from tests.fake_cuda import fake_cuda
from tests.tiny import SMALL, TINY

FIXTURE = Path(__file__).parent / "gpu"
SHARED = {"device": "cpu", "family": "mini", "smoke": True, "command": "test"}


def spec(function: str) -> stages.StageSpec:
    return stages.StageSpec(function, "made up", "gpu-checks.json", 60.0, f"tests.benchmarks.gpu_parts:{function}")


def run_all(folder: Path, chosen: Sequence[stages.StageSpec], budget_s: float = 60.0, **shared: Any) -> Files:
    run.run_stages(chosen, folder, SHARED | shared, {one.name: one.limit_s for one in chosen}, budget_s)
    return Files(folder, {one.name: one.file for one in chosen})


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stages run without processes of their own; yields the parts that each was told to leave out."""
    skipped: list[tuple[str, ...]] = []

    def call(job: process.Job, end: float) -> tuple[int, Any]:
        skipped.append(job.skip)
        return process.run(job), "failed"

    monkeypatch.setattr(run, "_process", call)
    return skipped


def states(files: Files, stage: str) -> dict[str, str]:
    found = files.stage(stage)
    return {name: part.state for name, part in found.parts.items()} if found else {}


# ---------------------------------------------------------------------------------------------- whatever happens


def test_a_killed_process_costs_the_part_that_ran_and_nothing_else(tmp_path: Path) -> None:
    files = run_all(tmp_path, [spec("killed")])
    found = files.stage("killed")
    assert found
    assert states(files, "killed") == {"before": "done", "dies": "failed", "after": "done"}
    assert found.parts["dies"].message == "its process ended with -9"
    assert found.complete
    assert found.environment["cpu"]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-checks.json"]


def test_a_stage_whose_process_never_started_is_of_no_machine(tmp_path: Path) -> None:
    file, facts = "gpu-mini.json", {"cpu": "mine"}
    job = process.Job(stage="mini", parts="x:y", folder=str(tmp_path), file=file, device="cpu", family="mini",
                      smoke=True, command="")  # fmt: skip
    for environment in ({}, {"cpu": "x"}):
        process.check_same_machine(tmp_path, facts, job)
        dead = StageRun(started_utc="", seconds=1.0, smoke=True, environment=environment)
        process.save_stage(Files(tmp_path, {"mini": file}), job, dead)
    with pytest.raises(ValueError, match="has the stage mini of the cpu x, and this is mine"):
        process.check_same_machine(tmp_path, facts, job)


def test_failures_are_recorded_and_the_next_part_goes_on(
    tmp_path: Path, in_this_process: list[tuple[str, ...]], capsys: Any
) -> None:
    files = run_all(tmp_path, [spec("failing"), spec("unlisted")])
    found = files.stage("failing")
    assert found
    assert {name: (part.state, part.message) for name, part in found.parts.items()} == {
        "refuses": ("refused", "this needs a GPU."),
        "fails": ("failed", "batch must be at least 1, got 0."),
        "breaks": ("failed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        "after": ("done", ""),
    }
    assert in_this_process == [(), ("breaks", "fails", "refuses"), ()], "what broke a process is not tried in the next"
    assert [row["state"] for row in run.table(files, [spec("failing"), spec("unlisted")])] == ["failed", "failed"]
    assert "no module named diffusers" in files.load("unlisted").stages["unlisted"].message  # type: ignore[union-attr]


def test_what_is_made_of_others_is_made_again_with_them(
    tmp_path: Path, in_this_process: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_all(tmp_path, [spec("made_of_others")])
    monkeypatch.setattr("tests.benchmarks.gpu_parts._fail", lambda: result_of(json.loads(PASSED)))
    capsys.readouterr()
    files = run_all(tmp_path, [spec("made_of_others")])
    said = capsys.readouterr().err
    assert [name for name in ("one", "two", "both", "other") if f"made_of_others: {name}\n" in said] == ["two", "both"]
    assert set(states(files, "made_of_others").values()) == {"done"}


def test_the_same_command_again_runs_what_is_not_settled(
    tmp_path: Path, in_this_process: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(tmp_path, [spec("failing")])
    in_this_process.clear()
    monkeypatch.setattr("tests.benchmarks.gpu_parts._fail", lambda: result_of(json.loads(PASSED)))
    monkeypatch.setattr("tests.benchmarks.gpu_parts._break", lambda: result_of(json.loads(PASSED)))
    files = run_all(tmp_path, [spec("failing")])
    assert in_this_process == [("after", "refuses")]
    assert set(states(files, "failing").values()) == {"done", "refused"}
    run_all(tmp_path, [spec("failing")])
    assert len(in_this_process) == 1, "it is settled"
    run.forget(files, [spec("failing")])
    assert not list(tmp_path.iterdir())


PASSED = '{"schema": "asdm.gpu-tests/1", "passed": 1, "failed": 0, "skipped": 0, "seconds": 0.1, "failures": {}}'
HANGS = """
import json, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in a shell's background ignores
job = json.loads(sys.argv[1])
parts = {"first": {"state": "done"}, "hangs": {}}
stage = {"started_utc": "", "seconds": 1, "smoke": True, "environment": {}, "parts": parts}
file = {"schema": "asdm.gpu/1", "created_utc": "", "command": "", "device": "cpu", "stages": {job["stage"]: stage}}
pathlib.Path(job["folder"], job["file"]).write_text(json.dumps(file))
time.sleep(600)
"""


def test_a_stage_that_hangs_is_ended_by_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHILD", [sys.executable, "-c", HANGS])
    hanging = stages.StageSpec("hangs", "made up", "gpu-sdxl.json", 2.0, "")
    files = run_all(tmp_path, [hanging])
    assert states(files, "hangs") == {"first": "done", "hangs": "timed out"}
    assert run.table(files, [hanging])[0]["notes"] == "hangs timed out: the time limit of the stage ended it"


def test_a_stop_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHILD", [sys.executable, "-c", HANGS])
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, [spec("killed"), spec("failing")])
    files = Files(tmp_path, {"killed": "gpu-checks.json"})
    assert states(files, "killed") == {"first": "done", "hangs": "interrupted"}


def test_stages_without_time_are_left_out(tmp_path: Path, in_this_process: Any, capsys: Any) -> None:
    files = run_all(tmp_path, [spec("killed")], budget_s=-1.0)
    assert "left out" in capsys.readouterr().err
    assert run.table(files, [spec("killed")])[0]["state"] == "not run"


def test_results_of_another_card_or_of_a_trial_do_not_mix(tmp_path: Path, in_this_process: Any) -> None:
    run_all(tmp_path, [spec("failing")])
    with pytest.raises(ValueError, match=r"has the stage failing with --smoke; name another output folder\."):
        run_all(tmp_path, [spec("killed")], smoke=False)
    path = tmp_path / "gpu-checks.json"
    path.write_text(path.read_text().replace('"cpu": "', '"gpu": "NVIDIA H100", "cpu": "'))
    with pytest.raises(ValueError, match="of the gpu NVIDIA H100, and this is None; name another output folder"):
        run_all(tmp_path, [spec("killed")])


# ---------------------------------------------------------------------------------------------- the cheapest stages


def test_profiles_a_plan_and_memory_on_a_small_network(
    tmp_path: Path, in_this_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "EAGER", "fake")  # made-up times; the calls are those of any backend
    monkeypatch.setattr(options, "FAST", ())
    config = tmp_path / "small" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(TINY | SMALL))
    files = run_all(tmp_path, stages.chosen("profile,memory"), budget_s=600.0, family=str(config))
    assert states(files, "profile") == {
        "fake, batch 1": "done", "cudagraph, batch 1": "refused", "fake, batch 2": "done",
        "cudagraph, batch 2": "refused", "comparison": "done", "plan": "done",
    }  # fmt: skip
    assert states(files, "memory") == {"eager": "refused"}
    graph = files.stage("profile").parts["cudagraph, batch 1"]  # type: ignore[union-attr]
    assert graph.message == "cudagraph needs a cuda device, and this machine has only cpu; choose another backend."
    assert len(files.results("profile", Profile)) == 2
    assert files.result("profile", "plan", PruningPlan).budget_ratio == 0.8
    assert files.results("profile", Comparison)
    with pytest.raises(ValueError, match="this needs “eager” of the stage memory, which has no result yet"):
        files.result("memory", "eager", MemoryCheck)


def test_memory_is_measured_on_a_stub_of_a_card(tmp_path: Path, in_this_process: Any) -> None:
    config = tmp_path / "small" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(TINY | SMALL | {"block_out_channels": [16, 32], "sample_size": 4}))
    with fake_cuda():
        files = run_all(tmp_path, stages.chosen("memory"), device="cuda", family=str(config))
    check = files.result("memory", "eager", MemoryCheck)
    assert (check.dtype, [case.batch for case in check.cases]) == ("fp16", [1, 2, 8])
    assert files.load("memory").card == "NVIDIA H100"  # type: ignore[union-attr]


def test_the_reports_of_pytest_are_counted() -> None:
    xml = """<testsuites><testsuite>
    <testcase classname="tests.gpu.test_a" name="one" time="1.5"/>
    <testcase classname="tests.gpu.test_a" name="two" time="0.5"><failure message="assert 1 == 2">…</failure></testcase>
    <testcase classname="tests.gpu.test_a" name="three" time="0"><skipped message="no GPU"/></testcase>
    </testsuite></testsuites>"""
    result = suite.parsed(xml)
    assert (result.passed, result.failed, result.skipped, result.seconds) == (1, 1, 1, 2.0)
    assert result.failures == {"tests.gpu.test_a::two": "assert 1 == 2"}
    with pytest.raises(ValueError, match="no test in tests/gpu is marked gpu"):
        suite.parsed("<testsuites/>")


# ---------------------------------------------------------------------------------------------- rendered


def test_every_figure_stands_beside_its_target(tmp_path: Path) -> None:
    for path in FIXTURE.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    render.write(tmp_path)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    for figure in ("residual, cudagraph, batch 1", "Spearman of unit ranks", "mean error of 3 predictions",
                   "a_sdm, compiled, batch 2", "img/s against the plain loop", "resume in fp32"):  # fmt: skip
        assert figure in text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Figures and targets" in page
    assert (tmp_path / "summary.md").read_bytes() == render.summary(Files(tmp_path, stages.FILE_OF)).encode()


def test_a_figure_that_misses_its_target_says_so() -> None:
    rows = {row["figure"]: row["reached"] for row in targets.rows(Files(FIXTURE, stages.FILE_OF))}
    assert {"yes", "no", ""} == set(rows.values())


def test_the_documents_take_measurements_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(FIXTURE, stages.FILE_OF)
    with pytest.raises(ValueError, match="is a trial run"):
        render.into_documents(files)
    for path in FIXTURE.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text().replace('"smoke":true', '"smoke":false'))
    for name in ("README.md", "docs/results.md"):
        copy = tmp_path / Path(name).name
        copy.write_text((script.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(render, "README", tmp_path / "README.md")
    render.into_documents(Files(tmp_path, stages.FILE_OF))
    assert "| a_sdm, compiled, batch 2 |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    table = [line for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines() if "a_sdm, " in line]
    assert table
    assert all(line.startswith("| ") and line.endswith(" |") and line.count(" | ") == 2 for line in table)


def test_every_result_is_of_the_schema_that_it_names(tmp_path: Path) -> None:
    for path in FIXTURE.glob("*.json"):
        file = StageFile.load(path)
        assert StageFile.parse(json.loads(file.to_json()), "again") == file
    training = Files(FIXTURE, stages.FILE_OF).results("training", TrainingCost)["end_to_end"]
    assert training.cost.SCHEMA == "asdm.distillation-cost/1"
    with pytest.raises(ValueError, match="unknown schema"):
        result_of({"schema": "other/1"})
    part = PartRun(state="done", result=training)
    stage = StageRun(started_utc="", seconds=1.0, smoke=True, environment={}, parts={"x": part})
    broken = StageFile(created_utc="", command="", device="cpu", stages={"training": stage}).to_json()
    with pytest.raises(ValueError, match=r"stages\.training\.parts\.x\.result"):
        StageFile.parse(json.loads(broken.replace('"macs_ratio"', '"other"')), "file")


# ---------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "name a folder for the results with -o"),
        (["-o", "out", "--device", "cpu"], "a CPU has nothing to measure here; add --smoke"),
        (["-o", "out", "--stages", "profil"], "unknown stage 'profil'; choose from mini, profile"),
        (["-o", "out", "--limit", "sdxl=no"], "the limit of sdxl must be a number of seconds above 0, got 'no'"),
        (["-o", "out", "--time-budget", "0"], "the time budget must be a number of seconds above 0, got 0"),
        (["--render", "."], "has no results of `python -m benchmarks.gpu`"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit) as caught:
        script.run(command.main)
    assert caught.value.code == console.USAGE
    assert problem in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_all_files_are_at_most_eight_and_each_stage_has_one() -> None:
    assert len(set(stages.FILE_OF.values())) <= 8
    assert [stage.name for stage in stages.chosen("compiled, mini")] == ["mini", "compiled"]
    assert stages.limits(["sdxl=60"], "cuda")["sdxl"] == 60.0
