"""The trust box: each check with its value, whether it passed, and what to do if it did not.

A check of the machine fails only if the disturbance could change the order of two units whose intervals do not overlap.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from asdm.measure.backends import Attribution
from asdm.measure.statistics import estimate, paired_ratio, relative_half_width, spearman
from asdm.records.measurement import Estimate, HostUse, Macs
from asdm_prof.profiler.gpu_checks import GPU_QUIET, GpuFindings, checks as gpu_checks
from asdm_prof.records import PartRecord, TrustLine, WholeRecord

RESIDUAL, RESIDUAL_OF_NODES = 0.02, 0.05
MAPPED, SLOWDOWN = 0.95, 1.25
ROOF = 1.10
OVERHEAD, OVERHEAD_AT_WORST = 0.01, 0.02
NOISE = 0.03
SAME_RANKS = 0.97
TWINS = 0.10
OTHERS = 0.10  # of all cores: what other programs and steal may take

QUIET = "close other programs, or give it more runs with --time-budget."


def box(
    whole: WholeRecord,
    parts: Sequence[PartRecord],
    hooked_s: Sequence[float],
    bare_s: Sequence[float],
    second: tuple[int, Macs, Macs] | None,
    uncounted_ops: dict[str, int],
    hook_cost_s: Sequence[float] = (),
    attribution: Attribution | None = None,
    host: HostUse | None = None,
    gpu: GpuFindings | None = None,
) -> tuple[TrustLine, ...]:
    """All checks of one profile; those that need a second count are left out without one.

    `hook_cost_s` are hooked minus bare seconds of neighbouring calls on a small image. `attribution` says how part
    times were derived if not by hooks inside the forward; two checks of it then replace that of the hooks' cost.
    """
    lines = [_operators(uncounted_ops)]
    if second:
        lines.append(_fvcore(*second))
    if attribution:
        lines += [_residual(parts, RESIDUAL_OF_NODES), _mapped(attribution), _slowdown(attribution)]
    else:
        lines += [_residual(parts, RESIDUAL), _overhead(whole, hooked_s, bare_s, hook_cost_s)]
    lines += [_noise(hooked_s), _split_half(parts), _twins(parts)]
    if any(part.roofline for part in parts):
        lines.append(_roof(parts))
    if host:
        lines.append(_host(host, parts))
    if gpu:
        lines = [line.model_copy(update={"remedy": line.remedy.replace(QUIET, GPU_QUIET)}) for line in lines]
        lines += gpu_checks(gpu)
    return tuple(lines)


def _line(check: str, passed: bool, value: str, remedy: str = QUIET) -> TrustLine:
    return TrustLine(check=check, value=value, passed=passed, remedy=remedy)


def _operators(uncounted_ops: dict[str, int]) -> TrustLine:
    names = ", ".join(sorted(uncounted_ops))
    value = f"not counted: {names}" if names else "none without a formula"
    remedy = "MACs are too low by these operators; add their formulas to asdm/unet/flops.py."
    return _line("every operator is counted", not names, value, remedy)


def _fvcore(size: int, ours: Macs, theirs: Macs) -> TrustLine:
    columns = {"conv": "conv_macs", "linear": "linear_macs", "attention": "attention_macs"}
    differ = [name for name, column in columns.items() if getattr(ours, column) != getattr(theirs, column)]
    off = abs(ours.macs - theirs.macs) / max(ours.macs, 1)
    value = (
        f"{', '.join(differ)} differ, {off:.2%} in all" if differ else f"equal at {size} px: {ours.macs / 1e9:.3f} GMAC"
    )
    remedy = "one of the two counts misses an operator: compare `asdm-prof flops` by column."
    return _line("MACs agree with fvcore", not differ, value, remedy)


def _residual(parts: Sequence[PartRecord], limit: float) -> TrustLine:
    other = next(part for part in parts if part.fqn == "other").share
    value = f"residual {other.median:.2%} [{other.low:.2%}, {other.high:.2%}]"
    remedy = "time is spent outside every unit: look for hooks or code of your own in the UNet's forward."
    return _line("units + glue = whole", abs(other.median) <= limit, value, remedy)


def _overhead(
    whole: WholeRecord, hooked_s: Sequence[float], bare_s: Sequence[float], hook_cost_s: Sequence[float]
) -> TrustLine:
    """The cost of the hooks does not depend on the image size, so a small image separates it from noise."""
    n = min(len(hooked_s), len(bare_s))
    ratio = paired_ratio(hooked_s[:n], bare_s[:n])
    in_pairs = Estimate(median=ratio.median - 1, low=ratio.low - 1, high=ratio.high - 1)
    overhead = estimate(hook_cost_s).scaled(1 / whole.latency_s.median) if hook_cost_s else in_pairs
    value = f"overhead {overhead.median:+.2%} [{overhead.low:+.2%}, {overhead.high:+.2%}]"
    if hook_cost_s:
        value += f"; full-size pairs {in_pairs.median:+.1%} [{in_pairs.low:+.1%}, {in_pairs.high:+.1%}]"
    return _line("hooks cost nothing", overhead.median <= OVERHEAD and overhead.high <= OVERHEAD_AT_WORST, value)


def _mapped(attribution: Attribution) -> TrustLine:
    share = estimate(attribution.mapped)
    value = f"{share.median:.1%} of its own node time [{share.low:.1%}, {share.high:.1%}] is in units and glue"
    remedy = "nodes of the runtime's graph could not be assigned to a unit; the shares of units are too low by them."
    return _line("the runtime's time lies in units", share.low >= MAPPED, value, remedy)


def _slowdown(attribution: Attribution) -> TrustLine:
    """Part times come from an observed call; the nearer its latency is to the bare call's, the less was scaled."""
    ratio = estimate(attribution.slowdown)
    value = f"it takes {ratio.median:.3f}× its time [{ratio.low:.3f}, {ratio.high:.3f}]; part times are scaled"
    remedy = f"shares of units are those of a call that differs by {abs(ratio.median - 1):.0%}; rank by them with care."
    return _line("the observed call is like the bare one", 1 / SLOWDOWN <= ratio.median <= SLOWDOWN, value, remedy)


def _roof(parts: Sequence[PartRecord]) -> TrustLine:
    """No unit can beat the machine's peaks; one that does shows that a peak was measured too low."""
    placed = [part for part in parts if part.roofline]
    best = max(placed, key=lambda part: part.roofline.attained if part.roofline else 0.0)
    attained = best.roofline.attained if best.roofline else 0.0
    value = f"{best.label} comes nearest: {attained:.0%} of what the peaks allow"
    remedy = "the peaks were measured while something else ran; " + QUIET
    return _line("no unit beats the roofline", attained <= ROOF, value, remedy)


def _noise(hooked_s: Sequence[float]) -> TrustLine:
    low, high = np.quantile(hooked_s, [0.25, 0.75])
    half = relative_half_width(hooked_s)
    value = f"median ± {half:.1%}, half of {len(hooked_s)} calls within {(high - low) / np.median(hooked_s):.1%}"
    return _line("the machine was quiet", half <= NOISE, value)


def _split_half(parts: Sequence[PartRecord]) -> TrustLine:
    agreement = split_half(parts)
    value = f"Spearman {agreement:.3f} over {sum(part.kind != 'glue' for part in parts)} units"
    return _line("both halves rank alike", agreement >= SAME_RANKS, value)


def split_half(parts: Sequence[PartRecord]) -> float:
    """Rank correlation of odd and even runs by latency per parameter, which redundancy ranks by."""
    timed = [part for part in parts if part.kind != "glue"]
    return spearman(*([float(np.median(part.latency_s.samples[i::2])) / part.params for part in timed] for i in (0, 1)))


def told_apart(parts: Sequence[PartRecord]) -> list[tuple[PartRecord, PartRecord]]:
    """Pairs of units whose intervals of latency per parameter do not overlap, the more redundant one first."""
    timed = [part for part in parts if part.kind != "glue"]
    return [(a, b) for a in timed for b in timed if a.share.low / a.params > b.share.high / b.params]


def could_turn(parts: Sequence[PartRecord], error: float) -> int:
    """How many of the pairs of `told_apart` would change places if each of their shares were off by `error`."""
    pairs = told_apart(parts)
    return sum(a.share.median * (1 - error) / a.params < b.share.median * (1 + error) / b.params for a, b in pairs)


def _halves_turn(parts: Sequence[PartRecord]) -> int:
    """How many of the pairs of `told_apart` have the opposite order in the odd or in the even runs alone."""

    def scores(part: PartRecord) -> np.ndarray:
        return np.array([np.median(part.latency_s.samples[i::2]) for i in (0, 1)]) / part.params

    return sum(bool((scores(a) < scores(b)).any()) for a, b in told_apart(parts))


def _host(host: HostUse, parts: Sequence[PartRecord]) -> TrustLine:
    """Other programs and steal during the timed calls; they matter only if the two halves then disagree."""
    cores = os.cpu_count() or 1
    busy = host.others_cores + host.steal_cores > OTHERS * cores
    turned = _halves_turn(parts) if busy else 0
    value = f"others took {host.others_cores:.2f} of {cores} cores, steal {host.steal_cores:.2f}"
    if turned:
        value += f"; {turned} pairs of the rank turn between its halves"
    return _line("the machine was ours alone", not turned, value)


def _twins(parts: Sequence[PartRecord]) -> TrustLine:
    """Units of one shape at one resolution do the same work, so the spread of their shares is an error bar."""
    groups: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    for part in parts:
        if part.kind != "glue":
            groups[(part.kind, part.block, part.macs, part.params)].append(part.share.median)
    spreads = [max(shares) / min(shares) - 1 for shares in groups.values() if len(shares) > 1]
    worst = max(spreads, default=0.0)
    turned = could_turn(parts, worst / 2) if worst > TWINS else 0
    value = f"worst of {len(spreads)} groups: {worst:.1%} apart" if spreads else "no two units are alike"
    if turned:
        value += f", which could turn {turned} pairs of the rank"
    remedy = "differences between units below this spread mean nothing; " + QUIET
    return _line("identical units take the same time", not turned, value, remedy)
