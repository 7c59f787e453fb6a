"""Pruning plans: what leaves a UNet, what is replaced, and which edits are legal. No torch in here.

A plan always speaks the teacher's names. `Topology` is the little that must be known of a UNet to judge a
plan: its units, their channels, and where the down- and upsamplers sit.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from asdm.utils import notebook
from asdm.utils.io import Frozen, Record, first_problem, later, sha256_of

# ---------------------------------------------------------------------------------------------- topology


class UnitShape(Frozen):
    """One unit of a UNet: `fqn` is diffusers' own path; channels are those of the feature map."""

    fqn: str
    label: str
    kind: Literal["resnet", "transformer"]
    block: str
    layer: int
    channels_in: int
    channels_out: int


class Topology(Frozen):
    """The block → layer → unit hierarchy of one UNet (§2.1) in data-flow order."""

    channels_stem: int
    blocks: tuple[str, ...]
    samplers: dict[str, str]  # block → fqn of its down- or upsampler
    units: tuple[UnitShape, ...]

    @property
    def down_blocks(self) -> tuple[str, ...]:
        return tuple(block for block in self.blocks if block.startswith("down_blocks."))

    @property
    def up_blocks(self) -> tuple[str, ...]:
        return tuple(block for block in self.blocks if block.startswith("up_blocks."))

    def unit(self, fqn: str) -> UnitShape:
        for unit in self.units:
            if unit.fqn == fqn:
                return unit
        raise ValueError(f"unknown unit {fqn!r}; {_choices([u.fqn for u in self.units], fqn)}")

    def layers(self, block: str) -> list[int]:
        return sorted({unit.layer for unit in self.units if unit.block == block})

    def layer_units(self, block: str, layer: int) -> list[UnitShape]:
        return [unit for unit in self.units if unit.block == block and unit.layer == layer]

    def mirror(self, block: str) -> str:
        """The up block that consumes a down block's skips, and back."""
        down, up = self.down_blocks, self.up_blocks
        here, there = (down, up) if block in down else (up, down)
        return there[len(here) - 1 - here.index(block)]


def _choices(choices: Sequence[str], wanted: str = "") -> str:
    prefix = wanted.rpartition(".")[0].rpartition(".")[0]
    near = [choice for choice in choices if prefix and choice.startswith(prefix)] or list(choices)
    shown = ", ".join(near[:8]) + (f", … ({len(near)} in all)" if len(near) > 8 else "")
    return f"choose from {shown}."


# ---------------------------------------------------------------------------------------------- edits


class Edit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RemoveLayer(Edit):
    """A layer of a down or up block leaves: its ResNet, its Transformer and its skip."""

    op: Literal["remove_layer"] = "remove_layer"
    block: str
    layer: int = Field(ge=0)

    def __str__(self) -> str:
        return f"remove layer {self.layer} of {self.block}"


class RemoveUnit(Edit):
    """A unit becomes an identity; its neighbours stay."""

    op: Literal["remove_unit"] = "remove_unit"
    unit: str

    def __str__(self) -> str:
        return f"remove {self.unit}"


class ReplaceUnit(Edit):
    """Something cheaper takes a unit's place and inherits its weights; `with` names a file in `replacements/`."""

    op: Literal["replace_unit"] = "replace_unit"
    unit: str
    with_: str = Field(alias="with")
    options: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        return f"replace {self.unit} with {self.with_}"


class RemoveBlock(Edit):
    """`mid_block` leaves, or the deepest down block together with its mirrored up block."""

    op: Literal["remove_block"] = "remove_block"
    block: str

    def __str__(self) -> str:
        return f"remove {self.block}"


class GraftBlock(Edit):
    """A block's weights come from a stage-1 student (§2.2, Fig. 4) and are trained on; other blocks stay the teacher's.

    `source` is that student's folder, where the plan knows it; what is built from the plan may name another.
    """

    op: Literal["graft_block"] = "graft_block"
    block: str
    source: str | None = None

    def __str__(self) -> str:
        return f"graft {self.block}"


AnyEdit = Annotated[RemoveLayer | RemoveUnit | ReplaceUnit | RemoveBlock | GraftBlock, Field(discriminator="op")]


# ---------------------------------------------------------------------------------------------- plan


class Prediction(Frozen):
    """What the plan's profile says of the student: ratios to the teacher's UNet latency."""

    latency_s: float
    ratio: float
    low: float
    high: float


class Proof(Frozen):
    """The solver's certificate: the plan's damage, the proven lower bound, and the gap between them."""

    status: str
    damage: float
    bound: float
    gap: float


class MeasuredAt(Frozen):
    """The settings that a plan's profile was taken with; with others, its prices are a guess."""

    backend: str
    dtype: str
    device: str
    threads: int
    batch: int
    size: int


class Regret(Frozen):
    """What it costs to force a unit to another choice than the plan's: damage more than the plan's; None: illegal."""

    unit: str
    choice: str  # what the plan does with it
    other: str | None  # the best that it could do instead
    damage: float | None


class ShadowPrice(Frozen):
    """What a little more of a budget is worth, by the relaxation to fractions of choices, and the next whole step."""

    damage: float  # per `per`, 0 where the budget does not bind
    per: str  # "ms", "GMAC", "M parameters", "MiB"
    slack: float  # what is left of the budget, in `per`
    next_step: float | None = None  # how much more would lower the damage, in `per`; None: nothing does
    next_saves: float | None = None  # damage less after that step


class Why(Frozen):
    """Why a plan is what it is: which budgets bind, what a little more of them is worth, and every unit's regret."""

    binding: tuple[str, ...]
    shadow_prices: dict[str, ShadowPrice]
    regrets: tuple[Regret, ...]


class PruningPlan(Record):
    """`asdm.plan/1`: edits of one teacher, the budget they were made for, and why they are the best."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    SCHEMA: ClassVar[str] = "asdm.plan/1"

    schema_: Literal["asdm.plan/1"] = Field("asdm.plan/1", alias="schema")
    name: str = "plan"
    family: str
    teacher_config_sha256: str | None = None
    edits: tuple[AnyEdit, ...]
    frozen: tuple[str, ...] = ()
    budget: str | None = None
    budget_ratio: float | None = None
    confidence: float | None = None
    damage_from: str | None = None
    predicted: Prediction | None = None
    proof: Proof | None = None
    profile_sha256: str | None = None
    validation_sha256: str | None = later(None)  # where σ was measured instead of assumed

    measured_at: MeasuredAt | None = later(None)
    budgets: dict[str, float] | None = later(None)  # besides latency: MACs, parameters, memory, as shares
    damage_sha256: str | None = later(None)  # where damage was measured
    why: Why | None = later(None)

    def not_measured_at(self, **used: str | int) -> str | None:
        """One sentence where a plan is used with other settings than it was measured at, naming them; else None."""
        if self.measured_at is None:
            return None
        apart = [name for name, value in used.items() if getattr(self.measured_at, name) != value]
        if not apart:
            return None
        said = ", ".join(f"{name} {used[name]} (measured at {getattr(self.measured_at, name)})" for name in apart)
        return f"{self.name} was not measured where it is used: {said}; what it saves here may be another amount."

    @model_validator(mode="after")
    def _no_edit_twice(self) -> Self:
        seen = set()
        for edit in self.edits:
            key = edit.model_dump_json(by_alias=True)
            if key in seen:
                raise ValueError(f"the edit {edit} stands there twice")
            seen.add(key)
        return self

    def sha256(self) -> str:
        """The hash that the next file of the chain refers to; a plan is the same however it is explained."""
        return sha256_of(self.model_dump(mode="json", by_alias=True, exclude={"why"}))

    def edits_sha256(self) -> str:
        return sha256_of([edit.model_dump(mode="json", by_alias=True) for edit in self.edits])

    def _repr_html_(self) -> str:
        """Its promise and its edits, for notebooks."""
        told = self.predicted
        promise = f": predicted {told.ratio:.2f}× [{told.low:.2f}, {told.high:.2f}]" if told else ""
        proof = self.proof
        note = f"Solver: {proof.status}, damage {proof.damage:.3g}, gap {proof.gap:g}." if proof else ""
        at = f" at {self.budget}" if self.budget else ""
        return notebook.table(f"{self.name}{at} of {self.family}{promise}", ["edit"], [[e] for e in self.edits], note)


def parse_edits(data: Any, source: str = "plan") -> tuple[AnyEdit, ...]:
    """Edits from plain JSON values; raises ValueError that names the first wrong one."""

    class _Edits(BaseModel):
        edits: tuple[AnyEdit, ...]

    try:
        return _Edits.model_validate({"edits": json.loads(json.dumps(data))}).edits
    except ValidationError as error:
        raise ValueError(f"{source}: {first_problem(error)}") from None


# ---------------------------------------------------------------------------------------------- legality


class Kept(Frozen):
    """What a plan leaves of a topology."""

    removed_blocks: frozenset[str]
    removed_layers: frozenset[tuple[str, int]]
    removed_units: frozenset[str]  # made an identity, one by one
    replaced: dict[str, str]  # unit → replacement
    grafted: tuple[str, ...]  # blocks whose weights come from a stage-1 student
    gone: tuple[str, ...]  # fqns of every unit and sampler that is no longer computed


def resolve(topology: Topology, edits: Iterable[AnyEdit]) -> Kept:
    """Check `edits` against a teacher and say what remains.

    Raises ValueError naming the edit, the reason and the legal choices: an address that matches nothing, a unit
    edited twice, a skip without its consumer, channels that no longer fit, a block that may not go.
    """
    edits = tuple(edits)
    removed_blocks = _removed_blocks(topology, edits)
    removed_layers = _removed_layers(topology, edits, removed_blocks)
    gone = [
        unit.fqn
        for unit in topology.units
        if unit.block in removed_blocks or (unit.block, unit.layer) in removed_layers
    ]
    gone += _removed_samplers(topology, removed_blocks)
    removed_units, replaced = _unit_edits(topology, edits, set(gone))
    grafted = _grafted_blocks(topology, edits, removed_blocks)
    if removed_blocks or removed_layers:
        _check_flow(topology, removed_blocks, removed_layers)
    order = {unit.fqn: i for i, unit in enumerate(topology.units)}
    gone = sorted({*gone, *removed_units}, key=lambda fqn: (order.get(fqn, len(order)), fqn))
    return Kept(
        removed_blocks=frozenset(removed_blocks),
        removed_layers=frozenset(removed_layers),
        removed_units=frozenset(removed_units),
        replaced=replaced,
        grafted=grafted,
        gone=tuple(gone),
    )


def _removed_blocks(topology: Topology, edits: Sequence[AnyEdit]) -> set[str]:
    removed: set[str] = set()
    legal = [block for block in ("mid_block",) if block in topology.blocks]
    if len(topology.down_blocks) > 1:
        legal.append(topology.down_blocks[-1])
    for edit in edits:
        if not isinstance(edit, RemoveBlock):
            continue
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
    """The deepest pair takes two samplers along: the downsampler into it, and the upsampler out of it."""
    pair = [block for block in removed_blocks if block != "mid_block"]
    if not pair:
        return []
    before = topology.down_blocks[-2]
    return [topology.samplers[block] for block in (before, topology.up_blocks[0]) if block in topology.samplers]


def _removed_layers(topology: Topology, edits: Sequence[AnyEdit], blocks: set[str]) -> set[tuple[str, int]]:
    removed: set[tuple[str, int]] = set()
    sides = (*topology.down_blocks, *topology.up_blocks)
    for edit in edits:
        if not isinstance(edit, RemoveLayer):
            continue
        if edit.block not in sides:
            raise ValueError(f"cannot {edit}: {edit.block!r} is neither a down nor an up block; {_choices(sides)}")
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
    for edit in edits:
        if not isinstance(edit, RemoveUnit | ReplaceUnit):
            continue
        unit = topology.unit(edit.unit)
        if unit.fqn in gone:
            raise ValueError(f"cannot {edit}: its layer or block is already removed.")
        if unit.fqn in removed or unit.fqn in replaced:
            raise ValueError(f"cannot {edit}: this unit has an edit already.")
        if isinstance(edit, ReplaceUnit):
            replaced[unit.fqn] = edit.with_
        elif reason := why_no_identity(topology, unit):
            raise ValueError(f"cannot {edit}: {reason}.")
        else:
            removed.add(unit.fqn)
    return removed, replaced


def _grafted_blocks(topology: Topology, edits: Sequence[AnyEdit], removed: set[str]) -> tuple[str, ...]:
    grafted: list[str] = []
    for edit in edits:
        if not isinstance(edit, GraftBlock):
            continue
        if edit.block not in topology.blocks:
            raise ValueError(f"cannot {edit}: there is no such block; {_choices(topology.blocks)}")
        if edit.block in removed:
            raise ValueError(f"cannot {edit}: it is already removed whole.")
        if edit.block in grafted:
            raise ValueError(f"cannot {edit}: it is grafted already.")
        grafted.append(edit.block)
    return tuple(grafted)


def why_no_identity(topology: Topology, unit: UnitShape) -> str | None:
    """Why a unit cannot become an identity, or None where it can."""
    if unit.kind == "transformer":
        return None
    if unit.channels_in != unit.channels_out:
        return f"it takes {unit.channels_in} channels to {unit.channels_out}, which an identity cannot"
    return None


def _check_flow(topology: Topology, blocks: set[str], layers: set[tuple[str, int]]) -> None:
    """Walk the channels through what is left, skips included; raise at the first place where they do not fit."""
    problem = _flow_problem(topology, blocks, layers)
    if problem is None:
        return
    for block, layer in sorted(layers):
        partners = _partners(topology, blocks, layers, block)
        if partners:
            raise ValueError(
                f"removing layer {layer} of {block} needs its mirrored layer gone as well ({problem}): "
                f"remove layer {' or '.join(map(str, partners))} of {topology.mirror(block)} too."
            )
    listed = ", ".join(f"layer {layer} of {block}" for block, layer in sorted(layers))
    raise ValueError(f"removing {listed or ', '.join(sorted(blocks))} does not fit together: {problem}.")


def _partners(topology: Topology, blocks: set[str], layers: set[tuple[str, int]], block: str) -> list[int]:
    other = topology.mirror(block)
    free = [layer for layer in topology.layers(other) if (other, layer) not in layers]
    return [layer for layer in free if _flow_problem(topology, blocks, {*layers, (other, layer)}) is None]


def is_legal_flow(topology: Topology, blocks: Iterable[str], layers: Iterable[tuple[str, int]]) -> bool:
    """Whether channels and skips still fit after whole blocks and layers are gone."""
    return _flow_problem(topology, set(blocks), set(layers)) is None


def legal_layer_sets(topology: Topology, down: str) -> list[tuple[tuple[str, int], ...]]:
    """Every legal set of (block, layer) that may leave a down block and its mirrored up block, none being the first."""
    here, there = ([(block, layer) for layer in topology.layers(block)] for block in (down, topology.mirror(down)))
    pairs = itertools.chain.from_iterable(
        itertools.product(itertools.combinations(here, k), itertools.combinations(there, k))
        for k in range(min(len(here), len(there)) + 1)
    )
    return [(*a, *b) for a, b in pairs if is_legal_flow(topology, (), (*a, *b))]


def _flow_problem(topology: Topology, blocks: set[str], layers: set[tuple[str, int]]) -> str | None:
    level, hidden = 0, topology.channels_stem
    skips = [(hidden, level)]  # a stack: what the down path made and the up path takes back, last in first out
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
                        return f"{unit.fqn} finds no skip"
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
