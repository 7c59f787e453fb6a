"""Schedules by name, one file each: `make(topology, steps, **options)` gives the passes, the steps and the networks.

A preset is typed as `name` or `name:option=value,option=value`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from asdm.plan.topology import Topology
from asdm.schedule.schedule import UNET, Pass, Schedule
from asdm.utils import registry

PACKAGE = "asdm.schedule.presets"
FULL = Pass()
NOTHING = Pass(inherit=(UNET,))


@dataclass(frozen=True)
class Steps:
    """What a preset makes: passes by name, the pass of every step, and networks besides the teacher."""

    passes: dict[str, Pass]
    steps: list[str]
    networks: dict[str, str] = field(default_factory=dict)


def is_preset(source: str) -> bool:
    """Whether a schedule as typed names a preset, with or without options."""
    return source.partition(":")[0] in registry.names(PACKAGE)


def make(source: str, topology: Topology, steps: int, family: str, config_sha256: str | None = None) -> Schedule:
    """The schedule of a preset as typed; raises ValueError for an unknown name, option or value."""
    name, _, text = source.partition(":")
    maker = registry.load(PACKAGE, name).make
    preset = maker(topology, steps, **_options(name, maker, text))
    return Schedule(
        name=source, family=family, teacher_config_sha256=config_sha256,
        passes=preset.passes, steps=tuple(preset.steps), networks=preset.networks,
    )  # fmt: skip


def _options(name: str, maker: object, text: str) -> dict[str, object]:
    known = {p.name: p.default for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY}  # type: ignore[arg-type]
    options: dict[str, object] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            raise ValueError(f"unknown option {key!r} of {name}; choose from {', '.join(known)}.")
        if isinstance(known[key], int):
            if not value.isdecimal():
                raise ValueError(f"{key} of {name} must be a whole number, got {value!r}.")
            options[key] = int(value)
        else:
            options[key] = value
    return options


def at_least(name: str, key: str, value: int, least: int) -> None:
    """Raises ValueError for an option's value below `least`."""
    if value < least:
        raise ValueError(f"{key} of {name} must be at least {least}, got {value}.")


def every(steps: int, interval: int, between: str) -> list[str]:
    """`full` every `interval` steps, `between` in the others."""
    return ["full" if step % interval == 0 else between for step in range(steps)]
