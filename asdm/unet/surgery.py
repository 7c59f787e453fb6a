"""Apply a plan's edits to a UNet, permanently or for the length of a `with`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from asdm.plan.edits import AnyEdit, PruningPlan, ReplaceUnit
from asdm.plan.legality import ResolvedPlan, resolve
from asdm.unet import blocks
from asdm.unet.replacements import Power, made, pass_through, settings_of
from asdm.utils import registry

MakeUnit = Callable[[nn.Module, ReplaceUnit], nn.Module]


@dataclass(frozen=True)
class Applied:
    """What surgery did; `name_map` maps every part's and block's name in the student to the teacher's."""

    name_map: dict[str, str]
    removed: tuple[str, ...]
    replaced: dict[str, str]

    def teacher_name(self, name: str) -> str:
        """The teacher's name of a student's module or parameter: its longest mapped prefix, translated."""
        at = max((part for part in self.name_map if f"{name}.".startswith(f"{part}.")), key=len, default="")
        return self.name_map[at] + name[len(at) :] if at else name


def resolved_on(unet: nn.Module, plan: ResolvedPlan | PruningPlan | Iterable[AnyEdit]) -> ResolvedPlan:
    """A plan resolved against a teacher; one that is resolved already is returned as it is."""
    return plan if isinstance(plan, ResolvedPlan) else resolve(blocks.topology(unet), plan)


def apply_plan(unet: nn.Module, plan: ResolvedPlan, make: MakeUnit | None = None) -> Applied:
    """Change the teacher `unet` in place; raises ValueError for a replacement that does not apply to its unit.

    Edits use the teacher's names. ModuleLists renumber after a deletion; the name map finds a part (weights, features)
    again. `make` makes a replacement: `replacement_for` by default, or a library of units.
    """
    modules = {edit.unit: (make or replacement_for)(unet, edit) for edit in plan.replacements}
    modules |= {fqn: _identity(unet.get_submodule(fqn)) for fqn in plan.removed_units}
    for fqn, module in modules.items():  # nothing has changed so far, so an error leaves the UNet whole
        unet.set_submodule(fqn, module)
    for block, layer in sorted(plan.removed_layers, reverse=True):
        blocks.delete_layer(unet, block, layer)
    if "mid_block" in plan.removed_blocks:
        blocks.delete_mid_block(unet)
    if plan.removes_deepest_pair:
        blocks.delete_deepest_pair(unet)
    for name in {edit.with_ for edit in plan.replacements}:
        getattr(registry.load("asdm.unet.replacements", name), "prepare", lambda _: None)(unet)
    left = [*(name for name, _ in blocks.iter_blocks(unet)), *(part.fqn for part in blocks.iter_parts(unet))]
    name_map = {name: plan.names.get(name, name) for name in left}  # glue outside the blocks keeps its name
    return Applied(name_map=name_map, removed=plan.gone, replaced=plan.replaced)


def replacement_for(unet: nn.Module, edit: ReplaceUnit, power: Power | None = None) -> nn.Module:
    """The module that `edit` puts in its unit's place; `unet` is still whole, so layers to be removed are siblings.

    Raises ValueError if the replacement does not apply.
    """
    try:
        module = made(edit.with_, unet.get_submodule(edit.unit), blocks.siblings(unet, edit.unit), edit.options, power)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot {edit}: {str(error).rstrip('.')}.") from None
    if module is None:
        raise ValueError(f"cannot {edit}: {edit.with_} does not apply to this unit.")
    return module


def applicable(unet: nn.Module, names: Iterable[str], units: Iterable[str] | None = None) -> list[ReplaceUnit]:
    """Every replacement of `names`, with each setting that is timed and measured, in each unit that takes it.

    Names first, then units, then settings. The UNet may be on the meta device, where nothing is decomposed.
    """
    fqns = [unit.fqn for unit in blocks.iter_units(unet)] if units is None else list(units)
    return [
        ReplaceUnit(unit=fqn, with_=name, options=options)
        for name in names
        for fqn in fqns
        for options in settings_of(name)
        if made(name, unet.get_submodule(fqn), blocks.siblings(unet, fqn), options) is not None
    ]


@contextmanager
def swapped(unet: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in their units' places for the length of a `with`; the originals always come back."""
    originals = {fqn: unet.get_submodule(fqn) for fqn in modules}
    try:
        for fqn, module in modules.items():
            unet.set_submodule(fqn, module)
        yield
    finally:
        for fqn, module in originals.items():
            unet.set_submodule(fqn, module)


def _identity(unit: nn.Module) -> nn.Module:
    module = pass_through.replace(unit)
    assert module is not None, "resolve() refuses to remove a unit that cannot become an identity"
    return module
