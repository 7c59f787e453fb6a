"""Every block of the documents is run, on something small: a reader's commands, Python and JSON do what they say.

Commands run one after the other in one folder, as a reader would type them, README first; a command that several
documents show runs once. The families are exchanged for tiny ones and times are made up where only times take long
(`SMALLER`). `SLOW` ones are run by `make docs-run`; `NOT_RUN` ones, which install, train or need what only a reader
has, are checked against the command line's own parser (tests/docs/test_documented.py).
"""

from __future__ import annotations

import contextlib
import doctest
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import asdm.cli
import asdm_prof.cli
from asdm.cli.bench import print_tables
from asdm.distill import losses
from asdm.evaluate import metrics
from asdm.models import student as students
from asdm.models.execution import Setup
from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.models.pipeline import pipeline
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.records.bench import BenchResult
from asdm.schedule import legality, presets
from asdm.unet.blocks import topology
from asdm.utils import registry
from asdm.utils.record import utc_now
from asdm_prof.renderers import Report, html
from asdm_prof.renderers.html.sections import with_sections
from tests.asdm.models.test_adapters import lora_of
from tests.asdm_prof import synthetic
from tests.docs.documents import ROOT, Block, Command, blocks, commands, documents
from tests.docs.test_documented import SEAMS, options
from tests.tiny import SMALL, TINY_WHOLE, make_unet, run as call_unet

MAIN = {"asdm": asdm.cli.main, "asdm-prof": asdm_prof.cli.main}

# ---------------------------------------------------------------------------------------------- commands

# First words of a command → what is added to it here, or why it is not run here.
SMALLER = {
    "asdm-prof profile": ["--backend", "fake"],
    "asdm-prof validate": ["--plans", "3", "--backend", "fake"],
    "asdm bench": ["--backend", "fake"],
    "asdm generate": ["--steps", "2"],
    "asdm-prof report": ["--format", "html,csv"],
    "asdm-prof sensitivity mini --across-steps": [*("--prompts", "2", "--plans", "3", "--steps", "4", "--ages", "3")],
    "asdm-prof sensitivity": [
        *("--prompts", "2", "--timesteps", "2", "--plans", "4", "--clip", "0", "--replacement", "gri_attention")
    ],
}
NOT_RUN = {
    "make": "a target of the Makefile",
    "pip": "installs this very package",
    "git": "copies this very repository",
    "asdm bench --teacher mini": "draws 200 pictures twice (tests/asdm/cli/test_commands.py draws 12)",
    "asdm distill": "trains (tests/asdm/distill/test_distill.py runs it on something tiny)",
    "asdm-prof search": "trains (tests/asdm_prof/search/test_search.py runs it on something tiny)",
    "accelerate": "needs GPUs; what it launches is checked",
    "asdm slim": "trains (tests/asdm/cli/slim/test_slim.py runs it on something tiny)",
    "asdm cache": "needs a folder of pictures (tests/asdm/data/test_data_sources.py has one)",
    "python": "measures or trains for minutes",
    "chromium": "draws the picture of the README",
    "asdm-prof --install-completion": "changes the reader's shell",
    "asdm --install-completion": "changes the reader's shell",
    "MALLOC_": "a shell's own syntax",
}
SLOW = (
    "asdm export",
    "asdm generate 'a red heart, twemoji style' --fast",
    "asdm bench --teacher sd15 --student a_sdm",
    "asdm distill a_sdm_clme --teacher mini --data emoji --weight",
    "asdm-prof profile sd15 --processes",
    "asdm-prof profile sd15 --batch",
    "asdm-prof profile sd15 --options",
    "asdm-prof sensitivity mini --data emoji --clip",
    "asdm-prof sensitivity mini --replacement",
)


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {name for text in documents().values() for name in re.findall(r"`make ([\w-]+)`", text)}
    named |= {command.text.split()[1] for command in commands() if command.text.startswith("make ")}
    assert named >= {"profile", "test", "docs", "docs-run"}
    assert named <= targets


class Reader:
    """Types commands in a folder of its own, where the files of earlier commands are."""

    def __init__(self, folder: Path, unet: Path, teacher: Path) -> None:
        self.folder = folder
        self.exchanged = {"sd15": str(unet), "sdxl": str(unet), "./my-model/": str(teacher)}
        self.with_weights = {"mini": str(teacher)}  # for the profiler; `asdm` draws and builds with the mini itself
        self.ran: dict[str, int] = {}
        self.profiles: dict[str, Path] = {}  # command → the profile that it wrote under reports/

    def newest_profile(self) -> Path:
        return max((self.folder / "reports").glob("*/profile.json"), key=lambda path: path.stat().st_mtime_ns)

    def prepare(self) -> None:
        """Two profiles of each kind that a reader compares."""
        newest = self.newest_profile()
        for name in ("a.json", "b.json", "fp32/profile.json", "bf16/profile.json"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(newest, self.folder / name)

    def types(self, command: str) -> int:
        """The exit code of a command as it stands."""
        words = shlex.split(command)
        before = sys.argv
        sys.argv = words
        try:
            with contextlib.chdir(self.folder), pytest.raises(SystemExit) as caught:
                MAIN[words[0]]()
        finally:
            sys.argv = before
        return int(caught.value.code or 0)

    def types_something_small(self, command: str) -> int:
        """The exit code of a documented command on a tiny model; the same command is run once.

        A profile that is asked for again becomes the newest one, as if it had been measured again.
        """
        if command in self.profiles:
            path = self.profiles[command]
            created = f'"created_utc": "{utc_now()}"'
            path.write_text(re.sub('"created_utc": "[^"]*"', created, path.read_text(encoding="utf-8"), count=1))
        if command not in self.ran:
            self.ran[command] = self.types(shlex.join(self.smaller(command)))
            if command.startswith("asdm-prof profile ") and " -o " not in command:
                self.profiles[command] = self.newest_profile()
        return self.ran[command]

    def smaller(self, command: str) -> list[str]:
        program, name, *words = shlex.split(command)
        families = self.exchanged | (self.with_weights if program == "asdm-prof" else {})
        words = [families.get(word, word) for word in words]
        if name == "build" and not words[0].endswith("plan.json") and "--teacher" not in words:
            words += ["--teacher", self.exchanged["sd15"]]
        if name in ("diff", "compare"):
            self.prepare()
        if name == "schedule" and "--budget" in words:  # a tiny call is overhead: what can be saved, noise decides
            words[words.index("--budget") + 1] = "0.9"
        more = next((more for start, more in SMALLER.items() if command.startswith(start)), [])
        words += [] if "--format" in more and "--format" in words else more
        if {"-o", "--output"} & {*words} and "--force" in options(program, name) and "--force" not in words:
            words.append("--force")
        return [program, name, *words]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_pipeline: Path) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"), tiny_folder, tiny_pipeline)


def is_run(command: Command, slow: bool) -> bool:
    text = command.text
    return ("--dry-run" in text or not text.startswith(tuple(NOT_RUN))) and text.startswith(SLOW) == slow


def test_documented_commands_run_one_after_the_other(reader: Reader, capfd: pytest.CaptureFixture[str]) -> None:
    document = None
    for command in commands():
        if command.document != document:  # whoever opens a page has done the quick start
            document = command.document
            reader.types_something_small("asdm-prof profile sd15")
        if is_run(command, slow=False):
            assert reader.types_something_small(command.text) == 0, f"{command}\n{capfd.readouterr().err}"
    assert len(reader.ran) > 20
    left = {path.name for path in reader.folder.rglob("*")}
    assert {"profile.json", "plan.json", "bench.json", "report.html", "units.csv", "validate.json", "heart.png"} <= left


@pytest.mark.slow
def test_slow_commands_run_too(reader: Reader, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("asdm-prof profile sd15", "asdm build a_sdm -o student/"):
        assert reader.types_something_small(command) == 0
    for command in commands():
        if is_run(command, slow=True):
            assert reader.types_something_small(command.text) == 0, f"{command}\n{capfd.readouterr().err}"


# ---------------------------------------------------------------------------------------------- output that is shown

# What a document shows of a real run at full size is printed here from that run's record.
RECORDED = {
    "asdm-prof profile sd15": "asdm-prof report profile.json --format console -o out",
    "asdm-prof plan --budget 0.8": "asdm-prof plan --budget 0.8 --profile profile.json -o out.json",
}


def sessions() -> list[Any]:
    """Each command of the `console` blocks with the output that is shown below it."""
    shown = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            marks = [pytest.mark.slow] if command.startswith("asdm distill") else []
            shown.append(pytest.param(block, command, output, marks=marks, id=f"{block}: {command[:40]}"))
    return shown


def replay(command: str, folder: Path) -> int:
    """Print what a command prints, at full size from the record of a real run; its exit code."""
    if command.startswith("asdm bench"):
        print_tables(BenchResult.load(ROOT / "reports" / "sd15" / "bench.json"))
        return 0
    if command in RECORDED:
        shutil.copy(ROOT / "reports" / "sd15" / "profile.json", folder)
    else:
        (folder / "reports").symlink_to(ROOT / "reports")
    return Reader(folder, folder, folder).types(RECORDED.get(command, command))


@pytest.mark.parametrize(("block", "command", "output"), sessions())
def test_shown_output_is_what_the_command_prints(
    block: Block,
    command: str,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Line by line; `…` stands for anything that is left out."""
    monkeypatch.setenv("COLUMNS", "80")
    assert replay(command, tmp_path) == 0, capfd.readouterr().err
    printed = "\n".join(line.rstrip() for line in capfd.readouterr().out.splitlines())
    pattern = ".*".join(re.escape(piece) for piece in output.strip().split("…"))
    assert re.search(pattern, printed, flags=re.DOTALL), f"{block}: {command} prints\n{printed}"


# ---------------------------------------------------------------------------------------------- JSON and Python


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_documented_plans_are_legal(block: Block, sd15_meta: Any) -> None:
    plan = PruningPlan.parse(json.loads(block.text), str(block))
    assert resolve(topology(sd15_meta), plan.edits)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_unet: UNet2DConditionModel) -> dict[str, Any]:
    """What documented Python takes for granted: a student's folder, a pipeline with it, a LoRA for the teacher."""
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    edit = ReplaceUnit(unit="up_blocks.3.attentions.0", with_="gri_attention")
    student, _ = students.build(tiny_unet, PruningPlan(family="tiny", edits=(edit,)))
    student.save_pretrained("student", safe_serialization=True)
    save_file({name: tensor.contiguous() for name, tensor in lora_of(tiny_unet).items()}, "style.safetensors")
    timed, _ = students.build(tiny_unet, students.read_plan("a_sdm_clme_timestep", tiny_unet, "tiny"))
    return {"pipe": pipeline(TINY_WHOLE, student, Setup()), "student": timed}


def plain_python() -> list[Block]:
    """Python blocks that are no file of a seam."""
    return [block for block in blocks("python") if not block.text.startswith("# asdm")]


@pytest.mark.parametrize("block", plain_python(), ids=str)
def test_documented_python_runs(block: Block, prepared: dict[str, Any]) -> None:
    exec(compile(block.text, str(block), "exec"), prepared)


@pytest.mark.parametrize("block", blocks("pycon"), ids=str)
def test_documented_sessions_print_what_they_show(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").symlink_to(ROOT / "reports")
    session = doctest.DocTestParser().get_doctest(block.text, {}, str(block), None, block.line)
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(session, out=failures.append).failed == 0, "".join(failures)


# ---------------------------------------------------------------------------------------------- one more file in a seam


def seam_files() -> dict[str, Block]:
    """`asdm/backends/x.py` → the block with that file."""
    plain = plain_python()
    return {block.text.splitlines()[0].removeprefix("# "): block for block in blocks("python") if block not in plain}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The documented files, as if they stood in their folders: seam → name of the file there."""
    names = {}
    for path, block in seam_files().items():
        file = tmp_path / "added" / path
        file.parent.mkdir(parents=True)
        file.write_text(block.text)
        package = ".".join(Path(path).parts[:-1])
        module = __import__(package, fromlist=["x"])
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(file.parent)])
        names[package] = file.stem
    yield names
    for package, name in names.items():
        sys.modules.pop(f"{package}.{name}", None)


def test_each_seam_has_an_example_of_ten_lines() -> None:
    assert {path.rpartition("/")[0].replace("/", ".") for path in seam_files()} == {*SEAMS}
    for path, block in seam_files().items():
        code = [line for line in block.text.splitlines()[1:] if line.strip()]
        assert len(code) <= 10, f"{path} takes {len(code)} lines"


def test_an_added_family_can_be_counted(added: dict[str, str]) -> None:
    family = load_family(added["asdm.models.families"])
    unet = meta_unet(family)
    assert len(topology(unet).units) == 38
    assert sum(p.numel() for p in unet.parameters()) < 300e6, "the original has 860 M"


def test_an_added_replacement_takes_a_units_place(added: dict[str, str], tiny_unet: UNet2DConditionModel) -> None:
    name = added["asdm.unet.replacements"]
    edit = ReplaceUnit(unit="up_blocks.3.attentions.0", with_=name)
    student, applied = students.build(tiny_unet, PruningPlan(family="tiny", edits=(edit,)))
    assert applied.replaced == {"up_blocks.3.attentions.0": name}
    before, after = call_unet(tiny_unet), call_unet(student)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)


def test_an_added_backend_profiles(added: dict[str, str], reader: Reader, tmp_path: Path) -> None:
    make_unet(**SMALL).save_pretrained(tmp_path / "small", safe_serialization=True)
    name, output = added["asdm.measure.backends"], tmp_path / "profile.json"
    command = f"asdm-prof profile {tmp_path / 'small'} --time-budget 1 --backend {name} -o {output}"
    assert reader.types(command) == 0
    assert json.loads(output.read_text())["backend"] == name


def test_an_added_data_set_gives_captioned_pictures(added: dict[str, str]) -> None:
    examples = registry.load("asdm.data.datasets", added["asdm.data.datasets"]).open_data("train", size=16)
    assert {tuple(example.image.shape) for example in examples} == {(3, 16, 16)}
    assert all(example.image.min() >= -1 and example.image.max() <= 1 and example.caption for example in examples)


def test_an_added_renderer_is_a_format(added: dict[str, str], reader: Reader, tmp_path: Path) -> None:
    profile = synthetic.profile().save(tmp_path / "profile.json")
    name = added["asdm_prof.renderers"]
    assert reader.types(f"asdm-prof report {profile} --format {name} -o {tmp_path / 'out'}") == 0
    (written,) = (tmp_path / "out").iterdir()
    assert written.read_text().startswith(max(synthetic.profile().units, key=lambda unit: unit.latency_s.median).fqn)


def test_an_added_loss_term_can_be_weighed(
    added: dict[str, str], reader: Reader, capfd: pytest.CaptureFixture[str]
) -> None:
    name = added["asdm.distill.losses"]
    prediction = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = losses.LossInputs(
        prediction, torch.cat([prediction[:1], -prediction[1:]]), prediction, prediction, torch.ones(3), "epsilon"
    )
    assert torch.allclose(losses.load(name).loss(inputs), torch.tensor([0.0, 2.0, 2.0]), atol=1e-5)
    teacher = reader.with_weights["mini"]
    assert reader.types(f"asdm distill bk_sdm_base --teacher {teacher} --weight {name}=0.5 -o run/ --dry-run") == 0
    assert f"{name} × 0.5" in capfd.readouterr().out


def test_an_added_metric_compares_images(added: dict[str, str]) -> None:
    metric = registry.load("asdm.evaluate.metrics", added["asdm.evaluate.metrics"])
    judge: Any = None  # this one compares pixels
    teacher, student = (metrics.JudgedImages(judge, torch.full((2, 3, 8, 8), value)) for value in (0.0, 0.2))
    assert metric.samples(student, teacher, None).value == pytest.approx(20, abs=1e-4), "10 · log₁₀(2² / 0.2²)"


def test_an_added_preset_is_a_schedule(added: dict[str, str], tiny_unet: UNet2DConditionModel) -> None:
    shape = topology(tiny_unet)
    made = presets.make(f"{added['asdm.schedule.presets']}:interval=3", shape, 4, "tiny")
    places = [len(step.conditional.places) for step in legality.resolve(shape, made).steps]
    assert places == [0, 1, 1, 0]


def test_an_added_section_is_on_the_page(added: dict[str, str]) -> None:
    package = "asdm_prof.renderers.html.sections"
    module = registry.load(package, added[package])
    page = html.page(Report(synthetic.profile()), with_sections("time", module.section))
    assert module.section(Report(synthetic.profile())).title in page
