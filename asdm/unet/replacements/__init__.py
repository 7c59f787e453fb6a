"""Replacements: what may take a unit's place. One file each.

A file defines `replace(unit, siblings=(), **options) -> nn.Module | None`: what the unit should become, or None where
the replacement does not apply. `siblings` are the units of the same kind in the same block of the original, in the
order of their layers, the unit itself and those that a plan removes among them. The new module shares the unit's
weights and copies what it takes from siblings; the given ones are left as they were. A file may also define

- `prepare(unet)`, which is called once when the replacements of a plan are in their UNet;
- `SETTINGS`, the options that are timed and measured (`{}`: as they are by default), the cheapest to try first;
- a parameter `power` of `replace`: by the path of a layer in the unit, the mean square of each of its input channels on
  calibration data, by which what is kept is chosen; without it, by the weights alone;
- `refits(unit)`, the layers of the new module that least squares on calibration data can compensate with.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType, NoneType
from typing import Any

import torch
from torch import nn

from asdm.utils import registry

Power = Mapping[str, torch.Tensor]
Settings = tuple[dict[str, Any], ...]
HERE = "asdm.unet.replacements"


@dataclass(frozen=True)
class Refit:
    """A layer of the new unit, and the module (the same path in both, "": the unit) whose output it helps to keep.

    What the layer gives is a summand of what the module gives, or all of it.
    """

    layer: str
    module: str


def settings_of(name: str) -> Settings:
    """The options of a replacement that are timed and measured."""
    return getattr(registry.load(HERE, name), "SETTINGS", ({},))


def names_of(text: str) -> list[str]:
    """`all`, or replacements by name with commas between them; removing a unit (`pass_through`) is none of them.

    Raises ValueError that lists the choices for another name.
    """
    choices = [name for name in registry.names(HERE) if name != "pass_through"]
    asked = list(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    names = choices if "all" in asked else asked
    for name in asked:
        if name == "all":
            continue
        if name not in choices:
            raise ValueError(f"unknown name {name!r} in replacements; choose from all, {', '.join(choices)}.")
    return names


@cache
def _parameters(name: str) -> tuple[str, ...]:
    return tuple(inspect.signature(registry.load(HERE, name).replace).parameters)


def made(
    name: str, unit: nn.Module, siblings: Sequence[nn.Module], options: Mapping[str, Any], power: Power | None = None
) -> nn.Module | None:
    """What a replacement makes of a unit, or None where it does not apply; raises ValueError for an unknown option."""
    file: ModuleType = registry.load(HERE, name)
    choices = [option for option in _parameters(name) if option not in ("unit", "siblings", "power")]
    for option in options:
        if option not in choices:
            raise ValueError(f"{name} has no option {option!r}; choose from {', '.join(choices) or 'none'}")
    measured = {"power": power} if power is not None and "power" in _parameters(name) else {}
    return file.replace(unit, siblings, **options, **measured)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError for an option that is not one of its choices."""
    if value not in choices or isinstance(value, bool):
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_share(name: str, value: Any, most: float = 1.0) -> None:
    """Raises ValueError for an option that is not a number above 0 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ValueError(f"{name} must be above 0 and at most {most:g}, got {value!r}")


def shared_copy(module: nn.Module, whole: Iterable[nn.Module] = ()) -> nn.Module:
    """A copy of a module's structure whose parameters and buffers, and the modules of `whole`, are the very same."""
    same = [*module.parameters(), *module.buffers(), *whole]
    return _copied(module, {id(one): one for one in same})


CONSTANTS = (bool, int, float, str, NoneType)


def _is_constant(value: Any) -> bool:
    return type(value) is tuple and all(isinstance(item, CONSTANTS) for item in value)


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` makes of a module, several times as fast: it spares the dozen empty dicts of each."""
    if id(module) in memo or hasattr(module, "__deepcopy__"):
        return copy.deepcopy(module, memo)
    memo[id(module)] = copied = type(module).__new__(type(module))
    for name, value in vars(module).items():
        if name == "_modules":
            value = {key: child if child is None else _copied(child, memo) for key, child in value.items()}
        elif name in ("_parameters", "_buffers") or (isinstance(value, dict | set) and not value):
            value = value.copy()  # of the very same tensors
        elif not isinstance(value, CONSTANTS) and not _is_constant(value):
            value = copy.deepcopy(value, memo)
        vars(copied)[name] = value
    return copied
