"""What a plan's edits are about: the parts they touch, their shares of the whole, and the damage that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from asdm.plan.edits import AnyEdit, GraftBlock, RemoveBlock, RemoveLayer, ReplaceUnit
from asdm_prof.records import Damage, EditDamage, Interval, OptionRecord, PartRecord, Profile


def touched(profile: Profile, edit: AnyEdit) -> list[PartRecord]:
    """The parts that an edit removes, replaces or grafts; the deepest pair takes its downsampler along."""
    topology = profile.topology
    if isinstance(edit, RemoveLayer):
        return [part for part in profile.parts if (part.block, part.layer) == (edit.block, edit.layer)]
    if isinstance(edit, GraftBlock):
        return [part for part in profile.parts if part.block == edit.block]
    if not isinstance(edit, RemoveBlock):
        return [part for part in profile.parts if part.fqn == edit.unit]
    if edit.block not in topology.down_blocks:
        return [part for part in profile.parts if part.block == edit.block]
    pair, leading = (edit.block, topology.mirror(edit.block)), topology.samplers.get(topology.down_blocks[-2])
    return [part for part in profile.parts if part.block in pair or part.fqn == leading]


def shares(profile: Profile, *edits: AnyEdit) -> tuple[float, float]:
    """The shares of the time and of the parameters that edits are about, each part counted once."""
    parts = {part.fqn: part for edit in edits for part in touched(profile, edit)}.values()
    return sum(part.share.median for part in parts), sum(part.params for part in parts) / profile.whole.params


def option_of(profile: Profile, edit: ReplaceUnit) -> OptionRecord | None:
    """The replacement as it was timed in the place of the unit, where it was."""
    return next((one for one in profile.options if one.edit == edit), None)


def unit_damages(damage: Damage | None) -> dict[str, tuple[AnyEdit, Interval]]:
    """unit → the edit that is about it alone, and the damage of that: a removal where one was measured."""
    damages: dict[str, tuple[AnyEdit, Interval]] = {}
    for row in damage.edits if damage else ():
        unit = None if row.also else getattr(row.edit, "unit", None)
        if unit and (unit not in damages or not isinstance(row.edit, ReplaceUnit)):
            damages[unit] = row.edit, row.damage
    return damages


def damage_of(damage: Damage | None, edit: AnyEdit, planned: Sequence[AnyEdit]) -> EditDamage | None:
    """What was measured of a plan's edit: alone, or with others of the plan that must go along with it."""
    rows = damage.edits if damage else ()
    fitting = [row for row in rows if edit in row.edits and all(one in planned for one in row.edits)]
    return min(fitting, key=lambda row: len(row.edits), default=None)
