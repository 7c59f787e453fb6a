"""The plans whose students other programs load, as rows over a problem's choices (docs/methods/planner.md).

`asdm.models.loaders` says what each program loads. Here the same is said linearly, for the choices of one profile:
what a plan may not choose, and what it must choose together.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from asdm.models import loaders
from asdm.models.families import load_family
from asdm.models.loaders import structure_of
from asdm.plan.edits import RemoveBlock, RemoveLayer, ReplaceUnit
from asdm.plan.legality import resolve
from asdm_prof.planner import milp
from asdm_prof.planner.choices import Choice
from asdm_prof.planner.problem import Problem, Row
from asdm_prof.records import Profile

PROGRAMS = ("comfyui", "sdcpp", "diffusers")


def parse_programs(text: str | None) -> tuple[str, ...]:
    """`comfyui,sdcpp` as names; raises ValueError that lists the choices for another."""
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in PROGRAMS:
            raise ValueError(f"unknown program {name!r} for --loads-in; choose from {', '.join(PROGRAMS)}.")
    return names


def unet_config(profile: Profile) -> dict[str, Any]:
    """The config of a profile's UNet; raises ValueError where its folder is gone or holds another UNet."""
    from asdm.models import loading

    family = load_family(profile.family)
    if loading.unet_config_sha256(loading.meta_unet(family).config) != profile.config_sha256:
        raise ValueError(f"{profile.family} is not the model that was profiled; profile it again.")
    return family.unet


def ruled(problem: Problem, programs: Sequence[str]) -> Problem:
    """A problem whose plans' students every one of the programs loads.

    Raises ValueError for a program that loads no student of this model.
    """
    own = rows(problem.profile, problem.choices, programs, unet_config(problem.profile))
    ruled_problem = replace(problem, rules=tuple(own))
    if milp.most_saved(ruled_problem, "latency") is None:
        raise ValueError(f"no plan of {problem.profile.family} makes a student that {' and '.join(programs)} load.")
    return ruled_problem


def rows(profile: Profile, choices: Sequence[Choice], programs: Iterable[str], config: Mapping[str, Any]) -> list[Row]:
    """Rows over the choices that hold exactly for plans whose students every one of the programs loads.

    Raises ValueError for a program that loads no student of this model.
    """
    combined: list[Row] = []
    for program in programs:
        combined += _Acceptance(profile, choices, config).rows(program)
    return combined


class _Acceptance:
    """What each program takes of one teacher's students, over the choices of a profile."""

    def __init__(self, profile: Profile, choices: Sequence[Choice], config: Mapping[str, Any]) -> None:
        self.profile, self.choices, self.shape = profile, choices, profile.topology
        self.structure = structure_of(config, resolve(self.shape, ()))
        self.downs, self.units = self.shape.down_blocks, {unit.fqn: unit for unit in self.shape.units}

    def rows(self, program: str) -> Iterator[Row]:
        yield from {"comfyui": self._comfyui, "sdcpp": self._sdcpp, "diffusers": self._diffusers}[program]()

    # ------------------------------------------------------------------------------------------ expressions

    def _gone(self, fqn: str) -> dict[int, float]:
        """1 where a unit is removed."""
        return {i: 1.0 for i, c in enumerate(self.choices) if fqn in c.touches and not isinstance(c.edit, ReplaceUnit)}

    def _alone(self, fqn: str) -> dict[int, float]:
        """1 where a unit by itself is removed."""
        return {i: 1.0 for i in self._gone(fqn) if self.choices[i].edit.op == "remove_unit"}

    def _layers_gone(self, block: str) -> dict[int, float]:
        """How many layers of a down block are removed one by one."""
        counts = {
            i: float(sum(isinstance(edit, RemoveLayer) and edit.block == block for edit in c.edits))
            for i, c in enumerate(self.choices)
        }
        return {i: n for i, n in counts.items() if n}

    def _deepest_gone(self) -> dict[int, float]:
        """1 where the deepest pair is removed."""
        removed = [{edit.block for edit in c.edits if isinstance(edit, RemoveBlock)} for c in self.choices]
        return {i: 1.0 for i, blocks in enumerate(removed) if self.downs[-1] in blocks}

    def _only(self, *ops: str) -> Row:
        """No choices of other kinds."""
        return {i: 1.0 for i, c in enumerate(self.choices) if c.edit.op not in ops}, 0, 0

    def _refuse(self, program: str) -> None:
        claims = loaders.claims(self.structure, loaders.best_layout(program))
        why = next(claim.why for claim in claims if claim.program == loaders.TITLES[program])
        raise ValueError(f"{loaders.TITLES[program]} does not load {self.profile.family} and its students: {why}.")

    # ------------------------------------------------------------------------------------------ programs

    def _comfyui(self) -> Iterator[Row]:
        """ResNets stay in their layers, a text width can be read, and the middle block is one that it builds."""
        if not loaders.loads_in(self.structure, "comfyui"):
            self._refuse("comfyui")
        yield self._only("remove_layer", "remove_unit", "remove_block")
        outside = {unit.fqn for unit in self.units.values() if unit.kind == "resnet" and unit.block != "mid_block"}
        alone = [i for i, c in enumerate(self.choices) if c.edit.op == "remove_unit" and c.touches & outside]
        yield dict.fromkeys(alone, 1.0), 0, 0
        down = {unit.fqn for unit in self.units.values() if unit.block in self.downs}
        if self.structure.family == "SDXL":
            yield {i: 1.0 for i, c in enumerate(self.choices) if c.touches & down}, 0, 0
        else:
            attentions = {fqn for fqn in down if self.units[fqn].kind == "transformer"}
            lost = {i: float(len(c.touches & attentions)) for i, c in enumerate(self.choices)}
            yield lost, 0, len(attentions) - 1
        yield from self._middle_rows()

    def _middle_rows(self) -> Iterator[Row]:
        """Two ResNets around an attention become themselves, one ResNet, or nothing."""
        middle = [unit for unit in self.units.values() if unit.block == "mid_block"]
        attention = [unit.fqn for unit in middle if unit.kind == "transformer"]
        if not attention:
            return
        resnets = _sum(self._gone(unit.fqn) for unit in middle if unit.kind == "resnet")
        gone = self._gone(attention[0])
        yield _sum([resnets, _times(gone, -1)]), 0, np.inf
        yield _sum([resnets, _times(gone, -2)]), -np.inf, 0

    def _diffusers(self) -> Iterator[Row]:
        """Whole layers and blocks alone, and the same number of layers left in every down block."""
        if not self.structure.plain or not all(layer.resnet for layer in self.structure.layers):
            self._refuse("diffusers")
        yield self._only("remove_layer", "remove_block")
        n = {block: len(self.shape.layers(block)) for block in self.downs}
        first, *others = self.downs
        for block in others:
            less = _sum([self._layers_gone(block), _times(self._layers_gone(first), -1)])
            free = _times(self._deepest_gone(), 2 * max(n.values())) if block == self.downs[-1] else {}
            yield _sum([less, free]), n[block] - n[first], np.inf
            yield _sum([less, _times(free, -1)]), -np.inf, n[block] - n[first]

    def _sdcpp(self) -> Iterator[Row]:
        """The published UNet, or the way from there to BK-SDM-Tiny's or SDXS's."""
        itself = loaders.loads_in(self.structure, "sdcpp")
        if self._can_become_tiny():
            yield from self._tiny_rows(optional=itself and len(self.downs) == 4)
        elif itself:
            yield dict.fromkeys(range(len(self.choices)), 1.0), 0, 0
        else:
            self._refuse("sdcpp")

    def _can_become_tiny(self) -> bool:
        s = self.structure
        if s.family not in loaders.TINY or s.in_channels != 4 or s.unusual or len(self.downs) not in (3, 4):
            return False
        attends = (all(layer.depth == 1 for block in s.down[:3] for layer in block)
                   and all(layer.depth == 1 for block in s.up[-3:] for layer in block))  # fmt: skip
        return attends and s.channels[:3] == (320, 640, 1280) and not loaders.assembled_wrongly(s)

    def _tiny_rows(self, optional: bool) -> Iterator[Row]:
        """One layer in each of three down blocks, no middle; the shallow pair's attentions are there or not.

        `optional`: or nothing at all, where the deepest pair stays.
        """
        deepest = self._deepest_gone()
        taken = deepest if optional else {}
        fixed = 0.0 if optional else 1.0
        if len(self.downs) == 3 or not optional:
            yield deepest, len(self.downs) - 3, len(self.downs) - 3
        for block in self.downs[3:]:
            yield self._layers_gone(block), 0, 0
        for block in self.downs[:3]:
            n = len(self.shape.layers(block)) - 1
            yield _sum([self._layers_gone(block), _times(taken, -n)]), n * fixed, n * fixed
        for unit in (unit for unit in self.units.values() if unit.block == "mid_block"):
            yield _sum([self._gone(unit.fqn), _times(taken, -1)]), fixed, fixed
        first, last = self.downs[0], self.shape.up_blocks[-1]
        shallow = [u for u in self.units.values() if u.kind == "transformer" and u.block in (first, last)]
        alone = {unit.fqn: self._alone(unit.fqn) for unit in shallow}
        sdxs = _sum(alone[u.fqn] for u in shallow if u.block == first)
        allowed = set(itertools.chain(*alone.values()))
        mid = {
            i for i, c in enumerate(self.choices) if c.touches and all(f.startswith("mid_block.") for f in c.touches)
        }
        yield {i: 1.0 for i, c in enumerate(self.choices)
               if c.edit.op in ("replace_unit", "remove_unit") and i not in allowed | mid}, 0, 0  # fmt: skip
        if self.structure.family != "SD 1":
            yield dict.fromkeys(allowed, 1.0), 0, 0
            return
        if optional:
            yield _sum([sdxs, _times(deepest, -1)]), -np.inf, 0
        for unit in (u for u in shallow if u.block == last):
            yield _sum([self._gone(unit.fqn), _times(sdxs, -1)]), 0, np.inf
            yield _sum([alone[unit.fqn], _times(sdxs, -1)]), -np.inf, 0


def _sum(expressions: Iterable[Mapping[int, float]]) -> dict[int, float]:
    total: dict[int, float] = {}
    for expression in expressions:
        for column, value in expression.items():
            total[column] = total.get(column, 0.0) + value
    return total


def _times(expression: Mapping[int, float], factor: float) -> dict[int, float]:
    return {column: factor * value for column, value in expression.items()}
