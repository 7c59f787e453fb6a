"""Figures and names as the proof's tables and sentences write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asdm.records.bench import Measure
from asdm.records.measurement import Estimate
from benchmarks.proof.records import ProofRow


def titles(measures: Iterable[Measure]) -> str:
    """Metrics' names for people."""
    return ", ".join(measure.title for measure in measures)


def at(row: ProofRow) -> str:
    """A row's measured latency, where it was timed."""
    latency = row.latency
    return f" at {latency.ratio.median:.3f}× [{latency.ratio.low:.3f}, {latency.ratio.high:.3f}]" if latency else ""


def interval(estimate: Estimate) -> str:
    return f"{figure(estimate.median)} [{figure(estimate.low)}, {figure(estimate.high)}]"


def signed(estimate: Estimate) -> str:
    return f"{round(estimate.median, 9) + 0.0:+.2g} {bounds(estimate.low, estimate.high)}"


def bounds(low: float, high: float) -> str:
    return f"[{low:+.2g}, {high:+.2g}]"


def figure(value: float) -> str:
    return f"{value:#.3g}" if value else "0"


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table whose columns are the rows' keys."""
    return [_line(rows[0]), _line(["---"] * len(rows[0])), *(_line(row.values()) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(safe, cells))} |"


def safe(text: str) -> str:
    """A name from a file, for Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
