"""What a newcomer meets first: the commands without arguments, `env`, completion, and the Python API."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asdm_prof
from asdm.cli import guide
from asdm.plan.edits import PruningPlan
from asdm.records.build import BuildResult
from asdm.utils import console
from asdm_prof.records import Profile
from asdm_prof.records.validation import ValidationRun
from asdm_prof.sensitivity.settings import SensitivitySettings
from asdm_prof.sensitivity.study import measure_sensitivity
from tests.asdm_prof import synthetic

HOSTILE = "<script>alert(1)</script>"

# ---------------------------------------------------------------------------------------------- what to do next


@pytest.mark.parametrize("program", ["asdm", "asdm-prof"])
def test_in_an_empty_folder_the_first_commands_are_named(run: Any, program: str) -> None:
    done = run(program)
    assert done.code == 0
    assert "Nothing is measured here yet" in done.out
    for command, _ in guide.START:
        assert command in done.out


def next_command(out: str) -> str:
    return out.partition("Next:  ")[2].splitlines()[0]


def built(plan: PruningPlan) -> BuildResult:
    return BuildResult(
        name="plan", family="sd15", weights="random", params=848_000_000, macs=1, teacher_params=859_000_000,
        teacher_macs=2, removed=(), replaced={}, name_map={}, plain_diffusers=True, plan_sha256=plan.sha256(),
    )  # fmt: skip


def test_each_file_moves_the_next_step_on(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "sd15-eager"
    synthetic.profile().save(folder / "profile.json")
    assert next_command(run("asdm-prof").out) == "asdm-prof plan --budget 0.8"
    synthetic.plan().save(folder / "plan.json")
    assert next_command(run("asdm-prof").out) == "asdm build reports/sd15-eager/plan.json -o student/"
    built(synthetic.plan()).save(tmp_path / "student" / "build.json")
    assert next_command(run("asdm").out) == "asdm bench --teacher sd15 --student student/"
    synthetic.bench().save(folder / "bench.json")
    assert next_command(run("asdm").out) == "asdm-prof report"
    (folder / "report.html").write_text("<!doctype html>")
    done = run("asdm-prof")
    assert "Everything is done. Open reports/sd15-eager/report.html" in done.out
    assert done.out.count("  done  ") == 5
    assert "859.0 M → 848.0 M parameters" in done.out


def test_beyond_the_chain_what_needs_real_weights_is_offered_only_with_them(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "sd15-eager"
    synthetic.profile().save(folder / "profile.json")
    assert "Also possible:" not in run("asdm-prof").out
    synthetic.plan().save(folder / "plan.json")
    told = run("asdm-prof").out
    assert "asdm-prof frontier " in told
    assert "asdm-prof sensitivity" not in told
    real = synthetic.profile().model_copy(update={"weights": "sd15/"})
    real.save(folder / "profile.json", force=True)
    synthetic.plan().model_copy(update={"profile_sha256": real.sha256()}).save(folder / "plan.json", force=True)
    told = run("asdm-prof").out
    assert "asdm-prof sensitivity sd15" in told
    assert "asdm distill reports/sd15-eager/plan.json --teacher sd15 -o trained/" in told
    (folder / "damage.json").write_text("{}")
    assert "asdm-prof sensitivity" not in run("asdm-prof").out


def test_a_plan_of_another_profile_does_not_count(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "sd15-eager"
    synthetic.profile(seed=1).save(folder / "profile.json")
    synthetic.plan().save(folder / "plan.json")
    assert next_command(run("asdm-prof").out) == "asdm-prof plan --budget 0.8"


def test_a_broken_profile_is_as_good_as_none(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "x"
    folder.mkdir(parents=True)
    (folder / "profile.json").write_text("{")
    assert "Nothing is measured here yet" in run("asdm-prof").out


def test_unreadable_files_of_other_runs_stop_neither_the_guide_nor_a_report(run: Any, tmp_path: Path) -> None:
    folder, other = tmp_path / "reports" / "sd15-eager", tmp_path / "reports" / "other"
    synthetic.profile().save(folder / "profile.json")
    other.mkdir()
    for name in ("profile.json", "plan.json", "damage.json", "log.jsonl"):
        (other / name).symlink_to(tmp_path / "gone")
    for name in ("bench.json", "frontier.json", "validate.json"):
        os.mkfifo(other / name)
    for name in ("search.json", "distill.json", "compare.json"):
        (other / name).write_text("[" * 100_000)
    (other / "loop").symlink_to(other)
    assert next_command(run("asdm-prof").out) == "asdm-prof plan --budget 0.8"
    done = run("asdm-prof", "report", "--format", "csv")
    assert done.code == 0, done.err
    for name in ("bench.json", "search.json"):
        assert done.err.count(f"other/{name}") == 1


@pytest.mark.parametrize("family", ["x; touch PWNED", "\x1b[31m$(touch PWNED)\n`touch PWNED`", "it's"])
def test_a_hostile_name_is_one_word_of_the_commands_to_copy(run: Any, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "reports" / "a b;c"
    profile = synthetic.profile().model_copy(update={"family": family, "weights": "x/"})
    profile.save(folder / "profile.json")
    plan = synthetic.plan().model_copy(update={"profile_sha256": profile.sha256(), "budget": "\x1b[2J"})
    plan.save(folder / "plan.json")
    built(plan).save(tmp_path / "student; x" / "build.json")
    told = run("asdm-prof").out
    assert "\x1b" not in told
    assert next_command(told).startswith("asdm bench ")
    commands = [next_command(told), *re.findall(r"^  (asdm\S* (?:sensitivity|distill) .*?)   ", told, re.MULTILINE)]
    assert len(commands) == 3
    for command in commands:
        assert console.plain(family) in shlex.split(command), "as one word"
    assert "student; x/" in shlex.split(commands[0])
    assert "reports/a b;c/plan.json" in shlex.split(commands[2])


# ---------------------------------------------------------------------------------------------- env and completion


def test_env_says_what_a_bug_report_needs_and_nothing_private(run: Any) -> None:
    found = json.loads(run("asdm-prof", "env", "--json").out)
    assert found["schema"] == "asdm.env/1"
    assert found["environment"].keys() >= {"cpu", "cores", "memory_gib", "python", "torch", "diffusers", "device"}
    assert "eager" in found["choices"]["backends"]
    told = run("asdm-prof", "env").out
    assert found["environment"]["torch"] in told
    for private in (str(Path.home()), os.uname().nodename, str(Path.cwd())):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", told), "as a word: a host may be called vm"


@pytest.mark.parametrize(
    ("typed", "offered"), [("asdm-prof pro", "profile"), ("asdm-prof profile sd2", "sd21_base"), ("asdm ben", "bench")]
)
def test_the_tab_key_completes_commands_and_names(typed: str, offered: str) -> None:
    program, module = typed.split()[0], "asdm.cli" if typed.startswith("asdm ") else "asdm_prof.cli"
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), variable: "complete_bash"}
    script = f"import sys; sys.argv = [{program!r}]; from {module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | words, capture_output=True, text=True, check=False
    )
    assert offered in done.stdout.split(), done.stderr


# ---------------------------------------------------------------------------------------------- Python


def test_the_names_of_the_api_are_the_commands() -> None:
    assert len(asdm_prof.__all__) == 14
    for name in asdm_prof.__all__:
        assert callable(getattr(asdm_prof, name))
        assert getattr(asdm_prof, name).__doc__
        assert name in dir(asdm_prof)
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        asdm_prof.prune  # noqa: B018


def test_the_chain_in_python(tiny_folder: Path, tmp_path: Path) -> None:
    profile = asdm_prof.profile(str(tiny_folder), backend="fake")
    assert isinstance(profile, Profile)
    assert asdm_prof.rank(profile)[0].rank == 1
    plan = asdm_prof.plan(profile, 0.85)
    built = asdm_prof.build(plan, tmp_path / "student", teacher=str(tiny_folder))
    assert built.params < built.teacher_params
    assert (tmp_path / "student" / "config.json").exists()
    bench = asdm_prof.bench(str(tiny_folder), [plan, "bk_sdm_small"], backend="fake")
    with pytest.raises(ValueError, match="neither a schedule file"):
        asdm_prof.bench(str(tiny_folder), schedules=["none.json"])
    with pytest.raises(ValueError, match="none"):
        asdm_prof.build(plan, tmp_path / "other", teacher=str(tiny_folder), units=tmp_path / "none")
    assert [student.name for student in bench.students] == ["plan", "bk_sdm_small"]
    assert bench.students[0].unet_latency_ratio.median < 0.9
    (page,) = asdm_prof.report(profile, tmp_path / "page", plan=plan, benches=[bench])
    assert f"{plan.predicted.ratio:.2f}×" in page.read_text()
    assert not asdm_prof.diff(profile, profile).unlike
    with pytest.raises(ValueError, match="exists; name another output or add --force"):
        asdm_prof.report(profile, tmp_path / "page")


def test_planning_on_damage_and_training_in_python(tiny_pipeline: Path, tmp_path: Path) -> None:
    family = str(tiny_pipeline)
    profile = asdm_prof.profile(family, backend="fake")
    few = SensitivitySettings(data="emoji", split="held_out", prompts=2, timesteps=2)
    damage = measure_sensitivity(family, few, plans=0)
    assert damage.edits
    plan = asdm_prof.plan(profile, {"latency": "0.9", "params": "0.95"}, damage=damage)
    assert plan.damage_sha256 == damage.sha256()
    told: list[Any] = []
    done = asdm_prof.distill(
        plan,
        tmp_path / "trained",
        teacher=family,
        recipe="bk_sdm",
        steps=2,
        data="emoji",
        split="held_out",
        batch=2,
        watch=told.append,
    )
    assert done.student_sha256
    assert told


def test_load_reads_what_the_commands_write(tmp_path: Path) -> None:
    several = (synthetic.profile(), synthetic.plan(), synthetic.bench(), synthetic.comparison(), synthetic.damage())
    for record in (*several, ValidationRun(run_sha256="0" * 64), synthetic.full_report().search):
        path = record.save(tmp_path / f"{type(record).__name__}.json")
        assert asdm_prof.load(path) == record
    (tmp_path / "other.json").write_text('{"schema": "somebody.else/1"}')
    with pytest.raises(ValueError, match=r"schema somebody.else/1; this reads asdm.bench/1, .* asdm.search/1, "):
        asdm_prof.load(tmp_path / "other.json")


@pytest.mark.parametrize("record", [synthetic.profile, synthetic.plan, synthetic.bench])
def test_records_show_themselves_in_a_notebook(record: Any) -> None:
    shown = record()._repr_html_()
    assert shown.count("<table") == 1
    assert "up_blocks.3" in shown or "bk_sdm_base" in shown


def test_names_in_a_notebook_are_escaped() -> None:
    shown = synthetic.profile().model_copy(update={"title": HOSTILE})._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
