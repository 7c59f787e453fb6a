"""Settings that are declared once: bounds, keywords, and the options that a command makes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from asdm.cli.options import Without, from_settings
from asdm.distill.settings import DistillSettings
from asdm.evaluate.settings import BenchSettings
from asdm.models.settings import GenerateSettings, Setup
from asdm.utils.settings import Option, check_bounds, from_keywords, options, takes
from asdm_prof.profiler.settings import ProfileSettings
from asdm_prof.search.settings import SearchSettings
from asdm_prof.sensitivity.settings import AcrossSteps


@dataclass(frozen=True)
class Settings(Setup):
    """A command's own settings."""

    rate: Annotated[float, Option("How fast.", at_least=0, below=1)] = 0.5
    time_s: Annotated[float, Option("How long.", flag="--time", above=0)] = 1.0
    free: Annotated[float, Option("Anything.")] = 0.0
    schedule: Annotated[str, Option("constant or linear.", choices=("constant", "linear"))] = "constant"
    rounds: int = 3  # not for users


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0."),
        ({"rate": 1.0}, "rate must be below 1, got 1.0."),
        ({"rate": float("nan")}, "rate must be a finite number and at least 0 and below 1, got nan."),
        ({"free": float("nan")}, "free must be a finite number, got nan."),
        ({"time_s": 0}, "time_s (--time) must be above 0, got 0."),
        ({"time_s": float("inf")}, "time_s (--time) must be a finite number and above 0, got inf."),
        ({"schedule": "step"}, "unknown schedule 'step'; choose from constant, linear."),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_bounds(Settings(**values))


def test_every_choice_stands_in_its_help() -> None:
    declared = [
        (f"{settings.__name__}.{name}", option)
        for settings in (GenerateSettings, DistillSettings, SearchSettings, AcrossSteps, BenchSettings, ProfileSettings)
        for name, option in options(settings).items()
        if option.choices
    ]
    assert len(declared) > 8
    for name, option in declared:
        missing = [choice for choice in option.choices if not re.search(rf"\b{re.escape(choice)}\b", option.help)]
        assert not missing, f"the help of {name} leaves out {missing}"


def test_an_unknown_keyword_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'bach'; choose from weights, .*device, dtype, .*rounds"):
        from_keywords(Settings, {"bach": 2})
    assert from_keywords(Settings, {"batch": 2, "rounds": 4}) == Settings(batch=2, rounds=4)


def test_a_command_has_an_option_for_each_field_and_gets_an_instance() -> None:
    received: list[Settings] = []

    @from_settings
    def command(name: str, *, settings: Annotated[Settings, Without("threads", "batch")], loud: bool = False) -> None:
        received.append(settings)

    app = typer.Typer()
    app.command()(command)
    flags = {flag for parameter in typer.main.get_command(app).params for flag in parameter.opts}
    users = {"--weights", "--device", "--dtype", "--seed", "--size", "--rate", "--time", "--schedule"}
    assert users | {"name", "--loud"} <= flags
    assert not flags & {"--threads", "--batch", "--rounds", "--time-s"}
    done = CliRunner().invoke(app, ["x", "--rate", "0.25", "--time", "2", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert received == [Settings(rate=0.25, time_s=2.0)]


def test_a_functions_docstring_lists_what_it_takes() -> None:
    @takes(Settings)
    def function(**settings: Any) -> None:
        """Do something."""

    assert function.__doc__ is not None
    assert function.__doc__.startswith("Do something.")
    for name, option in options(Settings).items():
        assert f"`{name}`" in function.__doc__
        assert option.help in function.__doc__
