"""Options that are declared once: a dataclass field carries its help and its bounds, for commands and Python alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_type_hints

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What a setting means and which values it may have; `Annotated[int, Option("…", at_least=1)]`."""

    help: str
    flag: str = ""  # as typed, such as --raw/--normalise; empty: from the field's name
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    seam: str = ""  # the package whose files are the choices
    parse: Callable[[Any], Any] | None = None  # for a value that is typed as text and is something else
    automatic: bool = False  # a user who leaves it out gets what the command works out, not the field's default


def options(settings: Any) -> Mapping[str, Option]:
    """The fields of a settings class that users set, by name, in order."""
    hints = get_type_hints(settings, include_extras=True)
    metadata = {field.name: getattr(hints[field.name], "__metadata__", ()) for field in fields(settings)}
    return {name: option for name, data in metadata.items() for option in data if isinstance(option, Option)}


def flag(name: str, option: Option) -> str:
    """The option as typed: `--batch`."""
    return option.flag or f"--{name.replace('_', '-')}"


def check_bounds(settings: Any) -> None:
    """Raises ValueError for the first field that is out of its bounds, naming it, its value and the choices."""
    for name, option in options(type(settings)).items():
        value = getattr(settings, name)
        if value is not None:
            check_value(name, option, value)


def check_value(name: str, option: Option, value: Any) -> None:
    """Raises ValueError for a value that is out of its option's bounds."""
    if option.choices and value not in option.choices:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(option.choices)}.")
    limits = []
    if isinstance(value, float) and not math.isfinite(value):
        limits.append("a finite number")
    if option.at_least is not None and not option.at_least <= value < float("inf"):
        limits.append(f"at least {option.at_least:g}")
    if option.at_most is not None and not value <= option.at_most:
        limits.append(f"at most {option.at_most:g}")
    if option.above is not None and not option.above < value < float("inf"):
        limits.append(f"above {option.above:g}")
    if option.below is not None and not value < option.below:
        limits.append(f"below {option.below:g}")
    if limits:
        typed = flag(name, option)
        also = "" if typed == f"--{name.replace('_', '-')}" else f" ({typed})"
        raise ValueError(f"{name}{also} must be {' and '.join(limits)}, got {value}.")


def from_keywords(settings: type[S], values: Mapping[str, Any]) -> S:
    """An instance of a settings class from what a user gave.

    Raises ValueError for a value that cannot be read, and one that lists the choices for an unknown name.
    """
    choices = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    if unknown := next((name for name in values if name not in choices), None):
        raise ValueError(f"unknown setting {unknown!r}; choose from {', '.join(choices)}.")
    parsers = {name: option.parse for name, option in options(settings).items() if option.parse}
    read = {name: parsers[name](value) for name, value in values.items() if name in parsers and value is not None}
    return settings(**{**values, **read})


def takes(settings: Any) -> Callable[[F], F]:
    """Add the settings that a function takes as keywords, with their help and defaults, to its docstring."""
    defaults = {field.name: field.default for field in fields(settings)}
    lines = [f"- `{name}` ({defaults[name]!r}): {option.help}" for name, option in options(settings).items()]

    def document(function: F) -> F:
        function.__doc__ = "\n\n".join([str(function.__doc__), "`settings`:", "\n".join(lines)])
        return function

    return document
