"""Which edits are legal on a topology, and what a plan leaves of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asdm.plan.edits import AnyEdit, Edits, GraftBlock, PruningPlan, RemoveBlock, RemoveLayer, RemoveUnit, ReplaceUnit
from asdm.plan.topology import Topology, UnitShape, format_choices


@dataclass(frozen=True)
class ResolvedPlan:
    """What a plan makes of one teacher: what stays, goes, is replaced or grafted, and what it is called in the student.

    `resolve` makes it once; surgery, students, grafts and prices take it from there.
    """

    topology: Topology  # the teacher's
    plan: PruningPlan
    removed_blocks: frozenset[str]
    removed_layers: frozenset[tuple[str, int]]
    removed_units: frozenset[str]  # made identities one by one
    replaced: dict[str, str]  # unit → replacement
    grafted: tuple[str, ...]  # blocks whose weights come from a stage-1 student
    gone: tuple[str, ...]  # fqns of every unit and sampler that is no longer computed
    names: dict[str, str]  # block, unit or sampler that stays: its fqn in the student → in the teacher

    @property
    def edits(self) -> Edits:
        return self.plan.edits

    @property
    def replacements(self) -> tuple[ReplaceUnit, ...]:
        return tuple(edit for edit in self.edits if isinstance(edit, ReplaceUnit))

    @property
    def touched_units(self) -> frozenset[str]:
        """Units that are removed or replaced."""
        return frozenset(unit.fqn for unit in self.topology.units if unit.fqn in {*self.gone, *self.replaced})

    @property
    def removes_deepest_pair(self) -> bool:
        return bool(self.removed_blocks - {"mid_block"})


def resolve(topology: Topology, plan: PruningPlan | Iterable[AnyEdit]) -> ResolvedPlan:
    """Check a plan, or edits without one, against a teacher and say what remains.

    Raises ValueError naming the edit, the reason and the legal choices: an address that matches nothing, a unit
    edited twice, a skip without its consumer, channels that no longer fit, a block that must stay.
    """
    if not isinstance(plan, PruningPlan):
        plan = PruningPlan.model_construct(family="", edits=tuple(plan))
    edits = plan.edits
    removed_blocks = _removed_blocks(topology, edits)
    removed_layers = _removed_layers(topology, edits, removed_blocks)
    gone = [u.fqn for u in topology.units if u.block in removed_blocks or (u.block, u.layer) in removed_layers]
    samplers = _removed_samplers(topology, removed_blocks)
    removed_units, replaced = _unit_edits(topology, edits, set(gone))
    grafted = _grafted_blocks(topology, edits, removed_blocks)
    if removed_blocks or removed_layers:
        _check_flow(topology, removed_blocks, removed_layers)
    names = _names(topology, removed_blocks, removed_layers)
    return ResolvedPlan(
        topology=topology,
        plan=plan,
        removed_blocks=frozenset(removed_blocks),
        removed_layers=frozenset(removed_layers),
        removed_units=frozenset(removed_units),
        replaced=replaced,
        grafted=grafted,
        gone=(*(unit.fqn for unit in topology.units if unit.fqn in {*gone, *removed_units}), *sorted(samplers)),
        names={student: teacher for student, teacher in names.items() if teacher not in {*samplers, *removed_units}},
    )


def legal_edits(topology: Topology, replacements: Iterable[ReplaceUnit] = ()) -> list[ResolvedPlan]:
    """Every edit that is legal by itself, with those that must go along, resolved and in a fixed order.

    Units that can become an identity; `replacements` in their own order; layers with layers of the
    mirrored block; the middle block; the deepest pair with the middle block.
    """
    sets: list[Edits] = [(RemoveUnit(unit=unit.fqn),) for unit in topology.units if not why_no_identity(unit)]
    sets += [(edit,) for edit in replacements]
    for down in topology.down_blocks:
        for layers in legal_layer_sets(topology, down)[1:]:
            sets.append(tuple(RemoveLayer(block=block, layer=layer) for block, layer in layers))
    mid = ("mid_block",) if "mid_block" in topology.blocks else ()
    deepest = (topology.down_blocks[-1],) if len(topology.down_blocks) > 1 else ()
    for blocks in filter(None, [mid, (*deepest, *mid) if deepest else ()]):
        removed = {*blocks, *(topology.mirror(block) for block in blocks if block != "mid_block")}
        if is_legal_flow(topology, removed, ()):
            sets.append(tuple(RemoveBlock(block=block) for block in blocks))
    return [resolve(topology, edits) for edits in sets]


def _names(topology: Topology, blocks: set[str], layers: set[tuple[str, int]]) -> dict[str, str]:
    """Blocks, units and samplers outside removed blocks and layers: the student's name → the teacher's.

    Indices close up: a block or layer moves down by the number of those that are gone before it on its side.
    """
    names: dict[str, str] = {}
    removed_up = sum(block.startswith("up_blocks.") for block in blocks)
    for block in topology.blocks:
        if block in blocks:
            continue
        side, _, index = block.partition(".")
        own = f"{side}.{int(index) - removed_up}" if side == "up_blocks" else block
        names[own] = block
        for unit in topology.units:
            if unit.block == block and (block, unit.layer) not in layers:
                stem = unit.fqn.removeprefix(block).rpartition(".")[0]  # .resnets, .attentions
                before = sum((block, layer) in layers for layer in range(unit.layer))
                names[f"{own}{stem}.{unit.layer - before}"] = unit.fqn
        if sampler := topology.samplers.get(block):
            names[f"{own}{sampler.removeprefix(block)}"] = sampler
    return names


def _removed_blocks(topology: Topology, edits: Sequence[AnyEdit]) -> set[str]:
    removed: set[str] = set()
    legal = ["mid_block"] if "mid_block" in topology.blocks else []
    legal += topology.down_blocks[1:][-1:]  # a block by itself has to stay
    for edit in (edit for edit in edits if isinstance(edit, RemoveBlock)):
        if edit.block not in legal:
            raise ValueError(f"cannot {edit}: only {' and '.join(legal) or 'no block'} may be removed whole.")
        removed.add(edit.block)
        if edit.block != "mid_block":
            removed.add(topology.mirror(edit.block))
    if removed - {"mid_block"} and "mid_block" in topology.blocks and "mid_block" not in removed:
        raise ValueError(
            f"cannot remove {topology.down_blocks[-1]} alone: mid_block would run at another resolution than it was "
            "trained for; remove mid_block as well."
        )
    return removed


def _removed_samplers(topology: Topology, removed_blocks: set[str]) -> list[str]:
    """The samplers removed with the deepest pair: the downsampler into it and the upsampler out of it."""
    pair = [block for block in removed_blocks if block != "mid_block"]
    if not pair:
        return []
    before = topology.down_blocks[-2]
    return [topology.samplers[block] for block in (before, topology.up_blocks[0]) if block in topology.samplers]


def _removed_layers(topology: Topology, edits: Sequence[AnyEdit], blocks: set[str]) -> set[tuple[str, int]]:
    removed: set[tuple[str, int]] = set()
    sides = (*topology.down_blocks, *topology.up_blocks)
    for edit in (edit for edit in edits if isinstance(edit, RemoveLayer)):
        if edit.block not in sides:
            raise ValueError(
                f"cannot {edit}: {edit.block!r} is neither a down nor an up block; {format_choices(sides)}"
            )
        layers = topology.layers(edit.block)
        if edit.layer not in layers:
            raise ValueError(f"cannot {edit}: {edit.block} has layers {', '.join(map(str, layers))}.")
        if edit.block in blocks:
            raise ValueError(f"cannot {edit}: {edit.block} is already removed whole.")
        removed.add((edit.block, edit.layer))
    return removed


def _unit_edits(topology: Topology, edits: Sequence[AnyEdit], gone: set[str]) -> tuple[set[str], dict[str, str]]:
    removed: set[str] = set()
    replaced: dict[str, str] = {}
    for edit in (edit for edit in edits if isinstance(edit, RemoveUnit | ReplaceUnit)):
        unit = topology.unit(edit.unit)
        if unit.fqn in gone:
            raise ValueError(f"cannot {edit}: its layer or block is already removed.")
        if unit.fqn in removed or unit.fqn in replaced:
            raise ValueError(f"cannot {edit}: this unit already has an edit.")
        if isinstance(edit, ReplaceUnit):
            replaced[unit.fqn] = edit.with_
        elif reason := why_no_identity(unit):
            raise ValueError(f"cannot {edit}: {reason}.")
        else:
            removed.add(unit.fqn)
    return removed, replaced


def _grafted_blocks(topology: Topology, edits: Sequence[AnyEdit], removed: set[str]) -> tuple[str, ...]:
    grafted: list[str] = []
    for edit in (edit for edit in edits if isinstance(edit, GraftBlock)):
        if edit.block not in topology.blocks:
            raise ValueError(f"cannot {edit}: there is no such block; {format_choices(topology.blocks)}")
        if edit.block in removed:
            raise ValueError(f"cannot {edit}: it is already removed whole.")
        if edit.block in grafted:
            raise ValueError(f"cannot {edit}: it is already grafted.")
        grafted.append(edit.block)
    return tuple(grafted)


def why_no_identity(unit: UnitShape) -> str | None:
    """The reason why a unit cannot become an identity, or None if it can."""
    if unit.kind == "transformer" or unit.channels_in == unit.channels_out:
        return None
    return f"it takes {unit.channels_in} channels to {unit.channels_out}, which an identity cannot"


def _check_flow(topology: Topology, blocks: set[str], layers: set[tuple[str, int]]) -> None:
    """Raises ValueError at the first place where channels or skips do not fit after the removal."""
    problem = _flow_problem(topology, blocks, layers)
    if problem is None:
        return
    for block, layer in sorted(layers):
        if partners := _partners(topology, blocks, layers, block):
            raise ValueError(
                f"removing layer {layer} of {block} needs its mirrored layer gone as well ({problem}): "
                f"remove layer {' or '.join(map(str, partners))} of {topology.mirror(block)} too."
            )
    removed = ", ".join(f"layer {layer} of {block}" for block, layer in sorted(layers))
    raise ValueError(f"removing {removed or ', '.join(sorted(blocks))} does not fit together: {problem}.")


def _partners(topology: Topology, blocks: set[str], layers: set[tuple[str, int]], block: str) -> list[int]:
    other = topology.mirror(block)
    free = [layer for layer in topology.layers(other) if (other, layer) not in layers]
    return [layer for layer in free if _flow_problem(topology, blocks, {*layers, (other, layer)}) is None]


def is_legal_flow(topology: Topology, blocks: Iterable[str], layers: Iterable[tuple[str, int]]) -> bool:
    """Whether channels and skips still fit after whole blocks and layers are removed."""
    return _flow_problem(topology, set(blocks), set(layers)) is None


def legal_layer_sets(topology: Topology, down: str) -> list[tuple[tuple[str, int], ...]]:
    """Every set of (block, layer) of a down block and its mirror that may be removed together, the empty set first."""
    here, there = ([(block, layer) for layer in topology.layers(block)] for block in (down, topology.mirror(down)))
    pairs = itertools.chain.from_iterable(
        itertools.product(itertools.combinations(here, k), itertools.combinations(there, k))
        for k in range(min(len(here), len(there)) + 1)
    )
    return [(*a, *b) for a, b in pairs if is_legal_flow(topology, (), (*a, *b))]


def _flow_problem(topology: Topology, blocks: set[str], layers: set[tuple[str, int]]) -> str | None:
    level, hidden = 0, topology.channels_stem
    skips = [(hidden, level)]  # a stack: the down path pushes, the up path pops
    no_samplers = set(_removed_samplers(topology, blocks))
    for block in topology.blocks:
        if block in blocks:
            continue
        going_up, kept_layers = block.startswith("up_blocks."), 0
        for layer in topology.layers(block):
            if (block, layer) in layers:
                continue
            kept_layers += 1
            for unit in topology.layer_units(block, layer):
                if unit.kind != "resnet":
                    continue
                want = hidden
                if going_up:
                    if not skips:
                        return f"{unit.fqn} has no skip left to take"
                    channels, skip_level = skips.pop()
                    if skip_level != level:
                        return f"{unit.fqn} would get a skip of another resolution"
                    want = hidden + channels
                if unit.channels_in != want:
                    return f"{unit.fqn} takes {unit.channels_in} channels and would get {want}"
                hidden = unit.channels_out
            if block.startswith("down_blocks."):
                skips.append((hidden, level))
        if not kept_layers:
            return f"{block} would have no layer left"
        sampler = topology.samplers.get(block)
        if sampler and sampler not in no_samplers:
            level += -1 if going_up else 1
            if not going_up:
                skips.append((hidden, level))
    if skips:
        return f"{len(skips)} skips are left without a consumer"
    return None if hidden == topology.channels_stem else f"the output has {hidden} channels"
