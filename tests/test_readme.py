"""Every block of the README is run, on something small: a reader's commands, Python and JSON do what they say.

Commands run one after the other in one folder, as a reader would type them, with the family exchanged for a tiny one
and made-up times where only times take long (`CHANGED`). `SLOW` ones are run by `make docs`; `NOT_RUN` ones, which
install, time or need what only a reader has, are checked against the command line's own parser (tests/test_docs.py).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import asdm.cli
import asdm_prof.cli
from asdm.models import student as students
from asdm.models.families import load_family
from asdm.models.loading import meta_unet
from asdm.models.pipeline import pipeline
from asdm.models.settings import Setup
from asdm.plan.edits import PruningPlan, ReplaceUnit
from asdm.plan.legality import resolve
from asdm.unet import blocks as units
from asdm.unet.blocks import topology
from asdm.utils import registry
from tests.asdm.models.test_adapters import lora_of
from tests.asdm_prof import synthetic
from tests.conftest import SMALL, TINY_WHOLE, make_unet
from tests.conftest import run as call_unet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN = {"asdm": asdm.cli.main, "asdm-prof": asdm_prof.cli.main}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(language: str) -> list[Block]:
    """The README's fenced blocks of one language, with the line on which each begins."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    every = [Block(m[1], m[2], README.count("\n", 0, m.start()) + 1) for m in found]
    return [block for block in every if block.language == language]


def test_there_is_no_block_that_no_test_looks_at() -> None:
    languages = set(re.findall(r"^```(\w+)$", README, flags=re.MULTILINE))
    assert languages == {"bash", "python", "pycon", "json", "text"}


# ---------------------------------------------------------------------------------------------- commands

# First words of a command → what is added to it here, or why it is not run here.
CHANGED = {
    "asdm-prof profile": ["--backend", "fake"],
    "asdm-prof validate": ["--plans", "3", "--backend", "fake"],
    "asdm build": ["--force"],
    "asdm bench": ["--backend", "fake"],
    "asdm generate": ["--steps", "1"],
    "asdm-prof report": ["--format", "html,csv"],
    "asdm-prof sensitivity": [
        "--prompts",
        "2",
        "--timesteps",
        "2",
        "--plans",
        "4",
        "--replacement",
        "gri_attention",
        "--force",
    ],
}
NOT_RUN = {
    "make": "a target of the Makefile",
    "pip": "installs this very package",
    "asdm bench --teacher mini": "draws 200 pictures twice (tests/asdm/cli/test_commands.py draws 12)",
    "eval": "a shell's own",
    "asdm distill": "trains (tests/asdm/distill/test_distill.py runs it on something tiny)",
    "asdm-prof search": "trains (tests/asdm_prof/search/test_search.py runs it on something tiny)",
    "accelerate": "needs GPUs; what it launches is checked",
    "asdm cache": "needs a folder of pictures (tests/asdm/data/test_data_sources.py has one)",
    "python reports/": "times for minutes",
}
SLOW = {"asdm export"}


def commands() -> list[tuple[str, int]]:
    """Every line of the README's shell blocks, without comments, and where it stands."""
    found = []
    for block in blocks("bash"):
        begun = ""
        for n, line in enumerate(block.text.splitlines(), block.line + 1):
            if line.endswith("\\"):
                begun += line[:-1]
                continue
            words, begun = shlex.split(begun + line, comments=True), ""
            if words:
                found.append((shlex.join(words), n))
    return found


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)`", README)) | {c.split()[1] for c, _ in commands() if c.startswith("make ")}
    assert named >= {"profile", "test", "docs"}
    assert named <= targets


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"), tiny_folder)


class Reader:
    """Types commands in a folder of his own, and knows what the commands before have left there."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.folder, self.tiny = folder, tiny

    def prepare(self) -> None:
        """What a reader has from earlier: two profiles of each kind that he compares."""
        newest = max((self.folder / "reports").glob("*/profile.json"), key=lambda path: path.stat().st_mtime_ns)
        for name in ("a.json", "b.json", "fp32/profile.json", "bf16/profile.json"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(newest, self.folder / name)

    def types(self, command: str, as_it_is: bool = False) -> int:
        words = [str(self.tiny) if word == "sd15" else word for word in shlex.split(command)]
        if words[:2] == ["asdm", "build"] and "plan.json" not in words:
            words += ["--teacher", str(self.tiny)]
        if words[1] in ("diff", "compare"):
            self.prepare()
        more = next((more for start, more in CHANGED.items() if command.startswith(start)), [])
        words += [] if as_it_is or ("--format" in more and "--format" in words) else more
        if words[1] == "generate":
            Path(self.folder, words[words.index("-o") + 1]).unlink(missing_ok=True)
        before = sys.argv
        sys.argv = words
        try:
            with contextlib.chdir(self.folder), pytest.raises(SystemExit) as caught:
                MAIN[words[0]]()
        finally:
            sys.argv = before
        return int(caught.value.code or 0)


def test_the_readmes_commands_run_one_after_the_other(reader: Reader, capfd: pytest.CaptureFixture[str]) -> None:
    ran = 0
    for command, line in commands():
        if command.startswith((*NOT_RUN, *SLOW)) and "--dry-run" not in command:
            continue
        assert reader.types(command) == 0, f"README line {line}: {command}\n{capfd.readouterr().err}"
        ran += 1
    assert ran > 15
    left = {path.name for path in reader.folder.rglob("*")}
    assert {"profile.json", "plan.json", "bench.json", "report.html", "units.csv", "validate.json", "heart.png"} <= left


@pytest.mark.slow
def test_the_slow_commands_run_too(reader: Reader, capfd: pytest.CaptureFixture[str]) -> None:
    assert reader.types("asdm build a_sdm -o student/") == 0
    for command, line in commands():
        if command.startswith(tuple(SLOW)):
            shutil.rmtree(reader.folder / "student-onnx", ignore_errors=True)
            assert reader.types(command) == 0, f"README line {line}: {command}\n{capfd.readouterr().err}"


# ---------------------------------------------------------------------------------------------- JSON and Python


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: f"line {block.line}")
def test_the_readmes_plans_are_legal(block: Block, sd15_meta: Any) -> None:
    plan = PruningPlan.parse(json.loads(block.text), f"README line {block.line}")
    assert resolve(topology(sd15_meta), plan.edits).gone


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_unet: UNet2DConditionModel) -> dict[str, Any]:
    """What the README's Python takes for granted: a student's folder, a pipeline with it, a LoRA for the teacher."""
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


@pytest.mark.parametrize("block", plain_python(), ids=lambda block: f"line {block.line}")
def test_the_readmes_python_runs(block: Block, prepared: dict[str, Any]) -> None:
    exec(compile(block.text, f"README line {block.line}", "exec"), prepared)


@pytest.mark.parametrize("block", blocks("pycon"), ids=lambda block: f"line {block.line}")
def test_the_readmes_sessions_print_what_they_show(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = doctest.DocTestParser().get_doctest(block.text, {}, f"README line {block.line}", None, block.line)
    found: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(session, out=found.append).failed == 0, "".join(found)


# ---------------------------------------------------------------------------------------------- one more file in a seam


def seam_files() -> dict[str, Block]:
    """`asdm/backends/x.py` → the README's block of that file."""
    return {
        block.text.splitlines()[0].removeprefix("# "): block
        for block in blocks("python")
        if block not in plain_python()
    }


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The README's files, as if they stood in their folders: seam → name of the file there."""
    found = {}
    for path, block in seam_files().items():
        file = tmp_path / "added" / path
        file.parent.mkdir(parents=True)
        file.write_text(block.text)
        package = ".".join(Path(path).parts[:-1])
        module = __import__(package, fromlist=["x"])
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(file.parent)])
        found[package] = file.stem
    yield found
    for package, name in found.items():
        sys.modules.pop(f"{package}.{name}", None)


def test_each_seam_has_an_example_of_ten_lines() -> None:
    seams_shown = {path.rpartition("/")[0] for path in seam_files()}
    assert seams_shown == {f"asdm/{name}" for name in ("families", "replacements", "backends", "datasets")} | {
        "asdm_prof/renderers"
    }
    for path, block in seam_files().items():
        code = [line for line in block.text.splitlines()[1:] if line.strip()]
        assert len(code) <= 10, f"{path} takes {len(code)} lines"


def test_an_added_family_can_be_counted(added: dict[str, str]) -> None:
    family = load_family(added["asdm.models.families"])
    unet = meta_unet(family)
    assert len(units.topology(unet).units) == 38
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
    command = [
        "asdm-prof",
        "profile",
        str(tmp_path / "small"),
        "--time-budget",
        "1",
        "--backend",
        name,
        "-o",
        str(output),
    ]
    assert reader.types(shlex.join(command), as_it_is=True) == 0
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
