"""What a step of a schedule costs: unit times of a profile, and the price of keeping and copying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from asdm.plan.topology import Topology
from asdm.schedule.legality import HalfPass, Place, Step, resolve
from asdm.schedule.schedule import TEACHER, Forecast, Pass, Schedule
from asdm.utils import sizes
from asdm_prof.planner.budgets import BYTES
from asdm_prof.records import Profile, StepsDamage

TRIAD_BYTES_PER_S = 1e10  # where the profile has no measured one


@dataclass(frozen=True)
class StepPrices:
    """Seconds of any pass: `ratios` are students' times as shares of the teacher's.

    `half_share` is one half of guidance as a share of both in one call, `keeping` what keeping every value adds to a
    full call, as a share of it. A profile has no times of attentions alone: passes that inherit them cost what the
    calibration measured, and without one as much as a full call.
    """

    profile: Profile
    ratios: Mapping[str, float]
    half_share: float = 0.5
    keeping: float = 0.0
    rest: float = 0.0  # seconds of an image besides the UNet, where the profile did not time them
    # Calls that inherit places, with their forecast, as shares of a full one:
    timed: Mapping[tuple[frozenset[Place], Forecast | None], float] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, damage: StepsDamage | None = None, ratios: Mapping[str, float] = {}) -> StepPrices:
        """Prices of a profile; shares are as the calibration measured them, if it ran where the profile was taken."""
        if damage is None or unlike(profile, damage):
            return cls(profile, ratios)
        half_share = min(damage.half_seconds / damage.full_seconds, 1.0)
        keeping = max(damage.kept_seconds / damage.full_seconds - 1, 0.0)
        timed = {}
        for name, seconds in damage.pass_seconds.items():
            both = {"full": Pass(), name: damage.passes[name]}
            schedule = Schedule(family=damage.family, passes=both, steps=("full", name))
            places = resolve(profile.topology, schedule).steps[1].conditional.places
            timed[places, damage.passes[name].forecast] = seconds / damage.full_seconds
        return cls(profile, ratios, half_share, keeping, damage.rest_seconds, timed)

    @property
    def full_s(self) -> float:
        """A plain call of the teacher as an image makes it: at both halves where there is guidance."""
        half = self.profile.whole.latency_s.median
        return half / self.half_share if self.profile.steps_batch == 2 else half

    @property
    def rest_s(self) -> float:
        """Text encoder, VAE decoder and what else an image calls once."""
        timed = [part for part in self.profile.components if part.latency_s]
        return sum(p.calls_per_image * p.latency_s.median for p in timed if p.latency_s) if timed else self.rest

    def image_s(self, schedule: Schedule) -> float:
        """Seconds of a whole image by a schedule."""
        return self.rest_s + sum(self.steps_s(schedule))

    def plain_image_s(self, calls: int) -> float:
        """Seconds of a whole image without a schedule."""
        return self.rest_s + calls * self.full_s

    def steps_s(self, schedule: Schedule) -> list[float]:
        """Seconds of every step."""
        topologies = {TEACHER: self.profile.topology} | dict.fromkeys(schedule.networks, self.profile.topology)
        steps = resolve(topologies, schedule).steps
        by_name = {name: self.step_s(step) for name, step in zip(schedule.steps, steps, strict=True)}
        return [by_name[name] for name in schedule.steps]

    def step_s(self, step: Step) -> float:
        """Seconds of one step: of both halves in one call, apart, or of one alone."""
        conditional = self._half_s(step.conditional)
        if self.profile.steps_batch == 1 or step.unconditional is None:
            return conditional
        if step.alike:
            return conditional / self.half_share
        return conditional + self._half_s(step.unconditional)

    def _half_s(self, half: HalfPass) -> float:
        """One call at the profile's batch that inherits some places."""
        profile = self.profile
        if not half.runs:
            return self._copying_s(half)
        if half.network == TEACHER and (half.places, half.forecast) in self.timed:
            return profile.whole.latency_s.median * self.timed[half.places, half.forecast]
        saved = {fqn for place in half.places for fqn in parts_of(profile.topology, place)}
        share = 1 - sum(profile.part(fqn).share.median for fqn in saved)
        share += sum(_shortcut_share(profile, place) for place in half.places)
        blocks = {place.fqn for place in half.places if place.kind == "block"}
        share -= profile.part("other").share.median * _joins(profile.topology, blocks)
        share = max(share, 0.0) * self.ratios.get(half.network, 1.0)
        share += self.keeping if not half.places else 0.0
        return profile.whole.latency_s.median * share + self._copying_s(half)

    def _copying_s(self, half: HalfPass) -> float:
        """Seconds to read kept values and write what is passed on, where something is computed of them."""
        touched = half.forecast.values + 1 if half.forecast else 0
        touched += 3 if any(place.residual for place in half.places) else 0
        moved = touched * sum(_elements(self.profile, place) for place in half.places) * BYTES[self.profile.dtype]
        peaks = self.profile.peaks
        return moved / (peaks.bytes_per_s if peaks else TRIAD_BYTES_PER_S)


def unlike(profile: Profile, damage: StepsDamage) -> list[str]:
    """In what the calibration did not run as the profile did, so that its prices are not used: `threads 1, not 2`."""
    both = ((name, getattr(damage, name), getattr(profile, name)) for name in ("device", "dtype", "threads"))
    return [f"{name} {theirs}, not {ours}" for name, theirs, ours in both if theirs != ours]


def parts_of(topology: Topology, place: Place) -> list[str]:
    """Units and samplers that a place spares; an attention alone has no time of its own in a profile."""
    if place.kind == "block":
        sampler = topology.samplers.get(place.fqn)
        return [*(u.fqn for u in topology.units if u.block == place.fqn), *([sampler] if sampler else [])]
    return [place.fqn] if place.kind in ("unit", "sampler") else []


def _shortcut_share(profile: Profile, place: Place) -> float:
    """Of the teacher, the shortcut that an inherited residual still computes: 1×1 beside two convolutions of 3×3."""
    if not place.residual or place.kind != "unit":
        return 0.0
    unit = profile.topology.unit(place.fqn)
    if unit.kind == "transformer" or unit.channels_in == unit.channels_out:
        return 0.0
    return profile.part(unit.fqn).share.median * unit.channels_in / (10 * unit.channels_in + 9 * unit.channels_out)


def _joins(topology: Topology, blocks: set[str]) -> float:
    """The share of the up path's concatenations, by number, that is in blocks which are not entered."""
    layers = {block: len(topology.layers(block)) for block in topology.up_blocks}
    return sum(n for block, n in layers.items() if block in blocks) / max(sum(layers.values()), 1)


def _elements(profile: Profile, place: Place) -> float:
    """Numbers in a place's output, per call: a map of a unit's channels, or the four channels of the whole output."""
    width, height = sizes.sides(profile.latent)
    pixels = float(profile.batch * width * height)
    if place.kind in ("unet", "clean"):
        return 4 * pixels
    topology = profile.topology
    if place.kind == "unit" or place.kind.endswith("attention"):
        unit = topology.unit(place.fqn)
        return pixels * unit.channels_out / 4 ** _depth(topology, unit.block)
    block = place.fqn if place.kind == "block" else next(b for b, s in topology.samplers.items() if s == place.fqn)
    channels = [unit.channels_out for unit in topology.units if unit.block == block]
    return pixels * channels[-1] / 4 ** _depth(topology, block)


def _depth(topology: Topology, block: str) -> int:
    """How often the map of a block was halved."""
    if block == "mid_block":
        return len(topology.down_blocks) - 1
    side = topology.down_blocks if block in topology.down_blocks else topology.up_blocks[::-1]
    return side.index(block)
