"""What a GPU told besides the times of calls, and the checks of the trust box that rest on it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asdm.measure.statistics import estimate
from asdm.records.measurement import GpuUse
from asdm_prof.records import TrustLine

BUSY = 0.9  # of the wall time, below which launches may decide the order of units
GPU_QUIET = "end other processes on this GPU, or give it more runs with --time-budget."


@dataclass
class GpuFindings:
    """Seconds of the wall and of the kernels alone, call by call, and what else a GPU told."""

    wall_s: list[float] = field(default_factory=list)  # of bare calls
    kernels_s: list[float] = field(default_factory=list)  # of bare calls as one graph; empty where there is none
    parts_s: dict[str, list[float]] = field(default_factory=dict)
    launched: bool = False  # call by call, so that the GPU may have waited for Python
    no_graph: str = ""  # why the forward did not become a graph
    use: GpuUse | None = None
    peak_bytes: int | None = None
    attention_kernels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def kernels_of(self, fqn: str) -> float | None:
        """Median seconds of a part's kernels."""
        return float(np.median(self.parts_s[fqn])) if fqn in self.parts_s else None

    def of_whole(self) -> dict[str, Any]:
        """The fields of the whole UNet's record."""
        fields: dict[str, Any] = {"measured_peak_bytes": self.peak_bytes}
        if self.wall_s:
            fields["wall_s"] = estimate(self.wall_s)
        if self.kernels_s and self.wall_s:
            fields["gpu_s"] = estimate(self.kernels_s)
            fields["gpu_busy"] = estimate((np.median(self.kernels_s) / np.asarray(self.wall_s)).tolist())
        return fields


# ---------------------------------------------------------------------------------------------- trust


def checks(findings: GpuFindings) -> list[TrustLine]:
    """Whether launches, other processes or a slowed clock disturbed the times."""
    lines = [_busy(findings)] if findings.launched else []
    use = findings.use
    if use and use.other_processes is not None:
        lines.append(
            TrustLine(
                check="the GPU was ours alone",
                value=f"{use.other_processes} other processes on it",
                passed=not use.other_processes,
                remedy="another process uses the GPU: end it, or choose another card with --device.",
            )
        )
    if use and use.sm_mhz is not None:
        reasons = " and ".join(use.slowed_by)
        lines.append(
            TrustLine(
                check="the GPU kept its clock",
                value=f"at least {use.sm_mhz} MHz, at most {use.temperature_c} °C"
                + (f"; slowed by {reasons}" * bool(reasons)),
                passed=not use.slowed_by,
                remedy=f"the card is throttling, held down by {reasons}: compare within one run alone, or cool it.",
            )
        )
    return lines


def _busy(findings: GpuFindings) -> TrustLine:
    check = "the GPU did not wait for launches"
    if findings.no_graph:
        remedy = "whether unit times are those of their launches is not known."
        return TrustLine(check=check, value=findings.no_graph, passed=False, remedy=remedy)
    busy = findings.of_whole()["gpu_busy"]
    return TrustLine(
        check=check,
        value=f"kernels fill {busy.median:.0%} of the wall time [{busy.low:.0%}, {busy.high:.0%}]",
        passed=busy.median >= BUSY,
        remedy="launch-bound: a unit's time is its number of launches; use --backend cudagraph, or a larger --batch.",
    )
