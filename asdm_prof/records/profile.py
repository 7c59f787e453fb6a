"""A profile: the whole UNet and every unit with all samples, replacements, peaks, and the trust box."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from asdm.plan.edits import ReplaceUnit, format_options
from asdm.plan.topology import Topology
from asdm.records.measurement import (
    Count,
    Estimate,
    GpuUse,
    HostUse,
    Latency,
    Macs,
    Number,
    Positive,
    Seconds,
    Time,
    UNetRun,
    mac_unit,
)
from asdm.utils import notebook
from asdm.utils.record import FROM_FILE, Frozen, later
from asdm.utils.sizes import Size

MOST_SHARE = 2.0  # shares are of bare calls, so that noise may take them and their sum beyond 1
WIDEST_SHARE = 100.0  # of an interval; two runs of a noisy machine may leave much open
Bound = Literal["compute", "memory", "overhead", "launch"]


class Peaks(Frozen):
    """What this machine reaches through the profile's own runtime and dtype; bandwidth is a triad's."""

    gemm_flops_per_s: Positive
    conv_flops_per_s: Positive
    bytes_per_s: Positive
    seconds_per_call: Seconds

    @property
    def flops_per_s(self) -> float:
        return max(self.gemm_flops_per_s, self.conv_flops_per_s)


class Roofline(Frozen):
    """The least seconds of a part by each peak, the longest of which is its `bound`."""

    compute_s: Number
    memory_s: Number
    overhead_s: Number
    launch_s: Number | None = later(None)  # of the measured seconds, those in which a GPU waited for the next kernel
    bound: Bound
    attained: Number  # the roof's seconds (compute or memory) / measured seconds; 1 is the roof itself


class PartRecord(Macs):
    """A unit or a piece of glue: what it holds, what it computes, how long it takes."""

    fqn: str
    label: str
    kind: Literal["resnet", "transformer", "glue"]
    block: str
    layer: int | None = None
    params: Count
    parameter_bytes: Count = later(0)
    peak_memory_bytes: Count  # activations alive at the part's worst moment, by the meta count
    moved_bytes: Count = later(0)  # parameters, and activations in and out, each once
    latency_s: Latency
    share: Estimate  # of the whole UNet, run by run
    roofline: Roofline | None = later(None)
    gpu_s: float | None = later(None)  # of its kernels alone, on a GPU
    attention_kernels: tuple[str, ...] = later(())  # of its scaled dot-product attentions, in order, on a GPU


class OptionRecord(Macs):
    """A replacement timed in the unit's place, inside the real forward."""

    unit: str
    replacement: str
    options: dict[str, Any] = later({})
    params: Count
    latency_s: Time
    share: Estimate  # of the teacher's UNet, each run scaled by the parts that it leaves alone

    @property
    def edit(self) -> ReplaceUnit:
        return ReplaceUnit(unit=self.unit, with_=self.replacement, options=self.options)


class ComponentRecord(Macs):
    """A model that an image passes besides the UNet, and how often."""

    name: str
    params: Count
    calls_per_image: Count
    latency_s: Time | None = None


class WholeRecord(Macs):
    """The whole UNet call: bare, and with every part hooked."""

    params: Count
    peak_memory_bytes: Count
    thop_macs: Count
    latency_s: Time
    hooked_latency_s: Time
    uncounted_ops: dict[str, int] = Field(default_factory=dict)
    measured_peak_bytes: int | None = later(None)  # of an eager call on a GPU, weights included
    gpu_s: Estimate | None = later(None)  # of the kernels alone, on a GPU
    wall_s: Estimate | None = later(None)  # from Python's call until the GPU is done
    gpu_busy: Estimate | None = later(None)  # gpu_s / wall_s; the rest is the share of launches


class TrustLine(Frozen):
    """One check of the trust box; `remedy` says what to do where it failed."""

    check: str
    value: str
    passed: bool
    remedy: str = ""


class ProcessRecord(Frozen):
    """What one fresh process measured of the same: the whole's seconds, and each part's share of it."""

    created_utc: str
    latency_s: Estimate
    shares: dict[str, float]
    host: HostUse | None = None


class Profile(UNetRun, schema="asdm.profile/1"):
    """`asdm.profile/1`: one UNet, one runtime, one machine."""

    title: str
    config_sha256: str
    latent: Size  # latent pixels per side, or width and height
    topology: Topology
    whole: WholeRecord
    units: tuple[PartRecord, ...]
    glue: tuple[PartRecord, ...]  # ends with `other`: what runs between the parts
    options: tuple[OptionRecord, ...] = ()
    components: tuple[ComponentRecord, ...] = ()
    steps: Count = 30
    guidance_scale: float = 8.0
    peaks: Peaks | None = later(None)
    mapped_share: Estimate | None = later(None)  # of the runtime's own node time, what lies in units and glue
    observed_slowdown: Estimate | None = later(None)  # seconds of the calls that gave the part times / of bare ones
    trust: tuple[TrustLine, ...]
    host: HostUse | None = later(None)
    gpu: GpuUse | None = later(None)
    processes: tuple[ProcessRecord, ...] = later(())  # the profile's own first
    weights_sha256: str | None = later(None)  # where they are real ones

    @model_validator(mode="after")
    def _times(self, info: ValidationInfo) -> Profile:
        """Of a file; glue may be negative: `other` is what a call takes beyond its parts."""
        if info.context != FROM_FILE:
            return self
        if wrong := next((unit for unit in self.units if unit.latency_s.median <= 0), None):
            raise ValueError(f"the latency of {wrong.fqn} must be above 0, got {wrong.latency_s.median}")
        if wrong := next((unit for unit in self.units if not 0 <= unit.share.median <= MOST_SHARE), None):
            raise ValueError(f"the share of {wrong.fqn} must be from 0 to about 1, got {wrong.share.median}")
        shares = [*(part.share for part in (*self.units, *self.glue)), *(option.share for option in self.options)]
        widest = max(shares, key=lambda share: share.high - share.low)
        if widest.high - widest.low > WIDEST_SHARE:
            raise ValueError(f"the interval of a share goes from {widest.low:.3g} to {widest.high:.3g}")
        runs = {len(part.latency_s.samples) for part in (*self.units, *self.glue)}
        if len(runs) > 1:
            raise ValueError(f"all parts must have a sample of every run, got from {min(runs)} to {max(runs)} samples")
        total = sum(part.share.median for part in (*self.units, *self.glue))
        if not 0 < total <= MOST_SHARE:
            raise ValueError(f"the shares of all parts must add up to about 1, got {total:.3g}")
        return self

    @model_validator(mode="after")
    def _every_part(self) -> Profile:
        """Units are those of the topology, in any order, and what computes nothing is no UNet."""
        if not self.whole.params or not self.whole.macs:
            raise ValueError("the whole UNet must have parameters and MACs, got 0")
        if empty := next((unit for unit in self.units if not unit.params or not unit.macs), None):
            raise ValueError(f"{empty.fqn} must have parameters and MACs, got 0")
        named = [part.fqn for part in (*self.units, *self.glue)]
        wanted = {unit.fqn for unit in self.topology.units}
        if odd := {part.fqn for part in self.units} ^ wanted or set(self.topology.samplers.values()) - {*named}:
            raise ValueError(f"{min(odd)} must stand both in the topology and among the units or glue")
        if stray := next((option.unit for option in self.options if option.unit not in wanted), None):
            raise ValueError(f"an option names {stray!r}, which is not a unit")
        return self

    def part(self, fqn: str) -> PartRecord:
        """A unit or a piece of glue; raises ValueError for one that was not timed."""
        if (found := next((part for part in (*self.units, *self.glue) if part.fqn == fqn), None)) is None:
            raise ValueError(f"the profile has no time for {fqn}.")
        return found

    def option(self, edit: ReplaceUnit) -> OptionRecord:
        """A replacement's measurement in its unit; raises ValueError naming those that were timed there."""
        timed = {(option.replacement, format_options(option.options)): option
                 for option in self.options if option.unit == edit.unit}  # fmt: skip
        if (found := timed.get((edit.with_, format_options(edit.options)))) is None:
            names = sorted(f"{name} ({options})" if options else name for name, options in timed)
            raise ValueError(
                f"the profile has no time for {edit.what} in {edit.unit}; "
                f"it timed {', '.join(names) or 'nothing'} there."
            )
        return found

    @property
    def parts(self) -> tuple[PartRecord, ...]:
        """Units and glue in data-flow order, `other` last."""
        order = {fqn: i for i, fqn in enumerate(self.flow)}
        return tuple(sorted((*self.units, *self.glue), key=lambda part: order.get(part.fqn, len(order))))

    @property
    def flow(self) -> list[str]:
        order = ["conv_in", "time_embedding"]
        for block in self.topology.blocks:
            order += [unit.fqn for unit in self.topology.units if unit.block == block]
            if block in self.topology.samplers:
                order.append(self.topology.samplers[block])
        return [*order, "conv_out"]

    @property
    def steps_batch(self) -> int:
        """UNet calls per step and image: two with classifier-free guidance."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def joules_per_image(self) -> float | None:
        """What the UNet takes for one image, where a GPU told it."""
        if self.gpu is None or self.gpu.joules_per_call is None:
            return None
        return self.gpu.joules_per_call * self.steps * self.steps_batch / self.batch

    def _repr_html_(self) -> str:
        """The answer, the blocks and the trust box, for notebooks; `asdm_prof.report` makes the whole page."""
        whole = self.whole.latency_s
        said = f"{self.title}: {whole.median:.3g} s [{whole.low:.3g}, {whole.high:.3g}] a UNet call"
        failed = ", ".join(line.check for line in self.trust if not line.passed)
        passed = f"{sum(line.passed for line in self.trust)} of {len(self.trust)} checks passed"
        where = f"{self.backend}, {self.dtype} on {self.device}, {self.threads} threads, batch {self.batch}"
        note = f"{where}; {passed}{f', failed: {failed}' if failed else ''}."
        macs, unit = mac_unit(self.whole.macs)
        head = ["block", "", "of time", "ms", unit, "M parameters"]
        return notebook.table(said, head, self._block_rows(macs), note, left=(0, 1))

    def _block_rows(self, macs: float) -> list[list[str]]:
        """One row per block, and per piece of glue outside the blocks, with a bar for its share."""
        blocks: dict[str, list[PartRecord]] = {}
        for part in self.parts:
            blocks.setdefault(part.block or part.fqn, []).append(part)
        shares = {name: sum(part.share.median for part in parts) for name, parts in blocks.items()}
        return [
            [
                name,
                notebook.bar(shares[name] / (max(shares.values()) or 1.0)),
                f"{100 * shares[name]:.1f} %",
                f"{1e3 * sum(part.latency_s.median for part in parts):.1f}",
                f"{sum(part.macs for part in parts) / macs:.2f}",
                f"{sum(part.params for part in parts) / 1e6:.2f}",
            ]
            for name, parts in blocks.items()
        ]
