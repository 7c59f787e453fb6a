"""What all figures share: sizes, colours, markers, legends and axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from asdm.records.measurement import Estimate
from asdm_prof.renderers._format import plain

STYLE = Path(__file__).with_name("paper.mplstyle")
ONE_COLUMN, TWO_COLUMNS = 3.3, 6.8  # inches
# Okabe–Ito; hatch and marker say the same as the hue.
COLOURS = {"resnet": "#0072B2", "transformer": "#D55E00", "glue": "#999999"}
HATCHES = {"resnet": "", "transformer": "////", "glue": r"\\\\"}
MARKERS = {"resnet": "o", "transformer": "s"}
KINDS = {"resnet": "ResNet", "transformer": "Transformer (cross-attention)", "glue": "glue"}
COMPONENTS = {"unet": "UNet", "vae_decoder": "VAE decoder"}
INK, QUIET = "#222222", "#767676"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches."""
    return Figure(figsize=(width, height), layout="constrained")


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def cross(axes: Axes, x: Estimate, y: Estimate, marker: str, colour: str, size: float = 4) -> None:
    """A point with its intervals in both directions."""
    axes.hlines(y.median, x.low, x.high, color=colour, linewidth=0.8)
    axes.vlines(x.median, y.low, y.high, color=colour, linewidth=0.8)
    axes.plot(x.median, y.median, marker, color=colour, markersize=size)


def row_names(axes: Axes, names: Sequence[str], air: float = 0.6, **look: Any) -> None:
    """Names of rows that run from top to bottom."""
    axes.set_yticks(range(len(names)), names, **look)
    axes.set_ylim(len(names) - 1 + air, -air)
    axes.tick_params(axis="y", length=0)


def kind_legend(figure: Figure, kinds: Sequence[str]) -> None:
    """Hue and hatch of each kind, above the figure."""
    patches = [Patch(facecolor=COLOURS[k], hatch=HATCHES[k], edgecolor="white", label=KINDS[k]) for k in kinds]
    figure.legend(handles=patches, loc="outside upper right", ncols=len(patches))


def bracket(axes: Axes, ranks: list[int], group: int) -> None:
    """A line at the right edge beside units that are not told apart."""
    edge = axes.get_yaxis_transform()
    axes.plot([1.01, 1.01], [ranks[0] - 0.3, ranks[-1] + 0.3], color=QUIET, transform=edge, clip_on=False)
    axes.text(1.03, (ranks[0] + ranks[-1]) / 2, str(group), size=6, va="center", transform=edge)


def marker_legend(figure: Figure) -> None:
    """Hue and marker of ResNets and Transformers, above the figure."""
    lines = [
        Line2D([], [], linestyle="", marker=MARKERS[k], color=COLOURS[k], markersize=3.5, label=KINDS[k])
        for k in ("transformer", "resnet")
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=2, handletextpad=0.1)


def span(values: list[float], least: float = 0.1) -> tuple[float, float]:
    """Limits around all values with some air, and never narrower than `least`."""
    middle, half = (min(values) + max(values)) / 2, max(max(values) - min(values), least) / 2
    return middle - 1.3 * half, middle + 1.3 * half


def name_points(axes: Axes, points: list[tuple[float, float, str]], low: float, high: float) -> None:
    """Names in a column right of the axes, from top to bottom as their points, each with a thin line to its own."""
    line = (high - low) / 18
    below = high + line
    for x, y, name in sorted(points, key=lambda point: (-point[1], -point[0])):
        below = min(y, below - line)
        axes.annotate(
            plain(name, 18), (x, y), (high + line / 2, below), va="center", size=6.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def powers_of_ten(axes: Axes, which: str) -> None:
    """Logarithmic axes, `x`, `y` or both, labelled in plain text: the style leaves mathematics as it is written."""
    for name in which:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
