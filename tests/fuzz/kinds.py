"""Every kind of file that is read: a small real one, and what commands do with it.

`read` only loads it, `use` goes on to what a command does next: ranks, plans, prints, draws, builds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from PIL import Image
from rich.console import Console

from asdm.cli import bench as bench_command, guide
from asdm.data.datasets import BrokenExample, folder, latents, webdataset
from asdm.data.datasets._pictures import Frame, decode_picture, shapes_of
from asdm.data.settings import Selection
from asdm.distill import logger, run_folder
from asdm.models import checkpoints, loading
from asdm.models.components import components_of
from asdm.models.families import load_family
from asdm.models.family import from_folder
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.models.student import read_plan
from asdm.models.units import INDEX, UnitLibrary, save_unit, unit_file
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.records.bench import BenchResult
from asdm.records.build import BuildResult, ExportResult
from asdm.records.distill import DistillResult
from asdm.records.levers import LeversResult
from asdm.records.slim import SlimRun
from asdm.records.units import UnitRecord, Units
from asdm.schedule import legality as schedule_legality
from asdm.schedule.graphs import fast
from asdm.schedule.schedule import Schedule
from asdm.unet.surgery import replacement_for
from asdm.utils import snapshots
from asdm_prof.analysis import transfer
from asdm_prof.planner import plan as planner
from asdm_prof.planner.frontier import make_frontier
from asdm_prof.planner.schedule import plan as schedules
from asdm_prof.records import (
    Comparison,
    Damage,
    Frontier,
    Profile,
    ScheduleFrontier,
    ScheduleValidation,
    Search,
    StepsDamage,
    TrainingLog,
    Validation,
)
from asdm_prof.records.damage import DamageRun
from asdm_prof.records.schedule_validation import ScheduleValidationRun
from asdm_prof.records.steps_damage import StepsBatch, StepsRun
from asdm_prof.records.validation import ValidationRun
from asdm_prof.renderers import Report, chrome_trace, console, csv as csv_renderer, html, speedscope
from tests.asdm_prof.planner.test_schedule import measured
from tests.fuzz import foreign
from tests.fuzz.foreign import FOREIGN
from tests.fuzz.kind import Kind, Work, file_of, header_of, lines_of, of_tensors
from tests.fuzz.mutations import as_json, as_json_lines, torn

REPLACED = ReplaceUnit(unit="down_blocks.0.attentions.0", with_="no_self_attention")
SCHEDULES_RUN, STEPS_RUN = "unfinished/validate-schedules.json.run", "unfinished/steps-damage.json.run"
FIXTURES = Path(__file__).parents[1] / "fixtures"
BEFORE, SHARD = FIXTURES / "before_the_move", FIXTURES / "data" / "shard-00000.tar"


def prepare(root: Path) -> None:
    """Put all the files into a folder."""
    shutil.copytree(BEFORE, root, dirs_exist_ok=True)
    (root / "reports" / "run").mkdir(parents=True)
    shutil.copy(root / "records" / "profile.json", root / "reports" / "run")
    shutil.copy(FIXTURES.parents[1] / "reports" / "sd15" / "trust" / "validate-schedules.json", root / "records")
    steps = measured(profile(), weights_sha256=profile().weights_sha256)
    steps.save(root / "records" / "steps-damage.json")
    schedules.make_schedule(schedules.prepare(profile(), steps), "0.9").save(root / "records" / "schedule.json")
    tensors = {name: {"a": torch.ones(3)} for name in ("weights", "optimizer")}
    for step in (1, 2):
        snapshots.write(root / "checkpoints", step, tensors, {"typical": {}, "average_steps": 2}, keep=2)
    for number, suffix in enumerate((".jsonl", ".csv", ".parquet", "")):
        (data := root / f"data{suffix}").mkdir()
        for name in ("a.png", "b.png"):
            shutil.copy(root / "photos" / "1.png", data / name)
        assert number >= 0
    (root / "data" / "a.json").write_text('{"caption": "beside"}')
    (root / "data" / "b.txt").write_text("beside")
    (root / "slim.json").write_text(json.dumps(SLIM))
    records = root / "records"
    schedules.make_frontier(schedules.prepare(profile(), steps=4)).save(records / "schedule-frontier.json")
    shutil.copy(FIXTURES.parents[1] / "reports" / "sd15" / "levers.json", records)
    measured_schedules = ScheduleValidation.load(records / "validate-schedules.json").schedules[:2]
    ScheduleValidationRun(run_sha256="0" * 64, schedules=measured_schedules).save(root / SCHEDULES_RUN)
    batch = StepsBatch(prompts=4, errors={"output": [[[1.0]], [[1.0]]]}, gains={0: (1.0, 2.0)}, fewer={2: 1.0},
                       joint=[[1.0] * 4], latent_power=4.0)  # fmt: skip
    StepsRun(run_sha256="0" * 64, batches=(batch,)).save(root / STEPS_RUN)
    prepare_library(root / "library")
    foreign.prepare(root)


def prepare_library(folder: Path) -> None:
    """One replaced unit of the teacher."""
    folder.mkdir()
    sha256 = "0" * 64
    unit_file(folder, sha256).write_bytes(unit_bytes())
    one = UnitRecord(edit=REPLACED, sha256=sha256, from_weights=0.5, fitted=0.2, trained=0.1, file_sha256=None)
    about = {"created_utc": "", "command": "", "family": "teacher", "data": "emoji", "split": "train", "steps": 4}
    Units(**about, calibration=4, batch=2, learning_rate=1e-3, seed=0, units=(one,), environment={},
          teacher_sha256=loading.weights_sha256(whole_teacher())).save(folder / INDEX)  # fmt: skip


SLIM = {"schema": "asdm.slim/1", "created_utc": "", "identity": {"a": 1}, "training": ["--batch", "2"],
        "steps": [{"name": "profile", "command": ["asdm-prof", "profile"], "seconds": 1.0}]}  # fmt: skip


@cache
def profile() -> Profile:
    return Profile.load(BEFORE / "records" / "profile.json")


def to_terminal(show: Callable[[Console], Any]) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=100, highlight=False))
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------- what commands do


def on_the_page(**records: Any) -> None:
    """As `report` shows them beside their profile."""
    report = Report(**{"profile": profile(), **records})
    html.page(report)
    to_terminal(lambda out: console.print_report(report, out))


def use_profile(_: Path, one: Profile) -> None:
    on_the_page(profile=one)
    with TemporaryDirectory() as folder:
        for renderer in (csv_renderer, chrome_trace, speedscope):
            renderer.render(Report(one), Path(folder))
    planner.make_plan(one, "0.9")
    transfer.compare([(profile(), "a.json"), (one, "b.json")], [])
    schedules.make_frontier(schedules.prepare(one, steps=4))


def use_plan(root: Path, plan: PruningPlan) -> None:
    read_plan(str(root / "records" / "plan.json"), teacher(), "teacher")
    planner.price(profile(), plan.edits)
    console.plan_lines(plan, profile())
    on_the_page(plan=plan)


@cache
def teacher() -> Any:
    return loading.meta_unet(from_folder(BEFORE / "teacher"))


@cache
def whole_teacher() -> Any:
    return loading.load_unet(from_folder(BEFORE / "teacher"), str(BEFORE / "teacher"))


@cache
def unit_bytes() -> bytes:
    with TemporaryDirectory() as folder:
        save_unit(replacement_for(teacher := whole_teacher(), REPLACED), teacher.get_submodule(REPLACED.unit),
                  path := Path(folder, "unit"))  # fmt: skip
        return path.read_bytes()


def use_levers(root: Path, _: LeversResult) -> None:
    fast.describe(*fast.choose(root / "records" / "levers.json", load_family("sd15"), 30))


def use_library(root: Path, _: Any) -> None:
    UnitLibrary(root / "library", whole_teacher())(whole_teacher(), REPLACED)


def use_bench(_: Path, one: BenchResult) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        bench_command.print_tables(one)
    on_the_page(benches=(one,))


def use_damage(_: Path, one: Damage) -> None:
    planner.make_plan(profile(), "0.9", damage=one)
    make_frontier(profile(), one)
    shown("damage", one)


def on_terminal(one: Any) -> None:
    to_terminal(lambda out: console.print_record(one, out))


def shown(name: str, one: Any) -> None:
    on_terminal(one)
    on_the_page(**{name: one})


def use_validation(_: Path, one: Validation) -> None:
    planner.make_plan(profile(), "0.9", validation=one)
    shown("validation", one)


def use_schedule(_: Path, one: Schedule) -> None:
    schedule_legality.resolve({name: profile().topology for name in ("teacher", *one.networks)}, one)
    on_the_page(schedule=one)


def use_steps_damage(_: Path, one: StepsDamage) -> None:
    schedules.make_schedule(schedules.prepare(profile(), one), "0.9")
    shown("steps_damage", one)


def read_run(root: Path) -> Any:
    run_folder.claim_folder(root / "finished", run_folder.DistillRun.load(BEFORE / "finished" / "run.json"))
    return run_folder.identity_in(root / "finished")


def read_stage(root: Path) -> Any:
    stage: Any = SimpleNamespace(name="compressed", steps=4)
    return run_folder.finished_stages(root / "unfinished" / "paused", [stage])


def use_log(root: Path, log: TrainingLog) -> None:
    path = root / "finished" / "log.jsonl"
    logger.first_and_last_losses(logger.read_log(path), "compressed")
    logger.JsonlWriter(path, 3).close()
    on_the_page(log=log)


def read_checkpoint(root: Path) -> Any:
    newest = snapshots.newest(root / "checkpoints")
    assert newest is not None
    assert newest.step == 1 or newest.state == json.loads(
        (root / "checkpoints" / "step-00000002" / "state.json").read_text("utf-8-sig")
    )
    return newest.tensors("weights"), newest.value("average_steps")


def read_teacher(root: Path) -> Any:
    return from_folder(root / "teacher")


def use_teacher(root: Path, family: Any) -> None:
    loading.meta_unet(family)
    components_of(family)


def use_pipeline(root: Path, family: Any) -> None:
    pipeline(family, None, Setup(weights=str(root / "teacher")))


def use_student(root: Path, _: Any) -> None:
    loading.load_unet(from_folder(root / "students" / "all_kinds"), str(root / "students" / "all_kinds"))


# ---------------------------------------------------------------------------------------------- data


def examples_of(data: Any) -> int:
    """How many examples can be used; the others say why."""
    usable = 0
    for index in range(len(data)):
        with contextlib.suppress(BrokenExample):
            usable += bool(data[index])
    return usable


def read_folder(name: str) -> Callable[[Path], Any]:
    return lambda root: examples_of(folder.open_data("train", 16, str(root / name)))


def read_shard(root: Path) -> int:
    usable = 0
    for example in webdataset.open_data("train", 16, str(root / "shard.tar")).in_order(0):
        with contextlib.suppress(BrokenExample):
            usable += bool(example())
    return usable


def read_picture(root: Path) -> None:
    file = root / "picture"
    shapes_of([file], Frame.of(64, Selection(buckets=True)))
    with contextlib.suppress(BrokenExample):
        decode_picture(file.read_bytes(), Frame.of(16, Selection()))


def members(_: Path) -> list[list[str]]:
    """A shard's files by name, with their bytes as text."""
    with tarfile.open(SHARD) as tar:
        files = [member for member in tar if member.isfile() and member.size < 2000][:9]
        return [[member.name, tar.extractfile(member).read().decode("latin-1")] for member in files]  # type: ignore[union-attr]


def as_tar(rows: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in rows:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode("latin-1")))
    return stream.getvalue()


def as_csv(rows: Any) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return stream.getvalue().encode()


def as_parquet(rows: Any) -> bytes:
    stream = io.BytesIO()
    pd.DataFrame(rows).to_parquet(stream)
    return stream.getvalue()


PICTURE = {"format": "JPEG", "mode": "RGB", "size": [20, 16], "exif": {"274": 6, "282": 72, "305": "x"}}
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")


def as_picture(content: Any, spoil: bool = True) -> bytes:
    """A picture as a program may write it: of any format, mode and size, its EXIF spoilt."""
    chance = Random(json.dumps(content))
    size, mode = content["size"], chance.choice(("RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", content["mode"]))
    picture = Image.new(mode, (int(size[0]) % 64, int(size[1]) % 64))
    exif = Image.Exif()
    for tag, value in content["exif"].items():
        exif[int(tag)] = value
    raw = b"Exif\0\0" + torn(exif.tobytes()[6:], chance) if spoil else exif.tobytes()
    stream = io.BytesIO()
    picture.save(stream, chance.choice(FORMATS), exif=raw)
    return stream.getvalue()


UNET = "teacher/unet/diffusion_pytorch_model.safetensors"


def raw_of(place: str) -> Callable[[], bytes]:
    return cache((BEFORE / place).read_bytes)


def rows(_: Path) -> Any:
    return [{"file_name": f"{name}.png", "text": f"picture {name}", "aesthetic": 5.0} for name in "ab"]


def record(name: str, model: Any, use: Work = lambda *_: None, place: str = "") -> Kind:
    path = place or f"records/{name}.json"
    return Kind(name, path, file_of(path), lambda root: model.load(root / path), use)


def of_teacher(name: str, place: str, use: Work = use_teacher) -> Kind:
    return Kind(name, f"teacher/{place}", file_of(f"teacher/{place}"), read_teacher, use)


KINDS = (
    record("profile", Profile, use_profile),
    record("plan", PruningPlan, use_plan),
    record("bench", BenchResult, use_bench),
    record("damage", Damage, use_damage),
    record("frontier", Frontier, lambda _, one: shown("frontier", one)),
    record("schedule", Schedule, use_schedule),
    record("steps-damage", StepsDamage, use_steps_damage),
    record("search", Search, lambda _, one: shown("search", one)),
    record("validate", Validation, use_validation),
    record("compare", Comparison, lambda _, one: shown("comparison", one)),
    record("validate-schedules", ScheduleValidation, lambda _, one: on_terminal(one)),
    record("schedule-frontier", ScheduleFrontier, lambda _, one: on_terminal(one)),
    record("levers", LeversResult, use_levers),
    record("export", ExportResult),
    record("build", BuildResult, use_student, "students/all_kinds/build.json"),
    record("distill", DistillResult, place="finished/distill.json"),
    record("slim", SlimRun, place="slim.json"),
    record("unfinished validate", ValidationRun, place="unfinished/validate.json.run"),
    record("unfinished damage", DamageRun, place="unfinished/damage.json.run"),
    record("unfinished validate-schedules", ScheduleValidationRun, place=SCHEDULES_RUN),
    record("unfinished steps-damage", StepsRun, place=STEPS_RUN),
    record("library of units", Units, use_library, f"library/{INDEX}"),
    of_tensors("unit", (unit := unit_file(Path("library"), "0" * 64).as_posix()), unit_bytes,
               lambda root: checkpoints.read_tensors(root / unit), use_library),
    Kind("run", "finished/run.json", file_of("finished/run.json"), read_run),
    Kind("stage", (stage := "unfinished/paused/stages/compressed/stage.json"), file_of(stage), read_stage),
    Kind("log", (log := "finished/log.jsonl"), lines_of(log), lambda root: TrainingLog.load(root / log), use_log,
         as_json_lines),
    Kind("checkpoint", (state := "checkpoints/step-00000002/state.json"), file_of(state), read_checkpoint),
    Kind("checkpoint weights", (moments := "checkpoints/step-00000002/weights.safetensors"),
         lambda root: header_of((root / moments).read_bytes()), read_checkpoint,
         encode=lambda header: len(as_json(header)).to_bytes(8, "little") + as_json(header) + bytes(12)),
    of_teacher("unet config", "unet/config.json"),
    of_teacher("vae config", "vae/config.json"),
    of_teacher("text encoder config", "text_encoder/config.json"),
    of_teacher("scheduler config", "scheduler/scheduler_config.json", use_pipeline),
    Kind("model index", (index := "teacher/model_index.json"), file_of(index), read_teacher, use_pipeline),
    Kind("student config", (own := "students/all_kinds/config.json"), file_of(own),
         lambda root: from_folder(root / "students" / "all_kinds"), use_student),
    of_tensors("weights", UNET, raw_of(UNET), lambda root: checkpoints.read_tensors(root / UNET, lambda _: False),
               lambda root, _: loading.load_unet(read_teacher(root), str(root / "teacher"))),
    Kind("guide", (guided := "reports/run/profile.json"), file_of(guided), lambda _: guide.lines()),
    Kind("cache", (cached := "latents/cache.json"), file_of(cached),
         lambda root: examples_of(latents.open_data("train", 32, str(root / "latents")))),
    of_tensors("cached latents", (shard := "latents/latents-00002.safetensors"), raw_of(shard),
               lambda root: examples_of(latents.open_data("train", 32, str(root / "latents"))), lambda *_: None),
    Kind("metadata.jsonl", "data.jsonl/metadata.jsonl", rows, read_folder("data.jsonl"), encode=as_json_lines),
    Kind("metadata.csv", "data.csv/metadata.csv", rows, read_folder("data.csv"), encode=as_csv),
    Kind("metadata.parquet", "data.parquet/metadata.parquet", rows, read_folder("data.parquet"), encode=as_parquet),
    Kind("caption.json", "data/a.json", lambda _: {"caption": "beside", "aesthetic": 5.0}, read_folder("data")),
    Kind("shard", "shard.tar", members, read_shard, encode=as_tar),
    Kind("picture", "picture", lambda _: PICTURE, read_picture, encode=as_picture,
         raw=lambda content: as_picture(content, spoil=False)),
    *FOREIGN,
)  # fmt: skip
