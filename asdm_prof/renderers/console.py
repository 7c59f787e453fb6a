"""A report in the terminal, in the order of the page: the answer, the tree, the rank, the plan, students, trust.

Tables take the width they may use: 80 columns without wrapping; wider shows more columns, narrower fewer.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from asdm.plan import AnyEdit, GraftBlock, Prediction, PruningPlan, RemoveLayer, RemoveUnit, ReplaceUnit, Topology, Why
from asdm.results import BenchResult, BenchStudent, BenchTeacher, Estimate, Metric
from asdm_prof.compare import Change, Difference, PartChange
from asdm_prof.records import (
    Budgets,
    ComparedPlan,
    Comparison,
    Damage,
    Frontier,
    FrontierPoint,
    Interval,
    PartRecord,
    Peaks,
    Profile,
    Search,
    ValidatedPlan,
    Validation,
)
from asdm_prof.redundancy import Ranked, rank
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import (
    fixed,
    interval,
    number,
    percent,
    plain,
    plural,
    ratio,
    ratio_interval,
    seconds,
    seconds_interval,
)
from asdm_prof.tree import Node, shallow_blocks, shallow_params, shallow_share, tree_of

OUTPUT = None

T = TypeVar("T")
COLOURS = {"resnet": "#0072B2", "transformer": "#D55E00", "glue": "bright_black"}
QUIET = "bright_black"
SHOWN_OF_RANK = 10


def render(report: Report, folder: Path) -> list[Path]:
    """Print the report on stdout; no file is written."""
    print_report(report, stdout_console())
    return []


def stdout_console() -> Console:
    """A console on stdout that writes "?" for a character which the stream's encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def print_report(report: Report, console: Console) -> None:
    """Print the whole report in as many columns as the console has."""
    profile, width = report.profile, console.width
    console.print(Text(answer(profile), style="bold"))
    _section(console, "Where does the time go?", tree_table(profile, width))
    if profile.peaks is not None:
        _section(console, "What bounds it?", roofline_table(profile), Text(peaks_line(profile.peaks), style=QUIET))
    _section(console, "What is redundant?", rank_table(rank(profile)[:SHOWN_OF_RANK], width))
    if report.plan is not None:
        _section(console, "What would it buy?", *(Text(line) for line in plan_lines(report.plan, profile)))
    for bench in report.benches:
        _section(console, "What did it buy?", bench_table(bench, width))
        if any(student.quality for student in bench.students):
            console.print(quality_table(bench, width))
    _section(console, _trust_title(profile), trust_table(profile), Text(made_by(profile), style=QUIET))


def _section(console: Console, title: str, *contents: Table | Text) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    for content in contents:
        console.print(content)


# ---------------------------------------------------------------------------------------------- the answer


def answer(profile: Profile) -> str:
    """What one UNet call takes, and how much of that lies in the two shallow blocks, in one sentence."""
    first, last = shallow_blocks(profile)
    whole = profile.whole.latency_s
    return (
        f"{plain(profile.title)}'s UNet takes {seconds(whole.median)} {seconds_interval(whole)} a call on this machine "
        f"({_runtime(profile)}); {percent(shallow_share(profile).median)} of it is in {plain(first)} and "
        f"{plain(last)}, which hold {percent(shallow_params(profile))} of the "
        "parameters."
    )


def _runtime(profile: Profile) -> str:
    return plain(
        f"{profile.backend}, {profile.device}, {profile.dtype}, {plural(profile.threads, 'thread')}, "
        f"batch {profile.batch}, {profile.size}×{profile.size}"
    )


def made_by(profile: Profile) -> str:
    """The command behind a profile, its time and the first digits of its hash."""
    return f"Made by `{plain(profile.command)}` at {plain(profile.created_utc)}; profile {profile.sha256()[:12]}."


# ---------------------------------------------------------------------------------------------- the tree


@dataclass(frozen=True)
class Bar:
    """A bar in a table's cell, `share` of the cell long; blocks, or `#` where the terminal knows only ASCII."""

    share: float
    cells: int
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(8 * self.cells * min(max(self.share, 0.0), 1.0))
        if options.ascii_only:
            yield Text("#" * round(eighths / 8), style=self.style)
        else:
            yield Text("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip(), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.cells, self.cells)


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column that shows from a terminal width on."""

    title: str
    from_width: int
    cell: Callable[[T], str]
    quiet: bool = False


def tree_table(profile: Profile, width: int) -> Table:
    """Block → layer → unit in data-flow order, with bars for the share of time; a bar's full cell is the top block."""
    root = tree_of(profile)
    columns = [column for column in _tree_columns(profile) if width >= column.from_width]
    cells = min(24, width - 68) if width >= 76 else 0
    table = _table()
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=24)
    if cells:
        table.add_column("time", no_wrap=True, min_width=cells)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    longest = max((node.share for node in root.children), default=0.0) or 1.0
    for depth, node in root.walk():
        bar = [Bar(node.share / longest if depth else 0.0, cells, COLOURS.get(node.kind, ""))] if cells else []
        table.add_row(_node_name(node, depth), *bar, *(column.cell(node) for column in columns))
    return table


def _tree_columns(profile: Profile) -> list[Column[Node]]:
    ranked = {row.fqn: row for row in rank(profile)}

    def part(show: Callable[[PartRecord], str]) -> Callable[[Node], str]:
        return lambda node: show(node.parts[0]) if node.level == "part" else ""

    def total(what: str) -> Callable[[Node], str]:
        return lambda node: _scaled(sum(getattr(part, what) for part in node.parts), 1e9)

    return [
        Column("share", 0, lambda node: percent(node.share)),
        Column("ms", 40, lambda node: number(1e3 * node.latency_s)),
        Column("95 %", 100, part(lambda record: interval(record.latency_s, 1e-3)), quiet=True),
        Column("GMAC", 54, lambda node: _scaled(node.macs, 1e9)),
        Column("conv", 120, total("conv_macs"), quiet=True),
        Column("linear", 120, total("linear_macs"), quiet=True),
        Column("attention", 120, total("attention_macs"), quiet=True),
        Column("M params", 66, lambda node: _scaled(node.params, 1e6)),
        Column("MB peak", 136, lambda node: _scaled(node.peak_memory_bytes, 1e6)),
        Column("rank", 110, lambda node: str(ranked[node.name].rank) if node.name in ranked else ""),
    ]


def _node_name(node: Node, depth: int) -> Text:
    style = "bold" if node.level in ("unet", "block") else COLOURS.get(node.kind, "")
    return Text("  " * max(depth - 1, 0) + plain(node.label), style=style)


def _scaled(value: float, unit: float) -> str:
    """Three figures, and two decimals at the most, so that a column stays narrow."""
    shown = value / unit
    return number(shown) if shown >= 1 else fixed(shown, 2)


# ---------------------------------------------------------------------------------------------- roofline


def roofline_table(profile: Profile) -> Table:
    """Parts by what bounds them: how many, their share of the time, and how near they come to the roof."""
    table = _table()
    table.add_column("bound by", no_wrap=True)
    for title in ("parts", "of time", "of the roof"):
        table.add_column(title, justify="right", no_wrap=True)
    for bound, what in BOUNDS.items():
        parts = [(part, part.roofline) for part in profile.parts if part.roofline and part.roofline.bound == bound]
        if not parts:
            continue
        taken = sum(part.latency_s.median for part, _ in parts)
        roof = sum(max(placed.compute_s, placed.memory_s) for _, placed in parts)
        share = sum(part.share.median for part, _ in parts)
        table.add_row(what, str(len(parts)), percent(share), percent(roof / taken))
    return table


def peaks_line(peaks: Peaks) -> str:
    """What the roof is made of."""
    return (
        f"The roof here: {peaks.gemm_flops_per_s / 1e9:.0f} GFLOP/s in a matrix product, "
        f"{peaks.conv_flops_per_s / 1e9:.0f} in a convolution, {peaks.bytes_per_s / 1e9:.1f} GB/s, "
        f"{peaks.seconds_per_call * 1e6:.1f} µs a call."
    )


BOUNDS = {"compute": "arithmetic", "memory": "memory", "overhead": "calls"}


# ---------------------------------------------------------------------------------------------- rank, plan, students


def rank_table(ranked: Sequence[Ranked], width: int) -> Table:
    """Units from most to least redundant; those of one tie group are not told apart."""
    table = _table()
    for title in ("rank", "tie"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True, overflow="ellipsis", max_width=16 if width < 100 else 40)
    for title, from_width in (("redundancy", 0), ("95 %", 50), ("of time", 60), ("of params", 70), ("ms", 80)):
        if width >= from_width:
            table.add_column(title, justify="right", no_wrap=True, style=QUIET if title == "95 %" else "")
    for row in ranked:
        name = Text(plain(row.label if width < 100 else row.fqn), style=COLOURS.get(row.kind, ""))
        cells = (
            number(row.redundancy.median),
            interval(row.redundancy),
            percent(row.latency_share.median),
            f"{100 * row.params_share:.2f} %",
            number(1e3 * row.latency_s.median),
        )
        table.add_row(str(row.rank), str(row.tie_group), name, *cells[: len(table.columns) - 3])
    return table


def plan_lines(plan: PruningPlan, profile: Profile) -> list[str]:
    """The plan in words: what it promises, each edit with the time it touches, and the solver's proof."""
    lines = [_promise(plan)]
    lines += [f"  {plain(str(edit))}: {_time_of(edit, profile)} of time" for edit in plan.edits]
    if plan.validation_sha256 is not None:
        lines.append(f"Its interval is from the errors of validation {plain(plan.validation_sha256[:12])}.")
    if plan.damage_sha256 is not None:
        lines.append(f"Damage is as measured in {plain(plan.damage_sha256[:12])}.")
    elif plan.damage_from is not None:
        lines.append(f"Damage is from the {plain(plan.damage_from)}.")
    if plan.proof is not None:
        proof = plan.proof
        lines.append(
            f"Solver: {plain(proof.status)}; damage {number(proof.damage)}, proven bound {number(proof.bound)}, "
            f"gap {number(proof.gap)}."
        )
    if plan.why is not None:
        lines += why_lines(plan.why)
    return lines


SHOWN_REGRETS = 5


def why_lines(why: Why) -> list[str]:
    """What binds, what a little more of each budget is worth, and the units whose other choice costs least and most."""
    lines = ["Why: " + (f"{' and '.join(why.binding)} binds." if why.binding else "no budget binds.")]
    for name, price in why.shadow_prices.items():
        text = f"  {plain(name)}: {exponent(price.damage)} damage per {plain(price.per)}, {number(price.slack)} left"
        if price.next_step is not None and price.next_saves is not None:
            text += f"; {number(price.next_step)} {plain(price.per)} more would save {exponent(price.next_saves)}"
        lines.append(f"{text}.")
    told = sorted((r for r in why.regrets if r.damage is not None), key=lambda r: (r.damage or 0.0, r.unit))
    shown = told if len(told) <= 2 * SHOWN_REGRETS else [*told[:SHOWN_REGRETS], *told[-SHOWN_REGRETS:]]
    for place, regret in enumerate(shown):
        if place == SHOWN_REGRETS and len(told) > len(shown):
            lines.append(f"  … {len(told) - len(shown)} units between")
        other = plain(str(regret.other))
        lines.append(f"  {plain(regret.unit)}: {plain(regret.choice)}; {other} costs {exponent(regret.damage or 0.0)}.")
    if stuck := [plain(r.unit) for r in why.regrets if r.damage is None]:
        lines.append(f"  No other choice meets the budget for {', '.join(stuck)}.")
    return lines


def infeasible_lines(
    lowest: float,
    alone: Mapping[str, float],
    relaxed: Mapping[str, float],
    asked: Mapping[str, str],
    profile: Profile | None,
) -> list[str]:
    """What is reachable where budgets cannot be met: each by itself, and the cheapest change that makes them meet."""
    said = " and ".join(plain(text if name == "latency" else f"{text} of {name}") for name, text in asked.items())
    if len(asked) > 1:
        each, together = (
            ", ".join(f"{name} {share:.3f}" for name, share in shares.items()) for shares in (alone, relaxed)
        )
        return [
            f"Error: no legal plan reaches the budgets {said} together. Lowest reachable by itself, of the teacher's: "
            f"{each}. Cheapest relaxation of all: {together}."
        ]
    name = next(iter(asked))
    share = lowest if name == "latency" else alone[name]
    whole = "" if name == "latency" else f"'s {name}"
    time = f", {seconds(lowest * profile.whole.latency_s.median)}" if profile is not None and not whole else ""
    return [
        f"Error: no legal plan reaches the budget {said}; the lowest reachable is {share:.3f} of the teacher{whole}"
        f"{time}."
    ]


def _promise(plan: PruningPlan) -> str:
    at = f" at {plain(plan.budget)}" if plan.budget else ""
    text = f"{plain(plan.name).capitalize()}{at} makes {plural(len(plan.edits), 'edit')}"
    if plan.predicted is None:
        return f"{text}."
    said = plan.predicted
    said = plan.predicted
    return f"{text}: predicted {ratio(said.ratio)} {ratio_interval(said)}, {seconds(said.latency_s)} a call."


def _time_of(edit: AnyEdit, profile: Profile) -> str:
    """What an edit is about as a share of the UNet's time, and of a replacement what is left of it."""
    before = sum(part.share.median for part in profile.parts if _is_about(edit, part, profile.topology))
    if isinstance(edit, ReplaceUnit):
        for option in profile.options:
            if (option.unit, option.replacement) == (edit.unit, edit.with_):
                return f"{percent(before)} → {percent(option.share.median)}"
    return percent(before)


def _is_about(edit: AnyEdit, part: PartRecord, topology: Topology) -> bool:
    if isinstance(edit, RemoveLayer):
        return (part.block, part.layer) == (edit.block, edit.layer)
    if isinstance(edit, RemoveUnit | ReplaceUnit):
        return part.fqn == edit.unit
    if isinstance(edit, GraftBlock) or edit.block not in topology.down_blocks:
        return part.block == edit.block
    # The deepest pair takes along the downsampler that leads to it.
    lead = topology.samplers.get(topology.down_blocks[-2])
    return part.block in (edit.block, topology.mirror(edit.block)) or part.fqn == lead


def bench_table(bench: BenchResult, width: int) -> Table:
    """Students as ratios to their teacher, measured in pairs: below 1× is faster."""
    table = _table()
    longest = 16 if width < 100 else 40
    table.add_column("student / teacher", no_wrap=True, overflow="ellipsis", max_width=longest)
    columns = [column for column in STUDENT_COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    rows: list[BenchTeacher | BenchStudent] = [bench.teacher, *bench.students]
    for one in rows:
        table.add_row(Text(plain(one.name)), *(column.cell(one) for column in columns))
    return table


def _unet(one: BenchTeacher | BenchStudent) -> Estimate:
    return one.unet_latency_ratio if isinstance(one, BenchStudent) else TEACHER


def _image(one: BenchTeacher | BenchStudent) -> Estimate | None:
    if isinstance(one, BenchStudent):
        return one.image_latency_ratio
    return TEACHER if one.image_latency_s else None


def _predicted(one: BenchTeacher | BenchStudent) -> str:
    return "" if isinstance(one, BenchTeacher) or one.predicted_ratio is None else ratio(one.predicted_ratio)


def _ratio(value: Estimate | None) -> str:
    return ratio(value.median) if value else ""


def _bounds(value: Estimate | None) -> str:
    return ratio_interval(value) if value and value is not TEACHER else ""


TEACHER = Estimate(median=1, low=1, high=1)
STUDENT_COLUMNS: tuple[Column[BenchTeacher | BenchStudent], ...] = (
    Column("UNet", 0, lambda one: _ratio(_unet(one))),
    Column("95 %", 40, lambda one: _bounds(_unet(one)), quiet=True),
    Column("predicted", 50, _predicted),
    Column("image", 56, lambda one: _ratio(_image(one))),
    Column("95 %", 70, lambda one: _bounds(_image(one)), quiet=True),
    Column("GMAC", 76, lambda one: _scaled(one.macs, 1e9)),
    Column("M params", 80, lambda one: _scaled(one.params, 1e6)),
    Column("GB peak", 90, lambda one: _scaled(one.peak_memory_bytes, 1e9)),
    Column("s", 100, lambda one: number(one.unet_latency_s.median)),
)


def quality_table(bench: BenchResult, width: int) -> Table:
    """Quality metrics of every student beside its teacher's and the noise between two runs of the teacher."""
    table = _table()
    for title in ("student", "metric"):
        table.add_column(title, no_wrap=True, overflow="ellipsis", max_width=16 if width < 100 else 40)
    for title in ("value", "95 %", "teacher", "noise floor"):
        table.add_column(title, justify="right", no_wrap=True, style=QUIET if title == "95 %" else "")
    for student in bench.students:
        for name, metric in student.quality.items():
            table.add_row(Text(plain(student.name)), Text(plain(name)), *_quality_cells(metric))
    return table


def _quality_cells(metric: Metric) -> list[str]:
    bounds = interval(Estimate(median=metric.value, low=metric.low, high=metric.high))
    optional = ["" if value is None else number(value) for value in (metric.teacher, metric.noise_floor)]
    return [number(metric.value), bounds, *optional]


# ---------------------------------------------------------------------------------------------- differences


def diff_table(found: Difference, width: int) -> Table:
    """The whole and every part, before and after; bold where the interval excludes that nothing changed."""
    table = _table()
    table.add_column("B / A", no_wrap=True, overflow="ellipsis", max_width=24 if width < 100 else 40)
    columns = [column for column in DIFF_COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    for part in (found.whole, *found.parts):
        name = Text(plain(part.label if width < 100 else part.fqn), style=COLOURS.get(part.kind, "bold"))
        cells = [column.cell(part) for column in columns]
        table.add_row(name, *cells, style="bold" if part.p50.is_real else "")
    return table


def change_text(change: Change) -> str:
    """`+7.3 % [+5.1 %, +9.8 %]`; exact figures have no interval."""
    if change.ratio is None:
        return "" if change.a == change.b else f"from {number(change.a)} to {number(change.b)}"
    interval = (
        f" [{_gain(change.ratio.low)}, {_gain(change.ratio.high)}]" if change.ratio.low < change.ratio.high else ""
    )
    return f"{_gain(change.ratio.median)}{interval}"


def _gain(ratio_: float) -> str:
    return f"{100 * (ratio_ - 1):+.1f} %"


def _change(what: str) -> Callable[[PartChange], str]:
    def cell(part: PartChange) -> str:
        found: Change = getattr(part, what)
        return _gain(found.ratio.median) if found.ratio and found.ratio.median != 1 else ""

    return cell


DIFF_COLUMNS: tuple[Column[PartChange], ...] = (
    Column("A", 60, lambda part: seconds(part.p50.a)),
    Column("B", 60, lambda part: seconds(part.p50.b)),
    Column("p50", 0, lambda part: change_text(part.p50)),
    Column("p95", 80, _change("p95")),
    Column("share", 76, _change("share")),
    Column("MACs", 90, _change("macs")),
    Column("params", 90, _change("params")),
)


# ---------------------------------------------------------------------------------------------- comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The rank matrix, and each plan's price by every profile."""
    console.print(Text(comparison_answer(comparison), style="bold"))
    _section(console, "Do units rank alike? (Spearman)", spearman_table(comparison))
    if comparison.plans:
        _section(console, "What would each plan buy?", gain_table(comparison), Text(GAIN_NOTE, style=QUIET))


def comparison_answer(comparison: Comparison) -> str:
    """Which two of the profiles rank units least alike, in one sentence."""
    names = [plain(profile.name) for profile in comparison.profiles]
    pairs = [(comparison.spearman[i][j], i, j) for j in range(len(names)) for i in range(j)]
    least, i, j = min(pairs)
    if len(names) == 2:
        return f"{names[i]} and {names[j]} rank the units of {plain(comparison.family)} with Spearman {least:.3f}."
    return (
        f"Of {len(names)} profiles of {plain(comparison.family)}, {names[i]} and {names[j]} rank the units least "
        f"alike: Spearman {least:.3f}."
    )


GAIN_NOTE = "UNet latency, student / teacher, as each column's profile predicts it; * is above the plan's budget."


def spearman_table(comparison: Comparison) -> Table:
    """Rank correlation of the units, profile by profile; beside it each profile's own odd and even runs."""
    table = _matrix_table([profile.name for profile in comparison.profiles], "own halves")
    for profile, row in zip(comparison.profiles, comparison.spearman, strict=True):
        cells = [f"{value:.3f}" for value in (*row, profile.split_half)]
        table.add_row(Text(plain(profile.name)), *cells)
    return table


def gain_table(comparison: Comparison) -> Table:
    """Every plan's predicted ratio under every profile."""
    table = _matrix_table([profile.name for profile in comparison.profiles])
    for plan in comparison.plans:
        table.add_row(Text(plain(plan.name)), *(_gain_cell(plan, found) for found in plan.predicted))
    return table


def _matrix_table(names: Sequence[str], *more: str) -> Table:
    """A column for each profile, whose words may stand below each other."""
    table = _table()
    table.add_column("", no_wrap=False)
    for name in (*names, *more):
        table.add_column(plain(name), justify="right")
    return table


def _gain_cell(plan: ComparedPlan, found: Prediction | None) -> str:
    if found is None:
        return "not timed"
    return ratio(found.ratio) + ("*" if plan.budget_ratio is not None and found.ratio > plan.budget_ratio else "")


# ---------------------------------------------------------------------------------------------- validation


def print_validation(validation: Validation, console: Console) -> None:
    """The answer in a sentence, every plan, and what the errors taught."""
    console.print(Text(validation_answer(validation), style="bold"))
    _section(console, "Predicted and measured", validation_table(validation, console.width))
    _section(console, "What it means for a plan", *(Text(line) for line in validation_lines(validation)))


def validation_answer(validation: Validation) -> str:
    """How far measured students were from their predictions, in one sentence."""
    return (
        f"{plural(len(validation.plans), 'random plan')} of {plain(validation.family)} ({plain(validation.backend)}, "
        f"{plain(validation.dtype)}) measured {percent(validation.mape)} of the teacher away from the prediction on "
        f"average, 95 % of them within {percent(validation.p95)}; bias {100 * validation.bias:+.1f} %, rank "
        f"correlation {validation.rank_correlation:.3f}."
    )


def validation_table(validation: Validation, width: int) -> Table:
    """Every plan as student / teacher, predicted and measured; a star where its 95 % interval did not hold."""
    table = _table()
    columns = [column for column in VALIDATION_COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style=QUIET if column.quiet else "")
    for one in validation.plans:
        table.add_row(*(column.cell(one) for column in columns))
    return table


VALIDATION_COLUMNS: tuple[Column[ValidatedPlan], ...] = (
    Column("edits", 0, lambda one: str(len(one.edits))),
    Column("predicted", 0, lambda one: ratio(one.predicted_ratio)),
    Column("95 %", 60, lambda one: f"[{one.low:.2f}, {one.high:.2f}]", quiet=True),
    Column("measured", 0, lambda one: ratio(one.measured_ratio)),
    Column("95 %", 60, lambda one: f"[{one.measured_low:.2f}, {one.measured_high:.2f}]", quiet=True),
    Column("off by", 0, lambda one: f"{100 * one.error:+.1f} %"),
    Column("", 0, lambda one: "" if one.low <= one.measured_ratio <= one.high else "*"),
    Column("pairs", 70, lambda one: str(len(one.student_s)), quiet=True),
)


def validation_lines(validation: Validation) -> list[str]:
    """How often intervals held, what the correction does, and the σ that a plan will use."""
    learnt = validation.correction
    verdict = "used by plans" if learnt.helps else "not used"
    return [
        f"The prediction's 95 % intervals held for {percent(validation.coverage)} of the plans (* where not); "
        f"intervals from the other plans' errors for {percent(validation.calibrated_coverage)}.",
        f"The tightest budget accepted at confidence 0.95 held for {percent(validation.within_budget)} of the plans.",
        f"Correcting each kind of edit takes the error of a plan left out from {100 * learnt.rms_without:.2f} % to "
        f"{100 * learnt.rms_with:.2f} %: {verdict}.",
        f"asdm-prof plan --validation plans with σ = {100 * validation.sigma:.2f} % of the teacher.",
    ]


# ---------------------------------------------------------------------------------------------- damage


def print_damage(damage: Damage, console: Console) -> None:
    """The answer in a sentence, every edit from least to most damage, whether they add up, and what it took."""
    console.print(Text(damage_answer(damage), style="bold"))
    _section(console, "What does each edit do to the output?", damage_table(damage, console.width))
    _section(console, "Does it add up?", *(Text(line) for line in damage_lines(damage)))


def damage_answer(damage: Damage) -> str:
    """What was measured on what, in one sentence."""
    return (
        f"{plural(len(damage.edits), 'edit')} of {plain(damage.family)}, measured over {damage.prompts} prompts × "
        f"{len(damage.timesteps)} timesteps of {plain(damage.data)}: mean square error of the output "
        f"({plain(damage.prediction_type)}) per element, which is {number(damage.teacher_power)} strong."
    )


def damage_table(damage: Damage, width: int) -> Table:
    """Edits from least to most damage; their names give way in a narrow terminal."""
    table = _table()
    scored = any(one.clip_score_change for one in damage.edits)
    table.add_column("edit", no_wrap=True, overflow="ellipsis", max_width=max(16, width - (58 if scored else 34)))
    for title in ("damage", "95 %", *(("CLIP score", "95 %") if scored else ())):
        table.add_column(title, justify="right", no_wrap=True, style=QUIET if title == "95 %" else "")
    for one in sorted(damage.edits, key=lambda one: one.damage.value):
        cells = [exponent(one.damage.value), _between(one.damage)]
        if one.clip_score_change:
            cells += [f"{one.clip_score_change.value:+.2f}", _between(one.clip_score_change, "+.2f")]
        table.add_row(Text(plain(" and ".join(map(str, one.edits)), 90)), *cells)
    return table


def _between(found: Interval, form: str = ".2e") -> str:
    return f"[{found.low:{form}}, {found.high:{form}}]"


def exponent(value: float) -> str:
    """A damage, which may be of any size: "3.42e-04"."""
    return f"{value:.2e}"


def damage_lines(damage: Damage) -> list[str]:
    """Additivity, cheap scores, and how near the run came to the least work."""
    lines, work = [], damage.work
    if damage.additivity is not None:
        found = damage.additivity
        for name, fit in (("The sum", found.summed), ("With pairs of neighbours", found.with_pairs)):
            lines.append(
                f"{name} predicts {len(found.plans)} random plans with Spearman {_fit(fit.spearman)}, "
                f"R² {_fit(fit.r2)}, of a straight line {_fit(fit.r2_line)}."
            )
        lines.append(f"Plans use {'the sum' if found.used == 'sum' else 'pairs of neighbours'}.")
    for one in damage.agreement:
        lines.append(f"{plain(one.score).capitalize()}: Spearman {_fit(one.spearman)} over {one.edits} edits.")
    lines.append(
        f"It took {seconds(work.seconds)}: {number(work.done_forwards)} teacher's forwards of "
        f"{number(work.plain_forwards)} that a plain loop runs ({number(work.plain_forwards / work.done_forwards)}× "
        f"fewer); the least possible is {number(work.least_forwards)}, {seconds(work.least_s)}, and "
        f"{percent(work.reached)} of the time was that."
    )
    return lines


def _fit(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


# ---------------------------------------------------------------------------------------------- frontier

SHOWN_POINTS = 20


def print_frontier(frontier: Frontier, console: Console) -> None:
    """Some plans along the frontier, and the best and unlike ones within budgets in full."""
    kind = "the whole exact frontier" if frontier.complete else "plans along the frontier under other budgets"
    console.print(
        Text(
            f"{plain(frontier.family)}, {plain(frontier.by)} against {plain(frontier.damage_from)}: "
            f"{plural(len(frontier.points), 'plan')}, {kind}.",
            style="bold",
        )
    )
    step = max(1, -(-len(frontier.points) // SHOWN_POINTS))
    _section(console, "Along the frontier", frontier_table(frontier.points[::step]))
    for title, points in (("The best", frontier.best), ("Unlike each other", frontier.diverse)):
        if points:
            _section(console, title, frontier_table(points), *(Text(line) for line in _plans_in_words(points)))


def frontier_table(points: Sequence[FrontierPoint]) -> Table:
    table = _table()
    for title in ("latency", "×", "MACs", "params", "damage", "edits"):
        table.add_column(title, justify="right", no_wrap=True)
    for point in points:
        shares = (ratio(share) for share in (point.ratio, point.macs, point.params))
        table.add_row(seconds(point.latency_s), *shares, exponent(point.damage), str(len(point.edits)))
    return table


def _plans_in_words(points: Sequence[FrontierPoint]) -> list[str]:
    return [f"{n}. " + (", ".join(plain(str(e)) for e in p.edits) or "the teacher") for n, p in enumerate(points, 1)]


# ---------------------------------------------------------------------------------------------- search


def print_search(found: Search, console: Console) -> None:
    """Who is on the front, everybody measured, and what it took."""
    console.print(Text(search_answer(found), style="bold"))
    _section(console, "Measured students, those that were trained longest first", search_table(found))
    console.print()
    for line in search_lines(found):
        console.print(Text(line))


def search_answer(found: Search) -> str:
    """The best student within the budget in one sentence."""
    best = next((one for one in found.students if one.within_budget), None)
    if best is None:
        return f"{plain(found.family)}: no student that was measured is within the budget {plain(found.budget)}."
    mark = best.quality[found.metric]
    return (
        f"{plain(found.family)} within {plain(found.budget)}: candidate {best.candidate} is best, at "
        f"{ratio(best.ratio.median)} {ratio_interval(best.ratio)} of the teacher's latency, {found.metric} "
        f"{number(mark.value)} [{number(mark.low)}, {number(mark.high)}] after {best.steps} steps."
    )


def search_table(found: Search) -> Table:
    table = _table()
    for title in ("", "no.", "rung", "steps", "predicted", "UNet ×", "", "quality", ""):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found.students:
        mark = one.quality[found.metric]
        table.add_row(
            " ".join(word for word, holds in (("front", one.in_front), ("over", not one.within_budget)) if holds),
            str(one.candidate),
            f"{one.rung + 1} of {len(found.rungs)}",
            str(one.steps),
            ratio(one.predicted.ratio),
            ratio(one.ratio.median),
            ratio_interval(one.ratio),
            number(mark.value),
            f"[{number(mark.low)}, {number(mark.high)}]",
        )
    return table


def search_lines(found: Search) -> list[str]:
    """What it took, what failed, and where the front's students are."""
    rungs = ", ".join(f"{rung.candidates} to step {rung.steps}" for rung in found.rungs)
    trials = ", ".join(f"{n} {fate}" for fate, n in found.trials.items() if n)
    floor = next((one.quality[found.metric].noise_floor for one in found.students), None)
    lines = [f"Trained {rungs}: {found.training_steps} steps in all. Trials: {trials}."]
    if floor is not None:
        better = "more" if found.maximise else "less"
        lines.append(f"Quality is {found.metric}, of which {better} is better; its noise floor is {number(floor)}.")
    lines += [f"Candidate {name} has no measurement: {plain(why)}" for name, why in found.failed.items()]
    lines += [f"Candidate {one.candidate}: {plain(one.folder)} (machine {plain(one.host)})" for one in found.front()]
    return lines


# ---------------------------------------------------------------------------------------------- budgets


def budget_rows(found: Budgets) -> list[dict[str, str]]:
    """Our plan and the best baseline at each budget, as rows of a table."""
    return [
        {
            "budget": f"{row.budget:.2f}",
            "ours ×": f"{row.ours.ratio:.3f}",
            "damage": exponent(row.ours.damage.value),
            "best baseline": plain(row.baseline.name, 16) if row.baseline else "none",
            "its damage": exponent(row.baseline.damage.value) if row.baseline else "",
            "ahead, 95 %": _between(row.ahead, ".0e") if row.ahead else "",
            "won": "yes" if row.won else "no",
        }
        for row in found.rows
    ]


# ---------------------------------------------------------------------------------------------- trust


def trust_table(profile: Profile) -> Table:
    """One line per check: passed or not, what was checked, the figure, and what to do where it failed."""
    table = _table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column()
    for line in profile.trust:
        verdict = Text("passed") if line.passed else Text("FAILED", style="bold red")
        remedy = "" if line.passed or not line.remedy else f": {line.remedy}"
        table.add_row(verdict, Text(plain(line.check)), Text(plain(line.value + remedy)))
    return table


def _trust_title(profile: Profile) -> str:
    passed = sum(line.passed for line in profile.trust)
    return f"Can I believe it? {passed} of {plural(len(profile.trust), 'check')} passed."


def _table(show_header: bool = True) -> Table:
    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=show_header, header_style=QUIET)
