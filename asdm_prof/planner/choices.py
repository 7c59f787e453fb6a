"""What a plan can choose from, and what each choice saves and costs (docs/methods/planner.md).

A choice is one edit, or edits that are legal only together: layers of mirrored blocks, or the deepest pair with the
middle block. Its damage is measured (`asdm-prof sensitivity`) or, without a damage file, the structural prior.

The structural prior turns the paper's reading of its Fig. 2, that a unit of much latency and few parameters is
redundant, into a number: the damage of an edit is the share of all parameters whose use is lost. A removed unit loses
all of its parameters; a replaced one keeps them, and loses as much of their use as it saves in convolution and linear
MACs (the attention core has no parameters, so making it cheaper costs little). A ResNet's parameters count double: the
paper says that convolution does the key work where features are shallow, and that attention is relatively redundant
(§2.3). It gives no number; the factor of two is our guess. Where a pruned ResNet's kernels become experts of a
neighbour (CLME-CondConv, §2.3), half of the loss is recovered, because they are used again elsewhere. The half is also
our guess.

Measured damage says nothing about experts: they start as the unit that they replace, and their worth shows in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asdm.plan.edits import AnyEdit, Edits
from asdm.plan.legality import ResolvedPlan, legal_edits
from asdm_prof.records import Damage, PartRecord, Profile, Validation

CONVOLUTION_WEIGHT = 2.0
EXPERTS = "cond_conv"
RECOVERED_BY_EXPERTS = 0.5


@dataclass(frozen=True)
class Choice:
    """Edits that a plan makes together: what they save (shares of the teacher) and what they cost."""

    edits: Edits
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


def make_choices(profile: Profile, validation: Validation | None = None, damage: Damage | None = None) -> list[Choice]:
    """Every legal choice on a profile's UNet with its price, in a fixed order; a validation corrects the savings.

    With measured damage, only the choices that were measured.
    """
    factors = validation.factors if validation else {}
    edits = legal_edits(profile.topology, [option.edit for option in profile.options])
    priced = [_choice(profile, edit) for edit in edits]
    corrected = [replace(c, saving=c.saving * (1 - factors.get(c.edit.op, 0.0))) for c in priced]
    if damage is None:
        return corrected
    measured = {edits_key(one.edits): one.damage.value for one in damage.edits}
    return [replace(c, damage=measured[edits_key(c.edits)]) for c in corrected if edits_key(c.edits) in measured]


def edits_key(edits: Sequence[AnyEdit]) -> frozenset[str]:
    """A key of a set of edits that does not depend on their order."""
    return frozenset(edit.model_dump_json(by_alias=True) for edit in edits)


def _choice(profile: Profile, edits: ResolvedPlan) -> Choice:
    """A legal edit with its price: a replacement saves the difference of two times, a removal its parts' time."""
    whole = profile.whole
    if edits.replacements:
        (edit,) = edits.replacements
        unit, option = profile.part(edit.unit), profile.option(edit)
        lost_use = 1 - (option.conv_macs + option.linear_macs) / max(unit.conv_macs + unit.linear_macs, 1)
        return Choice(
            edits=edits.edits,
            touches=edits.touched_units,
            saving=unit.share.median - option.share.median,
            damage=max(lost_use, 0.0) * _worth(unit) / whole.params,
            macs=(unit.macs - option.macs) / max(whole.macs, 1),
            params=(unit.params - option.params) / whole.params,
        )
    parts = [profile.part(fqn) for fqn in edits.gone]
    return Choice(
        edits=edits.edits,
        touches=edits.touched_units,
        saving=sum(part.share.median for part in parts),
        damage=sum(_worth(part) for part in parts) / whole.params,
        macs=sum(part.macs for part in parts) / max(whole.macs, 1),
        params=sum(part.params for part in parts) / whole.params,
    )


def _worth(part: PartRecord) -> float:
    return part.params * (CONVOLUTION_WEIGHT if part.kind == "resnet" else 1.0)
