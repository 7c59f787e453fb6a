"""Figures for a paper as PNG, SVG and PDF: `figures/<name>.{png,svg,pdf}`, byte for byte the same every time.

A figure is a function of the report that returns None where its data is missing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from asdm.utils.io import write_whole
from asdm_prof.renderers import Report
from asdm_prof.renderers.figures.bench import predicted_vs_measured, quality, search, students, validation
from asdm_prof.renderers.figures.costs import fig1_costs, fig2_latency_and_parameters, roofline, structure, units_share
from asdm_prof.renderers.figures.pruning import additivity, damage, frontier, rank_transfer, redundancy
from asdm_prof.renderers.figures.style import STYLE

OUTPUT = "figures"
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def render(report: Report, folder: Path, draws: Sequence[Any] | None = None) -> list[Path]:
    """Write every figure, or those of `draws`, that there is data for as PNG, SVG and PDF."""
    paths: list[Path] = []
    with matplotlib.style.context(STYLE, after_reset=True):
        for draw in FIGURES if draws is None else draws:
            figure = draw(report)
            if figure is not None:
                paths += _save(figure, folder / "figures" / draw.__name__)
    return paths


def _save(figure: Figure, stem: Path) -> Iterator[Path]:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, for all three
    for suffix, metadata in METADATA.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        yield write_whole(stem.with_suffix(f".{suffix}"), buffer.getvalue(), force=True)


FIGURES = (
    fig1_costs, fig2_latency_and_parameters, structure, units_share, redundancy, predicted_vs_measured, students,
    validation, rank_transfer, roofline, damage, frontier, additivity, quality, search,
)  # fmt: skip
