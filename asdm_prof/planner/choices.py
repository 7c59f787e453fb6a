"""What a plan may choose from, and what each choice saves and costs (DESIGN §6).

A choice is one edit, or the edits that are legal only together: layers of mirrored blocks, the deepest pair with the
middle block. Damage is measured where there is a file of it (`asdm-prof sensitivity`), else it is the structural prior.

The structural prior is the paper's reading of its Fig. 2, that a unit of much latency and few parameters is redundant,
as a number: the damage of an edit is the share of all parameters whose use is lost. A removed unit loses all of its
parameters; a replaced one keeps them and loses as much of their use as it saves convolution and linear MACs (the
attention core has no parameters, so making it cheaper costs little). A ResNet's parameters count double: the paper says
that convolution does the key work where features are shallow, and attention is relatively redundant (§2.3); it gives no
number, and two is our guess. Where a pruned ResNet's kernels are experts of a neighbour (CLME-CondConv, §2.3), half of
what they lose comes back: they are used again, in another place. The half is our guess too.

Measured damage knows no experts: they start as the unit that they replace, and what they are worth shows in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from asdm.plan.edits import AnyEdit, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.legality import is_legal_flow, legal_layer_sets, resolve, why_no_identity
from asdm_prof.records import Damage, PartRecord, Profile, Validation

CONVOLUTION_WEIGHT = 2.0
EXPERTS = "cond_conv"
RECOVERED_BY_EXPERTS = 0.5


@dataclass(frozen=True)
class Choice:
    """Edits that a plan makes together: what they save (shares of the teacher) and what they cost."""

    edits: tuple[AnyEdit, ...]
    touches: frozenset[str]  # fqns of the units that it decides on
    saving: float  # of the latency
    damage: float
    macs: float = 0.0
    params: float = 0.0

    @property
    def edit(self) -> AnyEdit:
        """The first edit, of the kind (`op`) of them all."""
        return self.edits[0]

    def __str__(self) -> str:
        return " and ".join(map(str, self.edits))


def choices(profile: Profile, validation: Validation | None = None, damage: Damage | None = None) -> list[Choice]:
    """Every legal choice on a profile's UNet with its price, in a fixed order; savings as a validation corrects them.

    With measured damage, those that were measured.
    """
    factors = validation.factors if validation else {}
    found = [replace(c, saving=c.saving * (1 - factors.get(c.edit.op, 0.0))) for c in _choices(profile)]
    if damage is None:
        return found
    measured = {key(one.edits): one.damage.value for one in damage.edits}
    return [replace(c, damage=measured[key(c.edits)]) for c in found if key(c.edits) in measured]


def key(edits: Sequence[AnyEdit]) -> frozenset[str]:
    """What tells sets of edits apart, whatever their order."""
    return frozenset(edit.model_dump_json(by_alias=True) for edit in edits)


def _choices(profile: Profile) -> list[Choice]:
    shape = profile.topology
    found = [_remove_unit(profile, unit.fqn) for unit in shape.units if not why_no_identity(shape, unit)]
    found += [_replace_unit(profile, i) for i in range(len(profile.options))]
    for down in shape.down_blocks:
        for removed in legal_layer_sets(shape, down)[1:]:
            fqns = [unit.fqn for layer in removed for unit in shape.layer_units(*layer)]
            edits = tuple(RemoveLayer(block=block, layer=layer) for block, layer in removed)
            found.append(_removal(profile, edits, fqns, fqns))
    return found + list(_block_choices(profile))


def _block_choices(profile: Profile) -> Iterator[Choice]:
    """The middle block, and with it the deepest pair, where their neighbours' channels fit without them."""
    shape = profile.topology
    mid = ("mid_block",) if "mid_block" in shape.blocks else ()
    pair = (shape.down_blocks[-1],) if len(shape.down_blocks) > 1 else ()
    for blocks in ((*mid,), (*pair, *mid)) if pair else ((*mid,),):
        removed = {*blocks, *(shape.mirror(block) for block in blocks if block != "mid_block")}
        if blocks and is_legal_flow(shape, removed, ()):
            edits = tuple(RemoveBlock(block=block) for block in blocks)
            gone = resolve(shape, edits).gone
            yield _removal(profile, edits, [unit.fqn for unit in shape.units if unit.block in removed], gone)


def _remove_unit(profile: Profile, fqn: str) -> Choice:
    return _removal(profile, (RemoveUnit(unit=fqn),), [fqn], [fqn])


def _removal(profile: Profile, edits: tuple[AnyEdit, ...], touches: Sequence[str], gone: Sequence[str]) -> Choice:
    parts, whole = [profile.part(fqn) for fqn in gone], profile.whole
    return Choice(
        edits=edits,
        touches=frozenset(touches),
        saving=sum(part.share.median for part in parts),
        damage=sum(_worth(part) for part in parts) / whole.params,
        macs=sum(part.macs for part in parts) / max(whole.macs, 1),
        params=sum(part.params for part in parts) / whole.params,
    )


def _replace_unit(profile: Profile, index: int) -> Choice:
    option, whole = profile.options[index], profile.whole
    unit = profile.part(option.unit)
    lost_use = 1 - (option.conv_macs + option.linear_macs) / (unit.conv_macs + unit.linear_macs)
    return Choice(
        edits=(ReplaceUnit(unit=option.unit, with_=option.replacement),),
        touches=frozenset([option.unit]),
        saving=unit.share.median - option.share.median,
        damage=max(lost_use, 0.0) * _worth(unit) / whole.params,
        macs=(unit.macs - option.macs) / max(whole.macs, 1),
        params=(unit.params - option.params) / whole.params,
    )


def _worth(part: PartRecord) -> float:
    return part.params * (CONVOLUTION_WEIGHT if part.kind == "resnet" else 1.0)
