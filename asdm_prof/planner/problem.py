"""The planner's problem: a profile's choices, and the constraints and interactions between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from asdm.plan.edits import AnyEdit, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.topology import UnitShape
from asdm_prof.planner.choices import CONVOLUTION_WEIGHT, EXPERTS, RECOVERED_BY_EXPERTS, Choice, edits_key, make_choices
from asdm_prof.records import Damage, Profile, Validation

Row = tuple[Mapping[int, float], float, float]  # coefficients by column, least, most


@dataclass(frozen=True)
class Pair:
    """The damage of two choices taken together beyond the sum of both."""

    first: int
    second: int
    damage: float


@dataclass(frozen=True)
class Experts:
    """Pruned kernels that a neighbour takes as experts: the damage recovered if one choice of each list is taken."""

    pruned: tuple[int, ...]
    takers: tuple[int, ...]
    damage: float


@dataclass(frozen=True)
class Problem:
    """The choices of one profile, and the constraints and interactions between them."""

    profile: Profile
    choices: tuple[Choice, ...]
    pairs: tuple[Pair, ...] = ()
    hosts: tuple[tuple[int, tuple[int, ...]], ...] = ()  # a choice, and those of which it needs one
    experts: tuple[Experts, ...] = ()
    rules: tuple[Row, ...] = ()  # what a plan must hold besides: `loads_in`

    @classmethod
    def of(cls, profile: Profile, validation: Validation | None = None, damage: Damage | None = None) -> Problem:
        choices = tuple(make_choices(profile, validation, damage))
        if damage is not None:
            columns = {edits_key(choice.edits): i for i, choice in enumerate(choices)}
            column_of = [columns.get(edits_key(one.edits)) for one in damage.edits]
            pairs = [(column_of[pair.first], column_of[pair.second], pair.damage) for pair in damage.pairs]
            return cls(profile, choices, tuple(Pair(a, b, d) for a, b, d in pairs if a is not None and b is not None))
        return cls(profile, choices, (), *_experts(profile, choices))

    @property
    def saving(self) -> list[float]:
        return [choice.saving for choice in self.choices]

    @cached_property
    def layer_sets(self) -> dict[str, list[int]]:
        """Down block → the choices that remove layers of it and of its mirror; a plan takes at most one of them."""
        sets: dict[str, list[int]] = {}
        for i, choice in enumerate(self.choices):
            if isinstance(choice.edit, RemoveLayer):
                sets.setdefault(choice.edit.block, []).append(i)
        return sets

    def dominators(self, budgets: Iterable[str]) -> list[int]:
        """By choice, how many others of the same unit save as much of every budget for no more damage.

        0 for choices that depend on others: those of several units, with pairs, with experts, or under further rules.
        """
        names = tuple(budgets)
        if names not in self._counted:
            self._counted[names] = self._count_dominators(names)
        return self._counted[names]

    @cached_property
    def _counted(self) -> dict[tuple[str, ...], list[int]]:
        """Dominators by budgets: every regret asks for them again."""
        return {}

    def _count_dominators(self, budgets: tuple[str, ...]) -> list[int]:
        saves = [{"latency": "saving"}.get(name, name) for name in budgets if name != "memory"]
        saves += ["params"] if "memory" in budgets else []
        worth = {i: np.array([-c.damage, c.edit.op == "remove_unit" and "memory" in budgets,
                              *(getattr(c, name) for name in saves)])
                 for i, c in enumerate(self.choices) if i in self._free}  # fmt: skip
        by_unit: dict[frozenset[str], list[int]] = {}
        for i in worth:
            by_unit.setdefault(self.choices[i].touches, []).append(i)
        counts = [0] * len(self.choices)
        for own in by_unit.values():
            for i in own:
                better = [j for j in own if j != i and bool((worth[j] >= worth[i]).all())]
                counts[i] = sum(j < i or bool((worth[j] > worth[i]).any()) for j in better)
        return counts

    @cached_property
    def _free(self) -> set[int]:
        if self.rules:
            return set()
        tied = {i for pair in self.pairs for i in (pair.first, pair.second)}
        tied |= {i for host, needs in self.hosts for i in (host, *needs)}
        tied |= {i for experts in self.experts for i in (*experts.pruned, *experts.takers)}
        singles = {i for i, c in enumerate(self.choices) if isinstance(c.edit, RemoveUnit | ReplaceUnit)}
        return singles - tied

    def dominated(self, budgets: Iterable[str], by: int = 1, but: str = "") -> frozenset[int]:
        """Choices with at least `by` dominators, which no best plan needs; those of the unit `but` are left out."""
        counts = self.dominators(tuple(budgets))
        return frozenset(i for i, n in enumerate(counts) if n >= by and but not in self.choices[i].touches)

    def of_choices(self, left: Sequence[int]) -> Problem:
        """The same problem with these choices alone."""
        place = {i: new for new, i in enumerate(left)}

        def known(columns: Iterable[int]) -> tuple[int, ...]:
            return tuple(place[i] for i in columns if i in place)

        return replace(
            self,
            choices=tuple(self.choices[i] for i in left),
            pairs=tuple(replace(p, first=place[p.first], second=place[p.second])
                        for p in self.pairs if {p.first, p.second} <= place.keys()),
            hosts=tuple((place[host], known(needs)) for host, needs in self.hosts if host in place),
            experts=tuple(replace(e, pruned=known(e.pruned), takers=known(e.takers)) for e in self.experts),
            rules=tuple(({place[i]: x for i, x in row.items() if i in place}, low, high)
                        for row, low, high in self.rules),
        )  # fmt: skip

    def damage(self, chosen: Sequence[int]) -> float:
        """Damage of choices taken together: their sum, with pair terms and what experts recover."""
        taken = set(chosen)
        total = sum(self.choices[i].damage for i in sorted(taken))
        total += sum(pair.damage for pair in self.pairs if {pair.first, pair.second} <= taken)
        return total - sum(e.damage for e in self.experts if taken & {*e.pruned} and taken & {*e.takers})

    def edits(self, chosen: Sequence[int]) -> tuple[AnyEdit, ...]:
        return tuple(edit for i in sorted(chosen) for edit in self.choices[i].edits)

    def student(self, chosen: Sequence[int]) -> object:
        """A key of the student that choices make: the units that are removed, and how others are replaced."""
        taken = [self.choices[i] for i in chosen]
        replaced = [c for c in taken if isinstance(c.edit, ReplaceUnit)]
        gone = frozenset(fqn for c in taken if c not in replaced for fqn in c.touches)
        return gone, edits_key([edit for c in replaced for edit in c.edits])

    def chosen(self, edits: Sequence[AnyEdit]) -> list[int] | None:
        """The choices that make up a plan's edits, or None if they are not made of these."""
        left, columns = {*edits_key(edits)}, []
        for i in sorted(range(len(self.choices)), key=lambda i: -len(self.choices[i].edits)):
            if (own := edits_key(self.choices[i].edits)) <= left:
                left -= own
                columns.append(i)
        return None if left else sorted(columns)


def _experts(
    profile: Profile, choices: Sequence[Choice]
) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], tuple[Experts, ...]]:
    """Choices that host experts, with the pruned neighbours they need, and what each pruned kernel recovers there."""
    hosts = {
        c.edit.unit: i for i, c in enumerate(choices) if isinstance(c.edit, ReplaceUnit) and c.edit.with_ == EXPERTS
    }
    resnets = {unit.fqn: unit for unit in profile.topology.units if unit.kind == "resnet"}
    removals = [(i, c.touches) for i, c in enumerate(choices) if isinstance(c.edit, RemoveLayer | RemoveUnit)]
    pruned = {fqn: [i for i, touches in removals if fqn in touches] for fqn in resnets}  # its block stays

    def beside(fqn: str) -> list[str]:
        return [other for other in resnets if other != fqn and resnets[other].block == resnets[fqn].block]

    needs = []
    for host, column in hosts.items():
        neighbours = itertools.chain.from_iterable(pruned[fqn] for fqn in beside(host))
        needs.append((column, tuple(sorted(set(neighbours)))))
    worth = []
    for fqn, unit in resnets.items():
        for place, kernel in enumerate(_kernels(unit)):
            takers = [
                hosts[other] for other in beside(fqn) if other in hosts and _kernels(resnets[other])[place] == kernel
            ]
            if takers and pruned[fqn]:
                lost = CONVOLUTION_WEIGHT * 9 * math.prod(kernel) / profile.whole.params
                worth.append(Experts(tuple(pruned[fqn]), tuple(takers), RECOVERED_BY_EXPERTS * lost))
    return tuple(needs), tuple(worth)


def _kernels(unit: UnitShape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Channels in and out of a ResNet's two 3×3 convolutions."""
    return (unit.channels_in, unit.channels_out), (unit.channels_out, unit.channels_out)
