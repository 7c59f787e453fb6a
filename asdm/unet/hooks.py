"""What goes through a model's modules during a forward: captured by name, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from asdm.unet.shapes import KnownShapes

Places = tuple[tuple[str, str], ...]  # (student's fqn, teacher's fqn)


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments and its output."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def capture(model: nn.Module, fqns: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """The feature map that each named module gives, filled during the forwards inside the `with`.

    Of a tuple it is the first tensor (a down block gives its skips as well). Names are those of the bare model, also
    where DDP or the like is wrapped around it. Raises ValueError for a name that is not there.
    """
    maps: dict[str, torch.Tensor] = {}
    with _listening(model, fqns, lambda fqn, call: maps.update({fqn: first_tensor(call.output)})):
        yield maps


@contextmanager
def captured_calls(model: nn.Module, fqns: Iterable[str]) -> Iterator[dict[str, Call]]:
    """Each named module's last call inside the `with`, arguments and all."""
    calls: dict[str, Call] = {}
    with _listening(model, fqns, lambda fqn, call: calls.update({fqn: call})):
        yield calls


@contextmanager
def _listening(model: nn.Module, fqns: Iterable[str], report: Callable[[str, Call], None]) -> Iterator[None]:
    modules = {fqn: _named(bare(model), fqn) for fqn in fqns}
    with ExitStack() as stack:
        for fqn, module in modules.items():
            hook = partial(lambda fqn, _, *call: report(fqn, Call(*call)), fqn)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def first_tensor(output: Any) -> torch.Tensor:
    """The feature map in what a module returned."""
    return output if isinstance(output, torch.Tensor) else first_tensor(output[0])


def bare(model: nn.Module) -> Any:
    """The model inside DDP's wrapping, however deep."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    return model


def _named(model: nn.Module, fqn: str) -> nn.Module:
    try:
        return model.get_submodule(fqn)
    except AttributeError:
        raise ValueError(f"there is no module {fqn!r} in this {type(model).__name__} to capture.") from None


# ---------------------------------------------------------------------------------------------- places


def comparable(
    student: nn.Module, teacher: nn.Module, places: dict[str, Places], inputs: dict[str, Any]
) -> dict[str, Places]:
    """`places` without those where the two maps differ in shape; models and inputs may be on the meta device.

    Where a plan removes the deepest pair, the block above it loses its sampler, so its map has another size.
    """
    ours, theirs = ([pair[i] for pairs in places.values() for pair in pairs] for i in (0, 1))
    with torch.no_grad(), KnownShapes(), capture(student, ours) as mine, capture(teacher, theirs) as yours:
        student(**inputs)
        teacher(**inputs)
    return {kind: tuple((s, t) for s, t in pairs if mine[s].shape == yours[t].shape) for kind, pairs in places.items()}
