"""The search on a tiny real Stable Diffusion: one worker in a folder, three on a real PostgreSQL of which one dies."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import asdm_prof.cli
from asdm.distill import recipes
from asdm.distill.logger import read_log
from asdm.distill.losses import perceptual
from asdm.distill.run import distill
from asdm.distill.settings import DistillSettings
from asdm.evaluate import metrics
from asdm.evaluate.metrics import fid
from asdm.models.families import load_family
from asdm_prof.profiler import profile as profiler
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.records import Search
from asdm_prof.renderers import figures, html
from asdm_prof.search import checks
from asdm_prof.search.halving import Job
from asdm_prof.search.search import RESULT, identity, open_pictures
from asdm_prof.search.settings import SearchSettings
from asdm_prof.search.study import database_url
from asdm_prof.search.worker import SearchContext
from tests import children
from tests.asdm.distill.training import WEIGHTS
from tests.asdm_prof import synthetic
from tests.commands import files_in, refused
from tests.fake_cuda import fake_cuda
from tests.pictures import picture, shard

FIRST = 2  # steps of the first rung


@pytest.fixture(scope="module")
def photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twelve pictures and a thirteenth that is cut off: nothing here may stop at it."""
    folder = tmp_path_factory.mktemp("search") / "photos"
    shutil.copytree(photos, folder)
    (folder / "12.png").write_bytes(picture(12)[:100])
    with (folder / "metadata.jsonl").open("a") as table:
        table.write('{"file_name": "12.png", "text": "number 12"}\n')
    return folder


@pytest.fixture(scope="module")
def profile(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = profiler.profile(str(tiny_pipeline), ProfileSettings(backend="fake"))
    return result.save(tmp_path_factory.mktemp("profile") / "profile.json")


@pytest.fixture(scope="module")
def search_command(tiny_pipeline: Path, profile: Path, photos: Path) -> Any:
    """The command that searches into a folder."""

    def line(output: Path, candidates: int, steps: int, *more: Any) -> list[Any]:
        text = (
            f"--budget 0.8 --candidates {candidates} --rungs 2 --steps {steps} --data folder:{photos} --batch 2 "
            f"--prompts 4 --draw-steps 1 --time-budget 1 --checkpoint-every 0 --threads 1 "
            f"--judge mini --profile {profile} -o {output}"
        )
        return ["search", tiny_pipeline, *text.split(), *more]

    return line


def test_workers_on_two_cards_of_one_name_share_a_search(tiny_pipeline: Path, photos: Path, tmp_path: Path) -> None:
    family = load_family(str(tiny_pipeline))

    def identity_on(device: str) -> dict[str, Any]:
        settings = SearchSettings(budget="0.8", data=f"folder:{photos}", device=device)
        context = SearchContext(family, str(tiny_pipeline), settings, tmp_path)
        return identity(context, open_pictures(context))

    with fake_cuda():
        first, second = identity_on("cuda:0"), identity_on("cuda:1")
    assert first == second
    assert (first["device"], first["gpu"]) == ("cuda", "NVIDIA H100")
    assert identity_on("cpu") != first


def test_networks_that_are_not_at_hand_are_told_before_anything_is_trained(
    tiny_pipeline: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any) -> None:
        raise ValueError("its weights are not available; name them (--network inception=FILE, --vgg DIR)")

    family = load_family(str(tiny_pipeline))
    settings = SearchSettings(budget="0.8", data=f"folder:{photos}", prompts=4, metric="latent_mse_to_teacher")
    checks.check_judging(family, settings, "mine")
    monkeypatch.setattr(perceptual, "load_vgg", nowhere)
    monkeypatch.setattr(fid, "load_network", nowhere)
    with pytest.raises(ValueError, match=r"^its weights are not available; choose a --metric other than fid\.$"):
        checks.check_judging(family, replace(settings, metric="fid"), "mine")
    words = r"^the recipe progressive_incubation needs a VGG: its weights are not available; choose --recipe bk_sdm\.$"
    with pytest.raises(ValueError, match=words):
        checks.check_judging(family, replace(settings, recipe="progressive_incubation"), "mine")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("folder", {"prompts": 13}, "prompts must be at most the 12 usable examples of mine, got 13"),
        ("webdataset", {"prompts": 50}, "prompts must be at most the 38 usable examples of mine, got 50"),
        (
            "webdataset",
            {"metric": "recall_at_1", "judge": "mini"},
            "recall_at_1 looks for a caption among 200 and mine has 4",
        ),
        ("latents", {"teacher": "mini"}, "mine was not encoded with mini's encoders"),
    ],
)
def test_too_few_pictures_are_told_before_anything_is_timed(
    tiny_pipeline: Path, photos: Path, shards: Path, cached: Path, tmp_path: Path, kind: str, changes: Any, said: str
) -> None:
    places = {"folder": photos, "webdataset": tmp_path / "shards", "latents": cached}
    shutil.copytree(shards, places["webdataset"])
    shard(places["webdataset"] / "00001.tar", range(10, 20), broken=(11, 13))
    family = replace(load_family(changes.pop("teacher", str(tiny_pipeline))), size=64)
    settings = SearchSettings(budget="0.8", data=f"{kind}:{places[kind]}", prompts=4, metric="latent_mse_to_teacher")
    with pytest.raises(ValueError, match=said):
        checks.check_judging(family, replace(settings, **changes), "mine")


# ---------------------------------------------------------------------------------------------- one worker, a file


@pytest.fixture(scope="module")
def searched(search_command: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole search by one worker: two candidates to step 2, the better one to step 4."""
    folder = tmp_path_factory.mktemp("searched")
    words = map(str, search_command(folder / "out", 2, 3 * FIRST))
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        patch.setattr(sys, "argv", ["asdm-prof", *words])
        patch.setattr(metrics, "HALVES", 8)  # halves behind an interval, which nothing here looks at
        with redirect_stderr(log), redirect_stdout(log), pytest.raises(SystemExit) as exit_:
            asdm_prof.cli.main()
    assert not exit_.value.code, (folder / "log").read_text()
    return folder


def test_a_search_ends_with_measured_students_and_a_front(searched: Path) -> None:
    result = Search.load(searched / "out" / "search.json")
    assert [(rung.candidates, rung.steps) for rung in result.rungs] == [(2, FIRST), (1, 2 * FIRST)]
    assert result.training_steps == 3 * FIRST
    assert result.trials == {"done": 3, "diverged": 0, "left": 0, "died": 0}
    assert [(one.rung, one.steps) for one in result.students] == [(1, 2 * FIRST), (0, FIRST)]
    assert result.front()
    for student in result.students:
        assert set(student.quality) >= {"clip_score", "latent_mse_to_teacher"}
        assert len(student.student_s) == len(student.teacher_s) > 0
        assert student.predicted.ratio < 0.8
        assert {"config.json", "plan.json", WEIGHTS} <= set(files_in(searched / "out" / student.folder))
    log = (searched / "log").read_text()
    assert "2 to step 2, 1 to step 4: 6 steps in all" in log
    dropped = searched / "out" / "candidates" / f"{result.students[1].candidate:02d}" / "training"
    assert not (dropped / "checkpoints").exists()


def test_a_survivor_has_the_bits_of_a_student_trained_in_one_go(
    searched: Path,
    tiny_pipeline: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    best = Search.load(searched / "out" / "search.json").students[0]
    folder = searched / "out" / best.folder
    settings = DistillSettings(data=f"folder:{photos}", steps=2 * FIRST, batch=2, threads=1)
    distill(str(folder.parent / "plan.json"), str(tiny_pipeline), tmp_path / "s", settings, recipes.bk_sdm)
    assert (tmp_path / "s" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert [line["step"] for line in read_log(folder / "log.jsonl")] == list(range(1, 2 * FIRST + 1))


def test_the_same_command_again_gives_the_same_result_and_another_search_is_refused(
    run: Any, searched: Path, search_command: Any, photos: Path
) -> None:
    """The pictures are the same, and another spelling of their folder is not another search; changed ones are."""
    before = Search.load(searched / "out" / "search.json")
    spelled = ("--data", f"folder:{photos}/.")
    again = run("asdm-prof", *search_command(searched / "out", 2, 3 * FIRST), "--json", *spelled)
    assert again.code == 0, again.err
    assert json.loads(again.out)["students"] == before.model_dump(mode="json", by_alias=True)["students"]
    refused(
        run("asdm-prof", *search_command(searched / "out", 2, 3 * FIRST), "--seed", 1),
        "its seed is 0, not 1",
        "--study",
    )
    picture_before = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(picture_before[:-1] + b"!")
    refused(run("asdm-prof", *search_command(searched / "out", 2, 3 * FIRST)), "another search: its data_sample is")
    (photos / "3.png").write_bytes(picture_before)


def test_the_page_and_a_figure_show_the_search(tmp_path: Path) -> None:
    report = synthetic.full_report()
    html.render(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "candidate 0 is best, at 0.78× [0.77, 0.79]" in page.replace("\u00a0", " ")
    assert page.count("<title>candidate ") == len(report.search.students) == 4
    figures.render(report, tmp_path, (figures.search,))
    assert files_in(tmp_path / "figures") == ["search.pdf", "search.png", "search.svg"]
    html.render(replace(report, search=None), tmp_path / "without")
    assert "A search for students" not in (tmp_path / "without" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidates", 3, "--rungs", 3], "3 candidates cannot be halved 2 times"),
        (["--steps", 2], "steps must be at least 3 for 2 candidates in 2 rungs, got 2"),
        (["--metric", "beauty"], "unknown metric 'beauty'; choose from frechet_distance"),
        (["--prompts", 3], "prompts must be at least 4, got 3"),
        (["--prompts", 500], "prompts must be at most the 13 examples of folder:"),
        (["--metric", "perceptual_to_teacher"], "compares features of a VGG that was trained on emoji, and folder:"),
        (["--metric", "recall_at_1"], "recall_at_1 looks for a caption among 200 and folder:"),
        (["--budget", "much"], "got 'much'"),
        (["--candidates", 5000, "--steps", 10**6], "candidates must be at most 200, got 5000"),
        (
            ["--storage", "mysql://me:secret@here/db"],
            "storage must look like postgresql://USER@HOST/DATABASE, got 'mysql://me:…@here/db'",
        ),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/db"], "me:…@127.0.0.1:1/db does not answer"),
    ],
)
def test_bad_input_gets_one_sentence(
    run: Any, search_command: Any, tmp_path: Path, options: list[Any], message: str
) -> None:
    refused(run("asdm-prof", *search_command(tmp_path / "out", 2, 12), *options), message)


def test_a_budget_that_no_plan_meets_exits_with_3(run: Any, search_command: Any, tmp_path: Path) -> None:
    assert run("asdm-prof", *search_command(tmp_path / "out", 2, 12), "--budget", "0.01").code == 3


def test_a_missing_extra_is_named(
    run: Any, search_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(run("asdm-prof", *search_command(tmp_path / "out", 2, 12)), "pip install 'asdm-prof[search]'")


# ---------------------------------------------------------------------------------------------- three workers


def programs() -> Path | None:
    """Where PostgreSQL's own programs are; `.ci/run` names the place, and then a missing one is an error."""
    named = os.environ.get("POSTGRES")
    places = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not named and (there := shutil.which("initdb")):
        places.append(Path(there).resolve().parent)
    return next((place for place in places if named or (place / "initdb").exists()), None)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL cluster of its own on a free port, created and run by a user other than root."""
    where = programs()
    if where is None:
        pytest.skip("no initdb (`apt-get install postgresql`); POSTGRES names the folder of one elsewhere")
    folder = Path(tempfile.mkdtemp(prefix="asdm-pg-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user: list[str] = []
    if os.getuid() == 0:
        owner = pwd.getpwnam("nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [*user, str(where / program), "-D", f"{folder}/data", *arguments],
            check=True, cwd=folder, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    call("initdb", "-U", "asdm", "-A", "trust", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
    try:
        yield f"postgresql://asdm@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def trials_of(url: str, study: str) -> list[Any]:
    """Every trial, as Optuna lists it."""
    import optuna

    return optuna.load_study(study_name=study, storage=database_url(url)).get_trials()


def job_of(trial: Any) -> Job:
    return Job(trial.params["rung"], trial.params["candidate"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start workers; none outlives the test."""
    processes: list[Any] = []

    def worker(command: list[Any]) -> tuple[Any, Path]:
        log = tmp_path / f"log-{len(processes)}"
        processes.append(children.start(command, log, program="asdm-prof"))
        return processes[-1], log

    yield worker
    for process in processes:
        process.kill()
        process.join()


def test_three_workers_one_killed_and_every_trial_ends_exactly_once(
    database: str, search_command: Any, start: Any, tmp_path: Path
) -> None:
    """Four candidates in two rungs are six jobs; the killed worker's is taken up from its checkpoint by another."""
    output = tmp_path / "out"
    command = search_command(output, 4, 6 * 8, "--storage", database, "--study", "three")
    workers = [start(command) for _ in range(3)]

    def in_training() -> int | None:
        """The candidate that is the first to have a checkpoint behind it."""
        logs = output.glob("candidates/*/training/log.jsonl")
        return next((int(log.parts[-3]) for log in logs if len(read_log(log)) > 2), None)

    while (candidate := in_training()) is None:
        assert any(process.is_alive() for process, _ in workers), [log.read_text() for _, log in workers]
        time.sleep(0.1)
    (mine,) = (trial for trial in trials_of(database, "three") if trial.params.get("candidate") == candidate)
    assert mine.state.name == "RUNNING"
    (victim,) = (process for process, _ in workers if process.pid == mine.user_attrs["process"])
    victim.kill()  # SIGKILL: it cannot be caught
    victim.join()
    others = [(process, log) for process, log in workers if process is not victim]
    for process, log in others:
        assert children.ended(process) == 0, log.read_text()

    trials = trials_of(database, "three")
    states = [trial.state.name for trial in trials]
    assert sorted(states) == ["COMPLETE"] * 6 + ["FAIL"]
    complete = sorted(job_of(trial) for trial in trials if trial.state.name == "COMPLETE")
    assert len(set(complete)) == 6
    assert [job for job in complete if job.rung == 0] == [Job(0, candidate) for candidate in range(4)]
    (dead,) = (trial for trial in trials if trial.state.name == "FAIL")
    assert (dead.number, dead.user_attrs["process"]) == (mine.number, victim.pid)
    (heir,) = (one for one in trials if one.state.name == "COMPLETE" and job_of(one) == job_of(dead))
    assert heir.number > dead.number
    assert heir.user_attrs["process"] in [process.pid for process, _ in others]
    for folder in (output / "candidates").iterdir():
        steps = [line["step"] for line in read_log(folder / "training" / "log.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) in (8, 16)
    result = Search.load(output / RESULT)
    assert result.trials == {"done": 6, "diverged": 0, "left": 0, "died": 1}
    assert len(result.students) == 4
