"""diff of two profiles, unit by unit: ratios with intervals, guarded by what must be equal to compare at all.

A profile is one run on one machine; what differs between two of them may be the code, or only the machine. So unlike
environments are refused, and every ratio comes with the interval that both runs' raw samples leave open.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from asdm.measure.statistics import bootstrap
from asdm.records.measurement import Estimate, device_kind
from asdm.utils.record import Frozen
from asdm_prof.records import PartRecord, Profile

SETTINGS = ("config_sha256", "backend", "dtype", "device", "threads", "batch", "size")
MACHINE = (
    "machine", "cpu", "cores", "gpu", "driver", "cuda", "cudnn", "torch", "malloc", "cudnn_benchmark", "fp32_products",
    "fp32_convolutions", "sdpa", "memory_format", "mig", "gpu_power_limit",
)  # fmt: skip
METRICS = ("p50", "p95", "share", "macs", "params")
WHOLE = "whole"


class Change(Frozen):
    """One figure of one part in both profiles; `ratio` is B / A with its 95 % interval, None where A has none of it."""

    a: float
    b: float
    ratio: Estimate | None

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes that nothing changed."""
        return self.ratio is not None and not self.ratio.low <= 1 <= self.ratio.high


class PartChange(Frozen):
    """A part, or the whole UNet, in both profiles: p50 and p95 in seconds, share, MACs and parameters."""

    fqn: str
    label: str
    kind: Literal["resnet", "transformer", "glue", "whole"]
    p50: Change
    p95: Change
    share: Change  # of the whole in the same run, so that a slower machine does not show in it
    macs: Change
    params: Change


class Difference(Frozen):
    """`asdm.diff/1`: what changed from profile A to profile B."""

    whole: PartChange
    parts: tuple[PartChange, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    unlike: dict[str, tuple[str, str]]

    @property
    def units(self) -> tuple[PartChange, ...]:
        return tuple(part for part in self.parts if part.kind != "glue")


# ---------------------------------------------------------------------------------------------- fingerprint


def fingerprint(profile: Profile) -> dict[str, str]:
    """What two profiles must agree in for their times to compare: model, settings, hardware and runtime."""
    settings = {name: str(getattr(profile, name)) for name in SETTINGS} | {"device": device_kind(profile.device)}
    facts = (*MACHINE, profile.backend.partition(":")[0])  # a runtime's own version, where the backend is a package
    return settings | {name: profile.environment[name] for name in facts if name in profile.environment}


def unlike(a: Profile, b: Profile) -> dict[str, tuple[str, str]]:
    """The fields of the fingerprint in which two profiles differ, with both values."""
    ours, theirs = fingerprint(a), fingerprint(b)
    names = [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]
    return {name: (ours.get(name, "none"), theirs.get(name, "none")) for name in names}


# ---------------------------------------------------------------------------------------------- differences


def diff(a: Profile, b: Profile) -> Difference:
    """Every part that both profiles have, in data-flow order, and the whole."""
    ours, theirs = ({part.fqn: part for part in profile.parts} for profile in (a, b))
    return Difference(
        whole=PartChange(
            fqn=WHOLE, label="whole UNet", kind="whole", share=_exact(1, 1), **_measures(a.whole, b.whole)
        ),
        parts=tuple(_part_change(part, theirs[fqn], a, b) for fqn, part in ours.items() if fqn in theirs),
        only_in_a=tuple(fqn for fqn in ours if fqn not in theirs),
        only_in_b=tuple(fqn for fqn in theirs if fqn not in ours),
        unlike=unlike(a, b),
    )


def _part_change(a: PartRecord, b: PartRecord, whole_a: Profile, whole_b: Profile) -> PartChange:
    shares = [np.asarray(part.latency_s.samples) / np.asarray(whole.whole.hooked_latency_s.samples)
              for part, whole in ((a, whole_a), (b, whole_b))]  # fmt: skip
    share = _sampled(shares[0], shares[1], 0.5)
    return PartChange(fqn=a.fqn, label=a.label, kind=a.kind, share=share, **_measures(a, b))


def _measures(a: Any, b: Any) -> dict[str, Change]:
    """What changed of a part, or of the whole, in time, MACs and parameters."""
    seconds = (a.latency_s.samples, b.latency_s.samples)
    times = {"p50": _sampled(*seconds, 0.5), "p95": _sampled(*seconds, 0.95)}
    return times | {"macs": _exact(a.macs, b.macs), "params": _exact(a.params, b.params)}


def _sampled(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, quantile: float) -> Change:
    """A quantile of both series; they are of two runs, so nothing is paired and both are resampled by themselves."""
    ours, theirs = (float(np.quantile(series, quantile)) for series in (a, b))

    def draws(series: Sequence[float] | np.ndarray) -> np.ndarray:
        return bootstrap(np.asarray(series), lambda values, axis: np.quantile(values, quantile, axis=axis))

    if ours <= 0:
        return Change(a=ours, b=theirs, ratio=None)
    apart = np.random.default_rng(1).permutation(draws(b))  # else both would be resampled with the same picks
    low, high = np.quantile(apart / draws(a), [0.025, 0.975])
    return Change(a=ours, b=theirs, ratio=Estimate(median=theirs / ours, low=float(low), high=float(high)))


def _exact(a: float, b: float) -> Change:
    return Change(a=a, b=b, ratio=Estimate(median=b / a, low=b / a, high=b / a) if a else None)


# ---------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Condition:
    """`unit:p50>5%`: fails where a figure of a part changed by more than that, beyond what noise explains."""

    text: str
    where: str
    metric: str
    above: bool
    limit: float

    def holds_for(self, part: PartChange) -> bool:
        change: Change = getattr(part, self.metric)
        if change.ratio is None:
            return self.above and change.b > change.a
        beyond = operator.gt if self.above else operator.lt
        return change.is_real and beyond(change.ratio.median - 1, self.limit)

    def parts_of(self, difference: Difference) -> list[PartChange]:
        """The parts that it is about; raises ValueError where there is none."""
        if self.where == WHOLE:
            return [difference.whole]
        if self.where == "unit":
            return list(difference.units)
        parts = [part for part in difference.parts if fnmatchcase(part.fqn, self.where)]
        if not parts:
            raise ValueError(
                f"--fail-on {self.text!r}: no unit is named {self.where!r}; choose unit, whole or a pattern such as "
                "'up_blocks.3.*'."
            )
        return parts


def parse_condition(text: str) -> Condition:
    """`WHERE:METRIC>LIMIT%` or `WHERE:METRIC<LIMIT%`; raises ValueError that shows the choices."""
    pattern = rf"\s*([\w.*?\[\]-]+)\s*:\s*({'|'.join(METRICS)})\s*([<>])\s*([+-]?\d+(?:\.\d*)?)\s*%\s*"
    match = re.fullmatch(pattern, text)
    if not match:
        raise ValueError(
            f"--fail-on {text!r} is not a condition: write WHERE:METRIC>LIMIT% such as 'unit:p50>5%'; WHERE is unit, "
            f"whole or a pattern such as 'up_blocks.3.*', METRIC one of {', '.join(METRICS)}, then > or <."
        )
    where, metric, sign, limit = match.groups()
    return Condition(text.strip(), where, metric, sign == ">", float(limit) / 100)


def failures(difference: Difference, conditions: Sequence[Condition]) -> list[tuple[Condition, PartChange]]:
    """Every part for which a condition holds, in the order of the conditions."""
    return [(c, part) for c in conditions for part in c.parts_of(difference) if c.holds_for(part)]


def as_json(a: Profile, b: Profile, difference: Difference, failed: Sequence[tuple[Condition, PartChange]]) -> Any:
    """`asdm.diff/1`, with what failed."""

    def side(profile: Profile) -> dict[str, Any]:
        return {"sha256": profile.sha256(), "created_utc": profile.created_utc, "command": profile.command}

    return {
        "schema": "asdm.diff/1",
        "a": side(a),
        "b": side(b),
        **difference.model_dump(mode="json"),
        "failed": [{"condition": c.text, "fqn": p.fqn, **getattr(p, c.metric).model_dump()} for c, p in failed],
    }
