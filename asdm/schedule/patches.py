"""Run a UNet with some of its places inherited: their modules' forwards are replaced for the length of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils._pytree import tree_map

from asdm.schedule.kept import Halves, Kept, Key
from asdm.schedule.legality import HalfPass, Place
from asdm.unet import blocks

Forward = Callable[..., Any]


def modules_of(unet: nn.Module, place: Place) -> list[nn.Module]:
    """The modules of a place: one, or the attentions of a Transformer unit."""
    if place.kind in ("self_attention", "cross_attention"):
        attentions = blocks.attentions(unet.get_submodule(place.fqn), place.kind == "cross_attention")
        return [getattr(parent, attribute) for parent, attribute in attentions]
    return [unet.get_submodule(place.fqn)]


def keys_of(unet: nn.Module, network: str, place: Place) -> Iterator[tuple[nn.Module, Key]]:
    """The modules of a place of a network, each with the key that its values are kept under."""
    for i, module in enumerate(modules_of(unet, place)):
        yield module, (network, place, i)


@contextmanager
def patched(
    unet: nn.Module, how: HalfPass, keep: Iterable[Place], kept: Kept, now: int, halves: Halves
) -> Iterator[None]:
    """Within the block, a call of `unet` inherits the places of a pass, and keeps what later steps inherit."""
    forwards: dict[nn.Module, Forward] = {}
    for place in sorted(keep, key=str):
        if place.whole or place in how.places:
            continue
        for module, key in keys_of(unet, how.network, place):
            keeping = _keeping_residual if place.residual else _keeping
            forwards[module] = keeping(forwards.get(module, module.forward), module, key, kept, now, halves)
    for place in how.places:
        for module, key in keys_of(unet, how.network, place):
            inherited = _inherited_residual if place.residual else _inherited
            forwards[module] = inherited(module, key, kept, now, halves, how)
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


def _keeping(original: Forward, module: nn.Module, key: Key, kept: Kept, now: int, halves: Halves) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        kept.put(key, now, halves, output)
        return output

    return forward


def _keeping_residual(original: Forward, module: nn.Module, key: Key, kept: Kept, now: int, halves: Halves) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        with blocks.watching_shortcut(module, _input(args, kwargs)) as shortcut:
            output = original(*args, **kwargs)
        kept.put(key, now, halves, tree_map(lambda whole: whole - shortcut(), output))
        return output

    return forward


def _inherited(module: nn.Module, key: Key, kept: Kept, now: int, halves: Halves, how: HalfPass) -> Forward:
    return lambda *args, **kwargs: kept.get(key, halves, now, how)


def _inherited_residual(module: nn.Module, key: Key, kept: Kept, now: int, halves: Halves, how: HalfPass) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        through = blocks.shortcut(module, _input(args, kwargs))
        return tree_map(lambda residual: through + residual, kept.get(key, halves, now, how))

    return forward


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))
