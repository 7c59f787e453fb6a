"""The trust box: what was checked, the figure, whether it passed, and what to do where it did not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from asdm.measure import estimate, paired_ratio, relative_half_width, spearman
from asdm.results import Estimate, Macs
from asdm_prof.records import PartRecord, TrustLine, WholeRecord

RESIDUAL = 0.02
OVERHEAD, OVERHEAD_AT_WORST = 0.01, 0.02
NOISE = 0.03
SAME_RANKS = 0.97
TWINS = 0.10

QUIET = "close other programs, or give it more runs with --time-budget."


def box(
    whole: WholeRecord,
    parts: Sequence[PartRecord],
    hooked_s: Sequence[float],
    bare_s: Sequence[float],
    second: tuple[int, Macs, Macs] | None,
    uncounted_ops: dict[str, int],
    hook_cost_s: Sequence[float] = (),
) -> tuple[TrustLine, ...]:
    """All checks of one profile; the ones that need a second count are left out where there is none.

    `hook_cost_s` are hooked less bare seconds of neighbouring calls on a small image.
    """
    lines = [_operators(uncounted_ops)]
    if second:
        lines.append(_fvcore(*second))
    lines += [
        _residual(parts),
        _overhead(whole, hooked_s, bare_s, hook_cost_s),
        _noise(whole, hooked_s),
        _split_half(parts),
        _twins(parts),
    ]
    return tuple(lines)


def _operators(uncounted_ops: dict[str, int]) -> TrustLine:
    names = ", ".join(sorted(uncounted_ops))
    return TrustLine(
        check="every operator is counted",
        value=f"not counted: {names}" if names else "none without a formula",
        passed=not names,
        remedy="MACs are too low by these operators; add their formulas to asdm/flops.py.",
    )


def _fvcore(size: int, ours: Macs, theirs: Macs) -> TrustLine:
    columns = {"conv": "conv_macs", "linear": "linear_macs", "attention": "attention_macs"}
    differ = [name for name, column in columns.items() if getattr(ours, column) != getattr(theirs, column)]
    off = abs(ours.macs - theirs.macs) / max(ours.macs, 1)
    value = (
        f"{', '.join(differ)} differ, {off:.2%} in all" if differ else f"equal at {size} px: {ours.macs / 1e9:.3f} GMAC"
    )
    return TrustLine(
        check="MACs agree with fvcore",
        value=value,
        passed=not differ,
        remedy="one of the two counts misses an operator: compare `asdm-prof flops` by column.",
    )


def _residual(parts: Sequence[PartRecord]) -> TrustLine:
    other = next(part for part in parts if part.fqn == "other").share
    return TrustLine(
        check="units + glue = whole",
        value=f"residual {other.median:.2%} [{other.low:.2%}, {other.high:.2%}]",
        passed=abs(other.median) <= RESIDUAL,
        remedy="time is spent outside every unit: look for hooks or code of your own in the UNet's forward.",
    )


def _overhead(
    whole: WholeRecord, hooked_s: Sequence[float], bare_s: Sequence[float], hook_cost_s: Sequence[float]
) -> TrustLine:
    """The hooks' seconds are the same at any image size, so a small image tells them apart from noise."""
    n = min(len(hooked_s), len(bare_s))
    ratio = paired_ratio(hooked_s[:n], bare_s[:n])
    in_pairs = Estimate(median=ratio.median - 1, low=ratio.low - 1, high=ratio.high - 1)
    found = estimate(hook_cost_s).scaled(1 / whole.latency_s.median) if hook_cost_s else in_pairs
    value = f"overhead {found.median:+.2%} [{found.low:+.2%}, {found.high:+.2%}]"
    if hook_cost_s:
        value += f"; full-size pairs {in_pairs.median:+.1%} [{in_pairs.low:+.1%}, {in_pairs.high:+.1%}]"
    return TrustLine(
        check="hooks cost nothing",
        value=value,
        passed=found.median <= OVERHEAD and found.high <= OVERHEAD_AT_WORST,
        remedy=QUIET,
    )


def _noise(whole: WholeRecord, hooked_s: Sequence[float]) -> TrustLine:
    low, high = np.quantile(hooked_s, [0.25, 0.75])
    half = relative_half_width(hooked_s)
    return TrustLine(
        check="the machine was quiet",
        value=f"median ± {half:.1%}, half of {len(hooked_s)} calls within {(high - low) / np.median(hooked_s):.1%}",
        passed=half <= NOISE,
        remedy=QUIET,
    )


def _split_half(parts: Sequence[PartRecord]) -> TrustLine:
    """Redundancy ranks units by latency per parameter, so that is what must repeat."""
    timed = [part for part in parts if part.kind != "glue"]
    halves = [[float(np.median(part.latency_s.samples[i::2])) / part.params for part in timed] for i in (0, 1)]
    agreement = spearman(*halves)
    return TrustLine(
        check="both halves rank alike",
        value=f"Spearman {agreement:.3f} over {len(timed)} units",
        passed=agreement >= SAME_RANKS,
        remedy=QUIET,
    )


def _twins(parts: Sequence[PartRecord]) -> TrustLine:
    """Units of one shape at one resolution do the same work; how far apart their shares are is an error bar."""
    groups: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    for part in parts:
        if part.kind != "glue":
            groups[(part.kind, part.block, part.macs, part.params)].append(part.share.median)
    spreads = [max(shares) / min(shares) - 1 for shares in groups.values() if len(shares) > 1]
    worst = max(spreads, default=0.0)
    return TrustLine(
        check="identical units take the same time",
        value=f"worst of {len(spreads)} groups: {worst:.1%} apart" if spreads else "no two units are alike",
        passed=worst <= TWINS,
        remedy="differences between units below this spread mean nothing; " + QUIET,
    )
