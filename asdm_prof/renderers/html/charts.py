"""Plots of the HTML report with two measured axes, as inline SVG: roofline, frontier, damage, quality, training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from asdm.records.bench import Measure, Metric
from asdm.records.measurement import Estimate
from asdm_prof.records import Interval, PartRecord, Peaks, Profile, TrainingLog
from asdm_prof.renderers._format import amount, amount_text, count, metric_name, number, plain, ratio
from asdm_prof.renderers.html.svg import LINE, line, rect, shape, svg, tag, text

LEFT, TOP, FOOT = 70, 16, 50  # pixels around a plot

# ---------------------------------------------------------------------------------------------- axes


@dataclass(frozen=True)
class Axis:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (self._scaled(x) for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (v - a) / ((b - a) or 1.0)

    def _scaled(self, value: float) -> float:
        return math.log(max(value, self.low)) if self.log else value

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis: 1, 2, 5 times a power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                ticks = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
                if len(ticks) <= most + 2:
                    break
            return ticks
        rough = (self.high - self.low) / most or 1.0
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(d * size for d in (1, 2, 5, 10) if d * size >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _frame(x: Axis, y: Axis, across: str, up: str, x_unit: str = "") -> Iterator[Markup]:
    """Grid lines, ticks and the names of both axes."""
    yield from _levels(y, x.start, x.end, 8, ".6g")
    for tick in x.ticks():
        yield line(x(tick), y.start, x(tick), y.start + 5, "axis")
        yield text(x(tick), y.start + 20, f"{tick:.6g}{x_unit}", "middle quiet")
    yield tag("path", d=f"M{x.start} {y.end}V{y.start}H{x.end}", class_="axis")
    yield text((x.start + x.end) / 2, y.start + 42, across, "middle strong")
    middle = (y.start + y.end) / 2
    yield text(11, middle, up, "middle strong", transform=f"rotate(-90 11 {middle:.0f})")


def _levels(y: Axis, left: float, right: float, gap: float, form: str, most: int = 6) -> Iterator[Markup]:
    """Grid lines with their values before them."""
    for tick in y.ticks(most):
        yield line(left, y(tick), right, y(tick), "grid")
        yield text(left - gap, y(tick) + 4, f"{tick:{form}}", "end quiet")


def _points(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


# ---------------------------------------------------------------------------------------------- roofline

ROOF_WIDTH, ROOF_HEIGHT = 760, 300


def on_the_roofline(profile: Profile) -> list[PartRecord]:
    """Parts whose FLOPs and bytes are both known, and that took time."""
    return [p for p in profile.parts if p.roofline and p.macs and p.moved_bytes and p.latency_s.median > 0]


def intensity(part: PartRecord) -> float:
    """FLOPs per byte moved."""
    return 2 * part.macs / part.moved_bytes


def speed(part: PartRecord) -> float:
    """FLOPs per second, as measured."""
    return 2 * part.macs / part.latency_s.median


def roofline(profile: Profile, peaks: Peaks, index: Mapping[str, int], hints: Mapping[str, str]) -> Markup:
    """FLOPs per second of every part over its FLOPs per byte, under what this machine reaches at best."""
    parts = on_the_roofline(profile)
    best = peaks.flops_per_s / 1e9
    x = _log_axis([*map(intensity, parts), peaks.flops_per_s / peaks.bytes_per_s], LEFT, LEFT + ROOF_WIDTH)
    y = _log_axis([*(speed(part) / 1e9 for part in parts), best], TOP + ROOF_HEIGHT, TOP)
    ridge = peaks.flops_per_s / peaks.bytes_per_s
    foot = max(x.low, y.low * 1e9 / peaks.bytes_per_s)
    roof = [(foot, foot * peaks.bytes_per_s / 1e9), (ridge, best), (x.high, best)]
    body = [*_frame(x, y, "FLOPs per byte moved", "GFLOP/s")]
    body.append(tag("polyline", points=_points((x(a), y(b)) for a, b in roof), class_="roof"))
    body += _ceilings(peaks, x, y)
    for part in sorted(parts, key=lambda part: -part.latency_s.median):
        at = x(intensity(part)), y(speed(part) / 1e9)
        mark = shape(part.kind, *at, 5.0) if part.kind != "glue" else rect(at[0] - 4, at[1] - 4, 8, 8, "glue")
        hint = tag("title", hints[part.fqn])
        body.append(tag("g", hint, mark, class_="cell dot", data_node=index[part.fqn], data_level="part"))
    body += _named(parts, x, y)
    title = "Every part under the machine’s roofline: FLOPs per second over FLOPs per byte"
    return svg("roofline", title, LEFT + ROOF_WIDTH + 200, TOP + ROOF_HEIGHT + FOOT, body, role="group")


def _log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    return Axis(min(values) / 1.4, max(values) * 1.4, start, end, log=True)


def _ceilings(peaks: Peaks, x: Axis, y: Axis) -> Iterator[Markup]:
    """Names beside the roof, and a line for the slower of the two kinds of arithmetic."""
    kinds = [(peaks.gemm_flops_per_s, "matrix product"), (peaks.conv_flops_per_s, "convolution")]
    (low, slower), (high, faster) = sorted(kinds)
    top = y(high / 1e9)
    yield text(x.end + 8, top + 4, f"{faster}, {count(high)}FLOP/s", "quiet")
    yield text(x.end + 8, max(y(low / 1e9) + 4, top + 4 + LINE), f"{slower}, {count(low)}FLOP/s", "quiet")
    if low < high / 1.05:
        yield line(max(x.start, x(low / peaks.bytes_per_s)), y(low / 1e9), x.end, y(low / 1e9), "even")
    at = max(x.low, y.low * 1e9 / peaks.bytes_per_s) * 1.3
    name = f"memory, {peaks.bytes_per_s / 1e9:.3g} GB/s"
    yield text(x(at) + 10, y(at * peaks.bytes_per_s / 1e9) + 14, name, "quiet halo")


def _named(parts: Sequence[PartRecord], x: Axis, y: Axis) -> Iterator[Markup]:
    """The costliest unit, the nearest to the roof and the furthest from it, each where there is room."""
    units = [part for part in parts if part.kind != "glue"] or list(parts)
    chosen = {
        max(units, key=lambda part: part.latency_s.median).fqn: None,
        max(units, key=lambda part: part.roofline.attained if part.roofline else 0.0).fqn: None,
        min(units, key=lambda part: part.roofline.attained if part.roofline else 0.0).fqn: None,
    }
    taken: list[tuple[float, float]] = []
    for part in parts:
        at = x(intensity(part)), y(speed(part) / 1e9)
        if part.fqn in chosen and all(abs(at[0] - a) > 60 or abs(at[1] - b) > 16 for a, b in taken):
            taken.append(at)
            side, shift = ("", 9) if at[0] < x.end - 70 else ("end ", -9)
            yield text(at[0] + shift, at[1] + 17, plain(part.label, 12), f"{side}strong halo")


# ---------------------------------------------------------------------------------------------- frontier

WIDE, HIGH = 620, 300
DOTS, CORNERS = 60, 600  # at most: what a page has room for
SPREAD = 30  # of damages from which on their axis is logarithmic


@dataclass(frozen=True)
class Spot:
    """A plan in the plane of its cost (a share of the teacher's) and its damage."""

    name: str
    ratio: float
    damage: float


def frontier(points: Sequence[Spot], own: Spot | None, chosen: Mapping[str, Sequence[Spot]], across: str) -> Markup:
    """Cost across, damage up; every step is a plan that no other beats in both.

    `chosen` are plans to be marked, by what they are: "best" ones as squares, "unlike" ones as squares on their tips,
    "hand-made" ones as triangles with their names.
    """
    spots = [*points, *(spot for some in chosen.values() for spot in some), *([own] if own else [])]
    lowest = min(spot.ratio for spot in spots)
    start = math.floor(10 * lowest - 0.5) / 10 if lowest > 0.3 else 0.0
    x = Axis(start, max(1.0, *(spot.ratio for spot in spots)), LEFT, LEFT + WIDE)
    y = _damage_axis([spot.damage for spot in spots], TOP + HIGH, TOP)
    steps: list[tuple[float, float]] = []
    for spot in _thinned(sorted(points, key=lambda spot: spot.ratio), CORNERS):
        steps += [(x(spot.ratio), steps[-1][1] if steps else y.end), (x(spot.ratio), y(spot.damage))]
    body = [*_frame(x, y, across, "damage", x_unit="×")]
    body.append(tag("polyline", points=_points(steps), class_="step"))
    for spot in _thinned(points, DOTS):
        body.append(_spot(spot, tag("circle", cx=x(spot.ratio), cy=y(spot.damage), r=2.5, class_="point")))
    for what, some in chosen.items():
        for spot in some:
            a, b, turn = x(spot.ratio), y(spot.damage), 45 if what == "unlike" else 0
            if what == "hand-made":
                corners = f"{a:.1f},{b - 4.5:.1f} {a + 4.5:.1f},{b + 3.5:.1f} {a - 4.5:.1f},{b + 3.5:.1f}"
                body.append(_spot(spot, tag("polygon", points=corners, class_="point")))
                body.append(text(a + 7, b + 4, plain(spot.name, 24), "note halo"))
                continue
            box = rect(a - 3.5, b - 3.5, 7, 7, "point", transform=f"rotate({turn} {a:.1f} {b:.1f})" if turn else None)
            body.append(_spot(spot, box))
    if own:
        at = x(own.ratio), y(own.damage)
        body.append(tag("circle", cx=at[0], cy=at[1], r=6.0, class_="point own"))
        body.append(text(at[0] + 11, at[1] - 9, plain(own.name, 24), "strong halo"))
    title = "The frontier: the least damage that any plan does at each cost"
    return svg("frontier", title, LEFT + WIDE + 90, TOP + HIGH + FOOT, body)


def _spot(spot: Spot, mark: Markup) -> Markup:
    return tag("g", tag("title", plain(f"{spot.name}: {ratio(spot.ratio)}, damage {amount(spot.damage)}", 300)), mark)


def _thinned(points: Sequence[Spot], most: int) -> list[Spot]:
    """All of them, or evenly chosen ones with the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _damage_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """From zero; logarithmic where damages are of several sizes, with what does none at its foot."""
    least, most = min((v for v in values if v > 0), default=1e-12), max(*values, 1e-12)
    if most > SPREAD * least:
        return Axis(least / 1.6, most * 1.3, start, end, log=True)
    return Axis(0.0, most * 1.06, start, end)


# ---------------------------------------------------------------------------------------------- additivity, budgets


def additivity(plans: Sequence[tuple[float, Interval]]) -> Markup:
    """Random joint plans: the damage that single edits predict across, what their students do up."""
    values = [v for predicted, measured in plans for v in (predicted, measured.low, measured.high) if v > 0]
    x = _log_axis(values, LEFT, LEFT + HIGH)
    y = _log_axis(values, TOP + HIGH, TOP)
    body = [*_frame(x, y, "predicted from single edits", "measured damage")]
    body.append(line(x.start, y.start, x.end, y.end, "even"))
    for predicted, measured in plans:
        at = x(predicted)
        hint = tag("title", f"predicted {number(predicted)}, measured {number(measured.value)}")
        bar = line(at, y(measured.low), at, y(measured.high), "bar")
        body.append(tag("g", hint, bar, tag("circle", cx=at, cy=y(measured.value), r=3.5, class_="point")))
    return svg("additivity", "Damage of joint plans, predicted and measured", LEFT + HIGH + 90, TOP + HIGH + FOOT, body)


def budgets(ours: Sequence[tuple[float, Interval]], rivals: Sequence[tuple[float, str, Interval]]) -> Markup:
    """Measured damage within each latency budget: ours as a line with its intervals, every baseline as a square."""
    damages = [v for _, one in ours for v in (one.value, one.low, one.high)] + [one.value for *_, one in rivals]
    ratios = [budget for budget, _ in ours]
    x = Axis(min(ratios) - 0.03, max(ratios) + 0.03, LEFT, LEFT + WIDE)
    y = _damage_axis(damages, TOP + HIGH, TOP)
    body = [*_frame(x, y, "latency budget, student / teacher", "measured damage", x_unit="×")]
    for budget, name, one in rivals:
        hint = tag("title", plain(f"{name} within {ratio(budget)}: damage {amount(one.value)}", 200))
        body.append(tag("g", hint, rect(x(budget) - 3.5, y(one.value) - 3.5, 7, 7, "glue")))
    body.append(tag("polyline", points=_points((x(budget), y(one.value)) for budget, one in ours), class_="curve"))
    for budget, one in ours:
        hint = tag("title", f"ours within {ratio(budget)}: damage {amount(one.value)}")
        bar = line(x(budget), y(one.low), x(budget), y(one.high), "bar")
        body.append(tag("g", hint, bar, tag("circle", cx=x(budget), cy=y(one.value), r=4.0, class_="point own")))
    return svg("budgets", "Our plan and every baseline at each budget", LEFT + WIDE + 90, TOP + HIGH + FOOT, body)


# ---------------------------------------------------------------------------------------------- quality

BAR_LEFT, BAR_WIDTH, BAR_STEP = 124, 240, 24


def quality_bars(name: str, metric: str, rows: Sequence[tuple[str, Metric | None]], better: str) -> Markup:
    """One metric of teacher and students as bars from zero; the noise floor around the teacher is shaded."""
    metrics = [one for _, one in rows if one]
    teacher = next((one.teacher for one in metrics if one.teacher is not None), None)
    noise = next((one.noise_floor for one in metrics if one.noise_floor is not None), 0.0) or 0.0
    values = [v for one in metrics for v in (one.low, one.high)]
    values += [teacher, teacher + noise] if teacher is not None else []
    x = Axis(min(0.0, *values), max(*values, 1e-12), BAR_LEFT, BAR_LEFT + BAR_WIDTH)
    bars = [("teacher", teacher, None)] if teacher is not None else []
    shown: list[tuple[str, float | None, Metric | None]] = [*bars, *((n, m.value if m else None, m) for n, m in rows)]
    bottom = 28 + BAR_STEP * len(shown)
    body = [text(0, 14, metric_name(metric), "strong"), text(BAR_LEFT + BAR_WIDTH + 62, 14, better, "end quiet")]
    if teacher is not None and noise > 0:
        a, b = x(max(teacher - noise, x.low)), x(min(teacher + noise, x.high))
        body.append(rect(a, 24, b - a, bottom - 22, "band"))
    for place, (row, value, one) in enumerate(shown):
        body += _quality_bar(row, value, one, x, 28 + BAR_STEP * place)
    body.append(line(x(0.0), 24, x(0.0), bottom + 2, "axis"))
    return svg(name, f"{plain(metric)} of teacher and students", BAR_LEFT + BAR_WIDTH + 64, bottom + 6, body)


def _quality_bar(row: str, value: float | None, one: Metric | None, x: Axis, top: float) -> Iterator[Markup]:
    yield text(BAR_LEFT - 8, top + 14, plain(row, 15), "end")
    if value is None:
        yield text(BAR_LEFT + 6, top + 14, "not measured", "quiet")
        return
    a, b = sorted((x(0.0), x(value)))
    yield rect(a, top + 3, b - a, BAR_STEP - 8, "series" if one else "series own")
    end = b
    if one:
        yield line(x(one.low), top + 9.5, x(one.high), top + 9.5, "bar")
        end = max(b, x(one.high))
    yield text(end + 6, top + 14, number(value), "halo")


# ---------------------------------------------------------------------------------------------- proof


@dataclass(frozen=True)
class Student:
    """A student in the plane of latency and quality, both with their intervals."""

    name: str
    ratio: Estimate
    quality: Estimate
    ours: bool


def tradeoff(name: str, measure: Measure, students: Sequence[Student], teacher: float, noise: float) -> Markup:
    """Latency across, one quality metric up, bars in both directions; around the teacher his noise is shaded."""
    title, least, most = measure.title, max(teacher - noise, measure.lowest), teacher + noise
    values = [v for one in students for v in (one.quality.low, one.quality.high)] + [least, most]
    ratios = [v for one in students for v in (one.ratio.low, one.ratio.high)]
    air = 0.06 * ((max(values) - min(values)) or 1.0)
    x = Axis(min(ratios) - 0.02, max(ratios) + 0.02, LEFT, LEFT + CURVE_WIDTH)
    y = Axis(min(values) - air, max(values) + air, TOP + PANEL_HIGH, TOP)
    body = [rect(x.start, y(most), CURVE_WIDTH, y(least) - y(most), "band")]
    body += _frame(x, y, "latency, student / teacher", plain(title, 24), x_unit="×")
    body += [line(x.start, y(teacher), x.end, y(teacher), "even"), text(x.end, TOP - 6, measure.direction, "end quiet")]
    for one in students:
        at = x(one.ratio.median), y(one.quality.median)
        hint = f"{one.name}: {ratio(one.ratio.median)}, {title} {number(one.quality.median)}"
        hint += f" [{number(one.quality.low)}, {number(one.quality.high)}]"
        across = line(x(one.ratio.low), at[1], x(one.ratio.high), at[1], "bar")
        up = line(at[0], y(one.quality.low), at[0], y(one.quality.high), "bar")
        circle = tag("circle", cx=at[0], cy=at[1], r=4.5, class_="point own")
        mark = circle if one.ours else rect(at[0] - 3.5, at[1] - 3.5, 7, 7, "glue")
        body.append(tag("g", tag("title", plain(hint, 200)), across, up, mark))
    return svg(name, f"{plain(title)} at each latency", LEFT + CURVE_WIDTH + 40, TOP + PANEL_HIGH + FOOT, body)


# ---------------------------------------------------------------------------------------------- training

PANEL_HIGH = 200
CURVE_WIDTH, CURVE_HEIGHT, CURVE_POINTS = 380, 150, 160


def smoothed(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[float, float]]:
    """A curve as at most `CURVE_POINTS` means of neighbouring steps."""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    size = max(1, math.ceil(len(known) / CURVE_POINTS))
    groups = [known[i : i + size] for i in range(0, len(known), size)]
    return [(fmean(step for step, _ in group), fmean(value for _, value in group)) for group in groups]


def loss_curve(name: str, term: str, log: TrainingLog) -> Markup:
    """One loss term over the steps of a training, from zero."""
    curve = smoothed(log.steps, log.terms[term])
    x = Axis(min(log.steps), max(*log.steps, log.steps[0] + 1), LEFT, LEFT + CURVE_WIDTH)
    top = max((value for _, value in curve), default=1.0)
    y = Axis(min(0.0, *(value for _, value in curve)), top * 1.05 or 1.0, TOP + 12 + CURVE_HEIGHT, TOP + 12)
    body = [text(0, 14, plain(term.replace("_", " "), 50), "strong")]
    body += _levels(y, x.start, x.end, 8, ".4g", 4)
    for tick in x.ticks(4):
        body.append(text(x(tick), y.start + 18, f"{tick:.0f}", "middle quiet"))
    for stage, first in log.stages.items():
        if x.low < first < x.high:
            body.append(line(x(first), y.start, x(first), y.end, "even"))
            body.append(text(x(first) + 5, y.end + 12, plain(stage, 24), "quiet halo"))
    body.append(tag("polyline", points=_points((x(a), y(b)) for a, b in curve), class_="curve"))
    if curve:
        body.append(text(x.end + 6, y(curve[-1][1]) + 4, number(curve[-1][1]), "halo"))
    return svg(name, f"{plain(term)} over the steps", LEFT + CURVE_WIDTH + 60, y.start + 26, body)


# ---------------------------------------------------------------------------------------------- damage

DAMAGE_HEIGHT = 120


def damage_dots(rows: Sequence[tuple[str, str, Interval | None]], left: float, step: float) -> Markup:
    """Damage of each unit's own edit on a log axis, units in the order and at the places of the dots above."""
    known = [amount for _, _, amount in rows if amount and amount.value > 0]
    width = left + step * len(rows) + 16
    low = min(max(amount.low, amount.value / 10) for amount in known)
    y = Axis(low / 1.3, max(amount.high for amount in known) * 1.3, 12 + DAMAGE_HEIGHT, 12, log=True)
    body = list(_levels(y, left - 6, width, 4, ".3g", 4))
    for place, (fqn, label, done) in enumerate(rows):
        at = left + step * (place + 0.5)
        foot = DAMAGE_HEIGHT + 22
        body.append(text(at + 4, foot, plain(label, 8), "end", transform=f"rotate(-90 {at + 4:.1f} {foot})"))
        if done is None or done.value <= 0:
            continue
        hint = tag("title", plain(f"{fqn}: damage {amount_text(done)}", 200))
        bar = line(at, y(max(done.low, y.low)), at, y(done.high), "bar")
        body.append(tag("g", hint, bar, tag("circle", cx=at, cy=y(done.value), r=4.0, class_="point own")))
    title = "Damage of each unit’s own edit, in the order above"
    return svg("damage-dots", title, max(width, 420), DAMAGE_HEIGHT + 74, body)
