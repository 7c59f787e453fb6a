"""The roofline: how near every part comes to what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence

from asdm_prof.records import PartRecord, Peaks, Profile
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import BOUNDS, gpu_sentences, kernel_sentence, percent, plain, quoted
from asdm_prof.renderers.html import charts, keys
from asdm_prof.renderers.html.content import Block, Cell, Column, Paragraph, Section, Table, missing, picture
from asdm_prof.renderers.html.parts import hints, numbers
from asdm_prof.renderers.html.svg import rect
from asdm_prof.renderers.html.tables import table

GLUE = (keys.icon("glue", rect(4, 4, 8, 8, "glue")), "glue")


def section(report: Report) -> Section:
    """Every part under the machine's roofline, and what bounds it."""
    profile = report.profile
    parts = charts.on_the_roofline(profile)
    title = "What bounds it?"
    if profile.peaks is None:
        command = f"asdm-prof profile {quoted(profile.family)}"
        purpose = " measures them now, and says what bounds each part."
        return Section(title, [missing("This profile was taken without the machine’s peaks. ", command, purpose)])
    blocks: list[Block] = []
    if parts:
        drawn = charts.roofline(profile, profile.peaks, numbers(report), hints(report))
        key = [*keys.marks(), GLUE]
        blocks.append(picture(drawn, "Roofline of every part", _caption(profile, parts), key))
    blocks += [_bounds_table(profile), Paragraph([_peaks_sentence(profile.peaks)], "quiet", "terminal")]
    told = [sentence for sentence in (gpu_sentences(profile), kernel_sentence(profile)) if sentence]
    return Section(title, [*blocks, *(Paragraph([sentence]) for sentence in told)])


def _caption(profile: Profile, parts: Sequence[PartRecord]) -> str:
    """Which parts are bound by what, and the worst use of the machine."""
    bound: dict[str, float] = {}
    for part in profile.parts:
        if part.roofline and part.share.median >= 0.0005:
            bound[part.roofline.bound] = bound.get(part.roofline.bound, 0.0) + part.share.median
    shares = ", ".join(
        f"{percent(share)} by {BOUNDS[name]}" for name, share in sorted(bound.items(), key=lambda row: -row[1])
    )
    units = [part for part in parts if part.kind != "glue"] or list(parts)
    costliest = max(units, key=lambda part: part.latency_s.median)
    attained = costliest.roofline.attained if costliest.roofline else 0.0
    return plain(
        f"The nearer to the line, the better the machine is used. Time is bound: {shares}. {costliest.fqn}, the "
        f"costliest unit, attains {percent(attained)} of its roof.",
        400,
    )


def _bounds_table(profile: Profile) -> Table:
    """Parts by what bounds them: how many, their share of the time, and how near they come to the roof."""
    groups = {name: [(part, part.roofline) for part in profile.parts if part.roofline and part.roofline.bound == name]
              for name in BOUNDS}  # fmt: skip
    rows = []
    for name, group in groups.items():
        if group:
            taken = sum(part.latency_s.median for part, _ in group)
            roof = sum(max(placed.compute_s, placed.memory_s) for _, placed in group)
            share = sum(part.share.median for part, _ in group)
            rows.append((BOUNDS[name], str(len(group)), percent(share), percent(roof / taken)))
    names = ("bound by", "parts", "of time", "of the roof")
    columns = [Column(name, numeric=place > 0, terminal_from=0) for place, name in enumerate(names)]
    fields = [(column, [Cell(row[place]) for row in rows]) for place, column in enumerate(columns)]
    return table("bounds", "Parts by what bounds them.", fields, medium="terminal")


def _peaks_sentence(peaks: Peaks) -> str:
    """What the roof is made of."""
    return (
        f"The roof here: {peaks.gemm_flops_per_s / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{peaks.conv_flops_per_s / 1e9:.0f} in a convolution, {peaks.bytes_per_s / 1e9:.1f} GB/s, "
        f"{peaks.seconds_per_call * 1e6:.1f} µs a call."
    )
