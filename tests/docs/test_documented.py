"""What is documented exists, and what exists is documented."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import asdm
import asdm.cli
import asdm_prof.cli
from asdm.utils import registry
from tests.docs.documents import DOCS, LANGUAGES, ROOT, Command, blocks, commands, documents, shown_commands
from tests.test_floors import FLOORS

README = documents()["README.md"]
APPS = {"asdm": typer.main.get_command(asdm.cli.app), "asdm-prof": typer.main.get_command(asdm_prof.cli.app)}
COMMANDS = [(program, name) for program, app in APPS.items() for name in app.commands]  # type: ignore[attr-defined]
SEAMS = {
    "asdm.models.families": "family",
    "asdm.unet.replacements": "replacement",
    "asdm.measure.backends": "backend",
    "asdm.data.datasets": "dataset",
    "asdm.distill.losses": "loss-term",
    "asdm.evaluate.metrics": "metric",
    "asdm.schedule.presets": "schedule-preset",
    "asdm_prof.renderers": "renderer",
    "asdm_prof.renderers.html.sections": "report-section",
}


def command(program: str, name: str) -> Any:
    return APPS[program].commands[name]  # type: ignore[attr-defined]


def options(program: str, name: str) -> set[str]:
    parameters = command(program, name).params
    flags = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    return flags | {"--help"}


def our_commands() -> list[tuple[Command, list[str]]]:
    """Every documented command line that calls one of the two programs, with its words."""
    lines = [(line, line.text.removeprefix("accelerate launch -m ")) for line in (*commands(), *shown_commands())]
    return [(line, shlex.split(text, comments=True)) for line, text in lines if text.split(" ")[0] in APPS]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_every_block_is_of_a_language_that_a_test_looks_at() -> None:
    for block in blocks():
        assert block.language in LANGUAGES, f"{block} is {block.language or 'of no language'}"


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_has_a_page_and_explains_itself(program: str, name: str) -> None:
    page = f"docs/commands/{name}.md"
    assert f"[`{program} {name}`]({page})" in README
    assert f"```{{options}} {program} {name}\n" in documents()[page]
    assert command(program, name).help
    for parameter in command(program, name).params:
        assert getattr(parameter, "help", None), f"{program} {name} {parameter.name} has no help"


def test_documented_commands_exist_with_their_options() -> None:
    assert len(our_commands()) >= len(COMMANDS)
    for line, (program, *words) in our_commands():
        if not words or words[0].startswith("-"):
            continue
        assert (program, words[0]) in COMMANDS, str(line)
        flags = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert flags <= options(program, words[0]), str(line)


def test_documented_modules_exist() -> None:
    named = {name for text in documents().values() for name in re.findall(r"python -m ([\w.]+)", text)}
    assert "benchmarks.proof" in named
    for name in named:
        assert importlib.util.find_spec(name), name


def test_options_named_in_a_commands_page_are_options_of_a_command() -> None:
    known = {flag for program, name in COMMANDS for flag in options(program, name)}
    known |= {"--install-completion", "--show-completion", "--version"}
    for program, name in COMMANDS:
        named = set(re.findall(r"`(--[a-z][\w-]*)", documents()[f"docs/commands/{name}.md"]))
        assert named <= known, f"{program} {name}: {named - known}"


@pytest.mark.parametrize("package", SEAMS)
def test_every_file_of_a_seam_is_documented(package: str) -> None:
    page = f"docs/extending/{SEAMS[package]}.md"
    for name in registry.names(package):
        assert f"`{name}`" in documents()[page], f"{name} of {package} is not in {page}"


@pytest.mark.parametrize("name", registry.names("asdm.unet.replacements"))
def test_every_replacement_has_a_whole_card(name: str) -> None:
    card = registry.load("asdm.unet.replacements", name).__doc__ or ""
    assert [card.count(f"\n\n{lead}: ") for lead in ("What it does", "When it helps")] == [1, 1]
    assert "§2." in card or "\n\nNot in the paper" in card, "where it comes from"


def test_the_code_layout_lists_every_package_from_the_ground_up() -> None:
    page = documents()["docs/extending/code-layout.md"]
    for package, floors in FLOORS.items():
        (listed,) = re.findall(rf"^```{{packages}} {package}\n(.*?)\n```", page, flags=re.DOTALL | re.MULTILINE)
        floor_of = {name: i for i, floor in enumerate(floors) for name in floor if (ROOT / package / name).is_dir()}
        names = listed.split()
        assert {*names} == {*floor_of}
        assert names == sorted(names, key=floor_of.__getitem__)


def test_every_file_that_a_document_names_is_there() -> None:
    linked = 0
    for document, text in documents().items():
        folder = (ROOT / document).parent
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for path in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", prose):
            assert (folder / path).exists(), f"{document} links to {path}"
            linked += 1
        for path in re.findall(r"`(reports/(?:sd15|mini(?:-64)?|sdxl|peers)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), f"{document} names {path}"
    assert linked > 50


def test_every_test_that_a_document_names_is_there() -> None:
    named = {name for text in documents().values() for name in re.findall(r"`(tests/[\w./-]*(?:::\w+)?)`", text)}
    assert len([name for name in named if "::" in name]) > 40
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("document", ["docs/commands/index.md", "docs/guides/training.md"])
def test_every_guarantee_names_its_tests(document: str) -> None:
    table = documents()[document].partition("| if … | then … | tested by |\n")[2].partition("\n\n")[0]
    _, *rows = table.splitlines()
    assert len(rows) > 9
    for row in rows:
        assert re.search(r"\| [^|]*`tests/[\w./]+::test_\w+`[^|]* \|$", row), row


def test_no_committed_result_names_a_folder_of_the_machine_that_made_it() -> None:
    results = sorted((ROOT / "reports").rglob("*.json"))
    commands_of = {path: re.findall(r'"command": "(.*)"', path.read_text()) for path in results}
    assert len(results) > 20
    assert {path: line for path, lines in commands_of.items() for line in lines if re.search(r"[ =]/", line)} == {}


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for document, text in documents().items():
        for entries in re.findall(r"^```{toctree}.*?^```", text, flags=re.DOTALL | re.MULTILINE):
            names = [line for line in entries.splitlines()[1:-1] if line and not line.startswith(":")]
            listed |= {(ROOT / document).parent / f"{name}.md" for name in names}
    pages = {path for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert pages - listed == {DOCS / "index.md"}


def test_the_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {asdm.__version__}" in changelog


USERS_EXTRAS = ("mini", "openvino", "coreml", "parquet", "tensorboard", "search")


def pinned(constraints: str) -> dict[str, str]:
    lines = (ROOT / constraints).read_text(encoding="utf-8").splitlines()
    names_and_releases = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): release for name, release in names_and_releases}


def requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in (*project["dependencies"], *optional)]


@pytest.mark.parametrize("requirement", requirements(*USERS_EXTRAS, "docs"), ids=lambda requirement: requirement.name)
def test_the_tested_set_meets_each_floor(requirement: Requirement) -> None:
    assert pinned("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", requirements(*USERS_EXTRAS), ids=lambda requirement: requirement.name)
def test_the_oldest_set_pins_each_floor(requirement: Requirement) -> None:
    (floor,) = requirement.specifier
    oldest = Version(pinned("constraints-oldest.txt")[canonicalize_name(requirement.name)])
    assert floor.operator == ">="
    assert oldest in requirement.specifier
    assert oldest.release[:2] == (*Version(floor.version).release, 0)[:2]
