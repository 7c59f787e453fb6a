"""What a schedule means on one topology: the places that every step inherits, and what it has to keep for later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asdm.plan.topology import Topology, format_choices
from asdm.schedule.schedule import TEACHER, UNET, Forecast, Pass, Schedule

CLEAN = "clean"
ATTENTIONS = ("self_attention", "cross_attention")
HALVES = ("unconditional", "conditional")


@dataclass(frozen=True)
class Place:
    """Something that is inherited: what it is, where, and whether its output or what it adds to its input."""

    kind: str  # unet, clean (the same, as the clean latent), block, unit, sampler, self_attention, cross_attention
    fqn: str
    residual: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is the whole output, for which no network is run."""
        return self.kind in (UNET, CLEAN)


@dataclass(frozen=True)
class HalfPass:
    """How one half of guidance, or a call without guidance, runs at a step."""

    network: str
    places: frozenset[Place]
    forecast: Forecast | None = None
    mean_of_halves: bool = False
    together: bool = False  # both halves do the same, and inherit from the same steps

    @property
    def runs(self) -> bool:
        """Whether the network is called at all."""
        return not any(place.whole for place in self.places)


@dataclass(frozen=True)
class Step:
    """One step of a schedule; `unconditional` is None where that half is dropped."""

    conditional: HalfPass
    unconditional: HalfPass | None
    keep: dict[str, frozenset[Place]]  # network → what later steps inherit of it

    @property
    def alike(self) -> bool:
        """Whether both halves do the same, so that they run in one batch."""
        return self.unconditional == self.conditional


@dataclass(frozen=True)
class ResolvedSchedule:
    """A legal schedule on the topology of its teacher; `values` is how many values of a place are looked back on."""

    schedule: Schedule
    steps: tuple[Step, ...]
    values: int


def resolve(topologies: Topology | dict[str, Topology], schedule: Schedule) -> ResolvedSchedule:
    """Check a schedule against its networks; raises ValueError in one sentence that names the step and the choices."""
    shapes = {TEACHER: topologies} if isinstance(topologies, Topology) else topologies
    used = sorted({schedule.pass_at(n).network for n in range(len(schedule.steps))})
    if missing := [name for name in used if name not in shapes]:
        raise ValueError(f"{schedule.name} runs {missing[0]}, and only {', '.join(shapes)} is given.")
    halves = {name: _halves(shapes[one.network], name, one) for name, one in schedule.passes.items()
              if one.network in shapes}  # fmt: skip
    _check_computed_before(schedule, halves)
    steps, needed = [], dict[str, frozenset[Place]]()
    for name in reversed(schedule.steps):
        conditional, unconditional = halves[name]
        steps.append(Step(conditional, unconditional, dict(needed)))
        network = conditional.network
        wanted = conditional.places | (unconditional.places if unconditional else frozenset())
        needed[network] = needed.get(network, frozenset()) | wanted
    values = max((one.forecast.values for one in schedule.passes.values() if one.forecast), default=1)
    return ResolvedSchedule(schedule, tuple(reversed(steps)), values)


def _halves(topology: Topology, name: str, one: Pass) -> tuple[HalfPass, HalfPass | None]:
    def half(inherit: Sequence[str]) -> HalfPass:
        places = _places(topology, name, one, inherit)
        if not places:
            return HalfPass(one.network, places)
        return HalfPass(one.network, places, one.forecast, one.mean_of_halves, one.unconditional is None)

    conditional = half(one.inherit)
    if one.unconditional == "drop":
        return conditional, None
    return conditional, conditional if one.unconditional is None else half(one.unconditional)


def _check_computed_before(schedule: Schedule, halves: dict[str, tuple[HalfPass, HalfPass | None]]) -> None:
    """Raises ValueError for a step that inherits what its network has not computed for that half yet."""
    ran: set[tuple[str, str]] = set()
    for number, name in enumerate(schedule.steps):
        conditional, unconditional = halves[name]
        for which, half in zip(HALVES, (unconditional, conditional), strict=True):
            if half is None:
                continue
            if half.places and (half.network, which) not in ran:
                raise ValueError(
                    f"{schedule.name}: step {number} ({name}) inherits {_example(half.places)}, which {half.network} "
                    f"has not computed yet for the {which} half; the first step of a network must inherit nothing."
                )
            ran.add((half.network, which))


def _example(places: Iterable[Place]) -> str:
    return min(place.fqn or place.kind for place in places)


# ---------------------------------------------------------------------------------------------- places


def _places(topology: Topology, name: str, one: Pass, inherit: Sequence[str]) -> frozenset[Place]:
    """The outermost places behind names: a block whose parts are all inherited is one place."""
    residual = one.value == "residual"
    if one.value == CLEAN and {*inherit} - {UNET}:
        raise ValueError(f"pass {name} inherits a clean latent, which only {UNET} has; inherit {UNET} alone.")
    units, samplers, attentions = set[str](), set[str](), set[Place]()
    for word in inherit:
        if word == UNET:
            return frozenset({Place(CLEAN if one.value == CLEAN else UNET, "")})
        named = _named(topology, word)
        if named is None:
            raise ValueError(
                f"pass {name} inherits {word!r}, but this UNet has no part of that name; {_choices(topology, word)}"
            )
        units |= named[0]
        samplers |= named[1]
        attentions |= {Place(kind, fqn) for kind, fqn in named[2]}
        if residual and not named[0] and not named[2]:
            raise ValueError(f"pass {name} inherits the residual of {word}, which is not a unit; inherit its output.")
    attentions = {place for place in attentions if place.fqn not in units}
    if residual:
        return frozenset({*(Place("unit", fqn, True) for fqn in units), *attentions})
    blocks = {block for block in topology.blocks if _is_whole(topology, block, units, samplers)}
    inside = {unit.fqn for unit in topology.units if unit.block in blocks}
    return frozenset(
        {
            *(Place("block", block) for block in blocks),
            *(Place("unit", fqn) for fqn in units - inside),
            *(Place("sampler", fqn) for fqn in samplers if fqn.rpartition(".")[0].rpartition(".")[0] not in blocks),
            *attentions,
        }
    )


def _is_whole(topology: Topology, block: str, units: set[str], samplers: set[str]) -> bool:
    own = [unit.fqn for unit in topology.units if unit.block == block]
    sampler = topology.samplers.get(block)
    return bool(own) and units.issuperset(own) and (sampler is None or sampler in samplers)


def _named(topology: Topology, word: str) -> tuple[set[str], set[str], set[tuple[str, str]]] | None:
    """Units, samplers and attentions (kind, unit) behind a name; None: there is nothing of that name."""
    owner, _, last = word.rpartition(".")
    transformers = [unit.fqn for unit in topology.units if unit.kind == "transformer"]
    if last in ATTENTIONS and (owner in transformers or not owner):
        return set(), set(), {(last, fqn) for fqn in transformers if owner in (fqn, "")}
    if word in topology.blocks:
        sampler = topology.samplers.get(word)
        return {unit.fqn for unit in topology.units if unit.block == word}, {sampler} if sampler else set(), set()
    if word in topology.samplers.values():
        return set(), {word}, set()
    block, _, layer = word.partition(".layer.")
    units = {u.fqn for u in topology.units if u.fqn == word or (u.block == block and str(u.layer) == layer)}
    return (units, set(), set()) if units else None


def _choices(topology: Topology, word: str) -> str:
    layers = [f"{block}.layer.{n}" for block in topology.blocks for n in topology.layers(block)]
    units = [unit.fqn for unit in topology.units]
    return format_choices([UNET, *topology.blocks, *ATTENTIONS, *topology.samplers.values(), *layers, *units], word)
