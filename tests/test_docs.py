"""What is documented exists, and what exists is documented."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import asdm
import asdm.cli
import asdm_prof.cli
from asdm.utils import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
APPS = {"asdm": typer.main.get_command(asdm.cli.app), "asdm-prof": typer.main.get_command(asdm_prof.cli.app)}
COMMANDS = [(program, name) for program, app in APPS.items() for name in app.commands]  # type: ignore[attr-defined]


def command(program: str, name: str) -> Any:
    return APPS[program].commands[name]  # type: ignore[attr-defined]


def options(program: str, name: str) -> set[str]:
    found = command(program, name).params
    return {flag for parameter in found for flag in parameter.opts} | {"--help"}


def typed_commands() -> list[list[str]]:
    """Every line of the README's shell blocks that calls one of the two commands."""
    blocks = re.findall(r"```(?:bash|console|sh)\n(.*?)```", README, flags=re.DOTALL)
    joined = [block.replace("\\\n", " ") for block in blocks]
    lines = [
        line.removeprefix("$ ").removeprefix("accelerate launch -m ").strip()
        for block in joined
        for line in block.splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.split(" ")[0] in APPS]


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_is_in_the_readme_and_explains_itself(program: str, name: str) -> None:
    assert f"{program} {name}" in README
    assert command(program, name).help
    for parameter in command(program, name).params:
        assert getattr(parameter, "help", None), f"{program} {name} {parameter.name} has no help"


def test_the_readme_types_commands_that_exist() -> None:
    typed = typed_commands()
    assert len(typed) >= len(COMMANDS)
    for program, *words in typed:
        if words[0].startswith("-"):
            continue
        assert (program, words[0]) in COMMANDS, f"{program} {words[0]}"
        flags = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert flags <= options(program, words[0]), f"{program} {shlex.join(words)}"


@pytest.mark.parametrize(
    "package",
    [
        "asdm.models.families",
        "asdm.unet.replacements",
        "asdm.measure.backends",
        "asdm.data.datasets",
        "asdm_prof.renderers",
    ],
)
def test_every_file_of_a_seam_is_in_the_readme(package: str) -> None:
    for name in registry.names(package):
        assert f"`{name}`" in README, f"{name} of {package} is not in the README"


def test_every_file_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"\]\(([^)#:]+)\)", README)) | set(re.findall(r"`(reports/sd15/[\w./-]+)`", README))
    assert "reports/sd15/bench.json" in named
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {asdm.__version__}" in changelog


def test_every_floor_of_a_dependency_is_met_by_the_tested_set() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert f"\n{name}==" in tested, f"{name} is not in constraints.txt"
