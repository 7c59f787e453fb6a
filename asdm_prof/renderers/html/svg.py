"""Charts of the HTML report as inline SVG; every name is escaped, and hues are CSS classes that follow the theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from asdm.records.measurement import Estimate
from asdm_prof.analysis.rank import Ranked
from asdm_prof.records import Profile
from asdm_prof.renderers import FamilyCost
from asdm_prof.renderers._format import COUNT_UNITS, fixed, number, plain, ratio

CHARACTER = 7.2  # pixels that a character of the 13-pixel type takes
LINE = 15  # pixels from one label to the next
MOST_TICKS = 30  # of an axis
BAND = 0.05  # "close" in predicted against measured, as a share of the teacher's latency
KINDS = {"resnet": "ResNet", "transformer": "Transformer", "glue": "glue"}
Scale = Callable[[float], float]  # from a value to pixels
COMPONENTS = {"text_encoder": "text encoder", "unet": "UNet", "vae_decoder": "VAE decoder"}

# ---------------------------------------------------------------------------------------------- elements


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element: `class_` and `data_node` become `class` and `data-node`, floats are rounded, all is escaped."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), shown, Markup("").join(map(escape, children)))


def _value(value: object) -> object:
    return fixed(value, 2) if isinstance(value, float) else value


def svg(name: str, title: str, width: float, height: float, children: Iterable[object], role: str = "img") -> Markup:
    """A picture with its title, which shrinks by at most a fifth before its frame scrolls."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        *children,
        class_=name,
        role=role,
        aria_labelledby=f"{name}-title",
        viewBox=f"0 0 {number(width, 4)} {number(height, 4)}",
        style=f"max-width:{width:.0f}px;min-width:{0.8 * width:.0f}px",
    )


def rect(x: float, y: float, width: float, height: float, class_: str = "", **attributes: object) -> Markup:
    """A rectangle, from its left upper corner."""
    return tag("rect", x=x, y=y, width=width, height=height, class_=class_ or None, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line from one point to another."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: object, class_: str = "", **attributes: object) -> Markup:
    """A label at a point."""
    return tag("text", content, x=x, y=y, class_=class_ or None, **attributes)


def shape(kind: str, x: float, y: float, radius: float) -> Markup:
    """A ResNet is a disc and a Transformer a square on its tip, so that hue is not all that tells them apart."""
    if kind == "resnet":
        return tag("circle", cx=x, cy=y, r=radius, class_=kind)
    tips = ((x, y - 1.3 * radius), (x + 1.3 * radius, y), (x, y + 1.3 * radius), (x - 1.3 * radius, y))
    return tag("polygon", points=" ".join(f"{a:.2f},{b:.2f}" for a, b in tips), class_=kind)


# ---------------------------------------------------------------------------------------------- redundancy

STEP, LEFT, TOP, HEIGHT, FOOT = 27, 64, 34, 270, 62


def redundancy_dots(ranked: Sequence[Ranked]) -> Markup:
    """Units by rank: redundancy on a log axis with its interval, and a bracket over each tie group."""
    lows = [max(row.redundancy.low, row.redundancy.median / 10) for row in ranked]
    low = min((value for value in lows if value > 0), default=1.0)
    scale = _log_scale(low, max(low, *(row.redundancy.high for row in ranked)))
    width = LEFT + STEP * len(ranked) + 16
    title = "Redundancy of every unit by rank: share of the time divided by share of the parameters"
    body = [*_log_axis(scale, low, max(low, ranked[0].redundancy.high), width), *_brackets(ranked, scale)]
    body += [mark for row in ranked for mark in _dot(row, scale)]
    return svg("redundancy-dots", title, max(width, 420), TOP + HEIGHT + FOOT, body)


def _log_scale(low: float, high: float) -> Scale:
    a, b = math.log(low / 1.15), math.log(high * 1.15)
    return lambda value: TOP + HEIGHT * (b - (max(math.log(value), a) if value > 0 else a)) / (b - a)


def _log_axis(scale: Scale, low: float, high: float, width: float) -> Iterator[Markup]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for tick in (digit * 10.0**power for power in powers for digit in (1, 2, 5)):
        if low / 1.1 <= tick <= high * 1.1:
            yield line(LEFT - 6, scale(tick), width, scale(tick), "even" if tick == 1 else "grid")
            yield text(LEFT - 10, scale(tick) + 4, f"{tick:g}×", "end quiet")
    if low < 1 < high:
        yield text(LEFT, scale(1) + 17, "as much time as its size suggests", "quiet halo")


def _brackets(ranked: Sequence[Ranked], scale: Scale) -> Iterator[Markup]:
    for group, members in groupby(ranked, key=lambda row: row.tie_group):
        rows = list(members)
        left, right = _rank_x(rows[0]) - STEP * 0.38, _rank_x(rows[-1]) + STEP * 0.38
        y = scale(max(row.redundancy.high for row in rows)) - 12
        yield tag("path", d=f"M{left:.1f} {y + 5:.1f}V{y:.1f}H{right:.1f}V{y + 5:.1f}", class_="bracket")
        yield text((left + right) / 2, y - 4, group, "middle quiet halo")


def _rank_x(row: Ranked) -> float:
    return LEFT + STEP * (row.rank - 0.5)


def _dot(row: Ranked, scale: Scale) -> Iterator[Markup]:
    x, y = _rank_x(row), scale(row.redundancy.median)
    bar = line(x, scale(row.redundancy.low), x, scale(row.redundancy.high), "bar")
    hint = f"{row.fqn}: {number(row.redundancy.median)}×, rank {row.rank}, tie group {row.tie_group}"
    yield tag("g", tag("title", plain(hint)), bar, shape(row.kind, x, y, 4.5))
    foot = TOP + HEIGHT + 10
    yield text(x + 4, foot, plain(row.label, 8), "end", transform=f"rotate(-90 {x + 4:.1f} {foot})")


# ---------------------------------------------------------------------------------------------- families (Fig. 1)


def family_bars(costs: Sequence[FamilyCost]) -> Markup:
    """Parameters, and MACs of one image, of each component of each family (Fig. 1)."""
    families = by_family(costs)
    height = 34 + sum(26 + 22 * len(rows) for rows in families)
    panels = [
        *_family_panel(families, 0, "parameters, {}", lambda cost: cost.params),
        *_family_panel(families, 550, "computation per image, {}MAC", lambda cost: cost.macs * cost.calls),
    ]
    title = "Parameters and computation per image of text encoder, UNet and VAE decoder (the paper's Fig. 1)"
    return svg("family-bars", title, 1090, height, panels)


def by_family(costs: Sequence[FamilyCost]) -> list[list[FamilyCost]]:
    """Families as they come, each with its components in the order in which an image passes them."""
    families = {cost.family: [one for one in costs if one.family == cost.family] for cost in costs}
    place = {component: nth for nth, component in enumerate(COMPONENTS)}
    return [sorted(rows, key=lambda cost: place.get(cost.component, 0)) for rows in families.values()]


def _family_panel(
    families: list[list[FamilyCost]], left: float, name: str, value: Callable[[FamilyCost], int]
) -> Iterator[Markup]:
    widest = max(max(value(cost) for rows in families for cost in rows), 1)
    scale, unit = next(((size, letter) for size, letter in COUNT_UNITS if widest >= size), (1.0, ""))
    yield text(left, 14, name.format(unit), "strong")
    y = 34.0
    for rows in families:
        yield text(left, y + 8, plain(rows[0].title, 60), "quiet")
        y += 18
        for cost in rows:
            bar = 330 * value(cost) / widest
            yield text(left + 116, y + 13, plain(component_name(cost.component), 15), "end")
            yield rect(left + 124, y, bar, 17, "series own" if cost.component == "unet" else "series")
            yield text(left + 130 + bar, y + 13, number(value(cost) / scale))
            y += 22
        y += 8


def component_name(component: str) -> str:
    """A component's name for people."""
    return COMPONENTS.get(component, component.replace("_", " "))


# ---------------------------------------------------------------------------------------------- blocks (Fig. 2)

REACH = 130  # pixels of the longest bar, up and down


def block_bars(profile: Profile, labels: dict[str, str]) -> Markup:
    """Latency upwards and parameters downwards of ResNet and Transformer units, block by block (Fig. 2)."""
    blocks = profile.topology.blocks
    step = min(118.0, 1000 / len(blocks))
    width = 90 + step * len(blocks)
    times, sizes = block_sums(profile, "time"), block_sums(profile, "params")
    body: list[Markup] = [text(0, 30, "latency, ms", "strong"), text(0, 2 * REACH + 76, "parameters, M", "strong")]
    for place, block in enumerate(blocks):
        middle = 90 + step * (place + 0.5)
        body.append(text(middle, REACH + 46, plain(labels.get(block, block), 14), "middle strong"))
        kinds = [kind for kind in KINDS if (block, kind) in times]
        for nth, kind in enumerate(kinds):
            x = middle + step * 0.4 * (nth - len(kinds) / 2) + step * 0.02
            body += _bar(x, step * 0.36, times, (block, kind), REACH + 26, up=True)
            body += _bar(x, step * 0.36, sizes, (block, kind), REACH + 56, up=False)
    title = "Latency and parameters of ResNet and Transformer units in each block (the paper's Fig. 2)"
    return svg("block-bars", title, width, 2 * REACH + 84, body)


def block_sums(profile: Profile, measure: str) -> dict[tuple[str, str], float]:
    """(block, kind) → milliseconds or millions of parameters of its units."""
    sums: dict[tuple[str, str], float] = {}
    for unit in profile.units:
        value = 1e3 * unit.latency_s.median if measure == "time" else unit.params / 1e6
        sums[unit.block, unit.kind] = sums.get((unit.block, unit.kind), 0.0) + value
    return sums


def _bar(
    x: float, width: float, sums: dict[tuple[str, str], float], key: tuple[str, str], base: float, up: bool
) -> Iterator[Markup]:
    value = sums[key]
    length = REACH * value / max(*sums.values(), 1e-12)
    yield rect(x, base - length if up else base, width, length, key[1])
    yield rect(x, base - length if up else base, width, length, f"{key[1]}-mark")
    y = base - length - 5 if up else base + length + 13
    yield text(x + width / 2, y, number(value, 2) if value < 10 else fixed(value, 0), "middle")


# ---------------------------------------------------------------------------------------------- predictions

PLOT, MARGIN = 340, 64


@dataclass(frozen=True)
class Predicted:
    """A student whose latency ratio was predicted before it was measured; without a name it is one of many."""

    name: str
    predicted: float
    bounds: tuple[float, float] | None
    measured: Estimate
    own: bool = False


def prediction_scatter(name: str, students: Sequence[Predicted]) -> Markup:
    """Predicted ratio across, measured ratio up, the line where they are equal, and a band of ±0.05× around it."""
    values = [v for s in students for v in (s.predicted, s.measured.low, s.measured.high)]
    low, high = max(math.floor(10 * min(values) - 0.5) / 10, 0.0), math.ceil(10 * max(values) + 0.5) / 10

    def x(value: float) -> float:
        return MARGIN + PLOT * (value - low) / (high - low)

    def y(value: float) -> float:
        return 12 + PLOT * (high - value) / (high - low)

    band = [(low, low - BAND), (low, low + BAND), (high, high + BAND), (high, high - BAND)]
    corners = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in band)
    body = [
        tag("clipPath", rect(MARGIN, 12, PLOT, PLOT), id=f"{name}-plot"),
        tag("polygon", points=corners, class_="band", clip_path=f"url(#{name}-plot)"),
        line(x(low), y(low), x(high), y(high), "even"),
        text(MARGIN + PLOT + 12, 14, f"as predicted, ± {ratio(BAND)}", "quiet"),
    ]
    body += _ratio_axes(low, high, x, y)
    for student in students:
        body += _prediction(student, x, y)
    body += _point_names([student for student in students if student.name], x, y)
    title = "Predicted against measured latency ratio of each student"
    return svg(name, title, MARGIN + PLOT + 230, PLOT + 62, body)


def _ratio_axes(low: float, high: float, x: Scale, y: Scale) -> Iterator[Markup]:
    steps = min(round(10 * (high - low)), MOST_TICKS)
    for step in range(steps + 1):
        tick = low + (high - low) * step / max(steps, 1)
        yield line(MARGIN - 5, y(tick), MARGIN, y(tick), "axis")
        yield line(x(tick), PLOT + 12, x(tick), PLOT + 17, "axis")
        yield text(MARGIN - 9, y(tick) + 4, f"{tick:.1f}×", "end quiet")
        yield text(x(tick), PLOT + 32, f"{tick:.1f}×", "middle quiet")
    yield tag("path", d=f"M{MARGIN} 12V{PLOT + 12}H{PLOT + MARGIN}", class_="axis")
    yield text(MARGIN + PLOT / 2, PLOT + 54, "predicted", "middle strong")
    yield text(14, 12 + PLOT / 2, "measured", "middle strong", transform=f"rotate(-90 14 {12 + PLOT / 2:.0f})")


def _prediction(student: Predicted, x: Scale, y: Scale) -> Iterator[Markup]:
    measured, across = student.measured, student.predicted
    hint = f"{student.name or 'a random plan'}: predicted {ratio(across)}, measured {ratio(measured.median)}"
    bars = [line(x(across), y(measured.low), x(across), y(measured.high), "bar")]
    if student.bounds:
        bars.append(line(x(student.bounds[0]), y(measured.median), x(student.bounds[1]), y(measured.median), "bar"))
    dot = tag("circle", cx=x(across), cy=y(measured.median), r=5.0, class_="point own" if student.own else "point")
    yield tag("g", tag("title", plain(hint)), *bars, dot)


def _point_names(students: Sequence[Predicted], x: Scale, y: Scale) -> Iterator[Markup]:
    """Names beside the plot, from top to bottom as the dots are, each on a line of its own."""
    taken = 14.0  # the name of the line
    for student in sorted(students, key=lambda one: -one.measured.median):
        dot_x, dot_y = x(student.predicted), y(student.measured.median)
        place = max(dot_y, taken + LINE)
        taken = place
        yield line(dot_x + 7, dot_y, MARGIN + PLOT + 8, place, "leader")
        shown = f"{plain(student.name, 20)} {ratio(student.measured.median)}"
        yield text(MARGIN + PLOT + 12, place + 4, shown, "strong" if student.own else "")
