"""Console, CSV and figures as functions of one saved report."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from asdm.plan.edits import Prediction, RemoveBlock, RemoveLayer
from asdm.records.bench import Metric
from asdm.records.measurement import Estimate
from asdm_prof.renderers import Report, _format as shown, console, csv, figures
from tests.asdm_prof import synthetic

HOSTILE = "[red]x\x1b[31m$\\frac"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    figures.render(synthetic.full_report(), path)
    return path


def printed(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    console.print_report(report, Console(width=width, file=stream, highlight=False))
    return stream.getvalue()


def hostile_report() -> Report:
    report = synthetic.report()
    first, *others = report.profile.units
    units = (first.model_copy(update={"label": HOSTILE}), *others)
    student = report.benches[0].students[0].model_copy(update={"name": HOSTILE})
    return replace(
        report,
        profile=report.profile.model_copy(update={"units": units, "title": HOSTILE}),
        plan=report.plan.model_copy(update={"name": HOSTILE}),
        benches=(report.benches[0].model_copy(update={"students": (student,)}),),
    )


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.41, "4.41 s"), (0.412, "412 ms"), (0.9996, "1.00 s"), (0.00025, "250 µs"), (0, "0 ms"), (-0.002, "-2.00 ms")],
)
def test_seconds_have_three_figures_and_the_unit_that_fits(value, text):
    assert shown.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(19.4e9, "19.4 G"), (2_546_240, "2.55 M"), (999_999, "1.00 M"), (320, "320"), (0, "0")]
)
def test_counts_have_three_figures_and_a_prefix(value, text):
    assert shown.count(value) == text


def test_interval_has_the_decimals_and_the_unit_of_its_median():
    assert shown.seconds_interval(Estimate(median=4.41, low=4.368, high=4.459)) == "[4.37, 4.46]"
    assert shown.seconds_interval(Estimate(median=0.412, low=0.4011, high=1.02)) == "[401, 1020]"


def test_control_characters_and_long_names_are_made_harmless():
    assert shown.plain("a\x1b[31m\nb") == "a?[31m?b"
    assert shown.plain("abcdef", 4) == "abc…"


# ---------------------------------------------------------------------------------------------- csv


def test_csv_columns_add_up_to_the_whole_unet(tmp_path):
    profile = synthetic.profile()
    (path,) = csv.render(synthetic.report(), tmp_path)
    table = pd.read_csv(path)
    assert len(table) == len(profile.units) + len(profile.glue) == 38 + 10
    assert table.params.sum() == profile.whole.params
    assert table.macs.sum() == profile.whole.macs
    assert (table.macs == table.conv_macs + table.linear_macs + table.attention_macs).all()
    assert table.share.sum() == pytest.approx(1, abs=0.01)


def test_csv_is_in_data_flow_order_and_ranks_units_only(tmp_path):
    (path,) = csv.render(synthetic.report(), tmp_path)
    table = pd.read_csv(path)
    assert [table.fqn.iloc[0], table.fqn.iloc[2], table.fqn.iloc[-1]] == ["conv_in", "down_blocks.0.resnets.0", "other"]
    assert set(table[table["rank"].isna()].kind) == {"glue"}
    assert sorted(table["rank"].dropna()) == list(range(1, 39))
    assert set(pd.read_csv(path, dtype=str)["rank"].dropna()) == {str(n) for n in range(1, 39)}  # no "10.0"


# ---------------------------------------------------------------------------------------------- console


@pytest.mark.parametrize("width", [40, 50, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(width):
    report = synthetic.report()
    quality = {"psnr": Metric(value=31.4, low=30.9, high=31.8, teacher=40.0, noise_floor=39.5)}
    bench = report.benches[0]
    students = tuple(student.model_copy(update={"quality": quality}) for student in bench.students)
    report = replace(report, benches=(bench.model_copy(update={"students": students}),))
    assert max(map(len, printed(report, width).splitlines())) <= width


def test_at_80_columns_every_part_is_one_line_with_its_figures():
    profile = synthetic.profile()
    lines = printed(synthetic.report()).splitlines()
    for part in profile.parts:
        rows = [line.split() for line in lines if line.split()[:1] == [part.label]]
        assert len(rows) == 1, part.label
        share, _, ms, gmac, params = rows[0][-5:]
        assert (share, ms) == (f"{100 * part.share.median:.1f}", shown.number(1e3 * part.latency_s.median))
        assert float(gmac) == pytest.approx(part.macs / 1e9, rel=0.01, abs=0.005)
        assert float(params) == pytest.approx(part.params / 1e6, rel=0.01, abs=0.005)
    assert "█" in "".join(lines)


def test_wider_terminals_show_more_columns():
    counts = [len(console.tree_table(synthetic.profile(), width).columns) for width in (40, 60, 80, 100, 160)]
    assert counts == sorted(set(counts))


def test_the_report_answers_in_order():
    text = printed(synthetic.report())
    titles = [
        "takes 4.11 s",
        "Where does",
        "What is redundant",
        "What would it buy",
        "What did it buy",
        "Can I believe",
    ]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)


def test_the_answer_is_computed_from_the_profile():
    profile = synthetic.profile()
    shallow = [part for part in profile.parts if part.block in ("down_blocks.0", "up_blocks.3")]
    runs = [
        [sum(part.latency_s.samples[i] for part in parts) for i in range(synthetic.RUNS)]
        for parts in (shallow, profile.parts)
    ]
    time = np.median([inside / whole for inside, whole in zip(*runs, strict=True)])
    params = sum(part.params for part in shallow) / profile.whole.params
    text = " ".join(printed(Report(profile)).split())
    assert f"{100 * time:.0f} % of it is in down_blocks.0 and up_blocks.3" in text
    assert f"hold {100 * params:.1f} % of the parameters" in text


def test_without_plan_and_bench_their_sections_are_left_out():
    text = printed(Report(profile=synthetic.profile()))
    assert "buy" not in text
    assert "Can I believe it? 2 of 3 checks passed." in text


def test_a_failed_check_says_what_to_do():
    assert "FAILED noise" in printed(synthetic.report())
    assert "close other programs and run again." in printed(synthetic.report())


def test_plan_lines_name_every_edit_with_its_share_and_the_promise():
    profile, plan = synthetic.profile(), synthetic.plan()
    layer, pair = RemoveLayer(block="down_blocks.0", layer=1), RemoveBlock(block="down_blocks.3")
    predicted = Prediction(latency_s=3.2, ratio=0.78, low=0.77, high=0.79)
    plan = plan.model_copy(update={"edits": (*plan.edits[:1], layer, pair), "predicted": predicted})
    share = {part.fqn: part.share.median for part in profile.parts}
    in_layer = share["down_blocks.0.resnets.1"] + share["down_blocks.0.attentions.1"]
    in_pair = sum(share[fqn] for fqn in share if fqn.startswith(("down_blocks.3.", "up_blocks.0.")))
    in_pair += share["down_blocks.2.downsamplers.0"]
    lines = console.plan_lines(plan, profile)
    assert lines[0] == "Plan at 0.9 makes 3 edits: predicted 0.78× [0.77, 0.79], 3.20 s a call."
    assert f"{shown.percent(share['down_blocks.0.attentions.0'])} → " in lines[1]
    assert lines[2] == f"  remove layer 1 of down_blocks.0: {shown.percent(in_layer)} of time"
    assert lines[3] == f"  remove down_blocks.3: {shown.percent(in_pair)} of time"


def test_names_from_files_are_printed_as_they_are():
    text = printed(hostile_report())
    assert text.count("[red]x?[31m$") >= 5  # answer, root, its block, rank, plan, student
    assert "\x1b" not in text


def test_an_ascii_pipe_gets_hashes_for_bars_and_no_crash(monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert console.render(synthetic.report(), Path("unused")) == []
    pipe.flush()
    text = pipe.buffer.getvalue().decode("ascii")
    assert "up3                  ############" in text


def test_no_color_is_honoured(monkeypatch):
    def first_escape(environment: dict[str, str]) -> bool:
        stream = io.StringIO()
        terminal = Console(file=stream, force_terminal=True, width=80, color_system="truecolor", _environ=environment)
        terminal.print(console.rank_table(synthetic.profile(), 80))
        return "38;2;213;94;0" in stream.getvalue()

    assert first_escape({})
    assert not first_escape({"NO_COLOR": "1"})


# ---------------------------------------------------------------------------------------------- figures


def test_every_figure_comes_as_png_svg_and_pdf(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"{draw.__name__}.{suffix}" for draw in figures.FIGURES for suffix in ("png", "svg", "pdf")}
    assert (folder / "figures" / "redundancy.png").read_bytes().startswith(b"\x89PNG")


def test_figures_repeat_byte_for_byte_and_carry_no_date(folder, tmp_path):
    for path in figures.render(synthetic.full_report(), tmp_path):
        content = path.read_bytes()
        assert content == (folder / "figures" / path.name).read_bytes(), path.name
        assert b"CreationDate" not in content
        assert b"dc:date" not in content


def test_text_in_an_svg_stays_text(folder):
    text = (folder / "figures" / "redundancy.svg").read_text()
    assert "redundancy = share of time ÷ share of parameters</text>" in text
    assert ">dn0.t0</text>" in text


def test_no_axis_shows_mathematics_as_it_is_written(folder):
    assert [path.name for path in (folder / "figures").glob("*.svg") if "mathdefault" in path.read_text()] == []


def test_a_figure_is_skipped_where_its_data_is_missing(tmp_path):
    paths = figures.render(Report(profile=synthetic.profile()), tmp_path)
    assert {path.stem for path in paths} == {"fig2_latency_and_parameters", "units_share", "redundancy"}
    unpredicted = replace(synthetic.report(), benches=(synthetic.bench(predicted=None),))
    assert figures.predicted_vs_measured(unpredicted) is None
    assert figures.students(unpredicted) is not None


def test_fig1_multiplies_macs_by_calls_and_parameters_not():
    left, right = figures.fig1_costs(synthetic.report()).axes
    costs = synthetic.family_costs()
    assert sum(bar.get_width() for bar in left.patches) * 1e6 == pytest.approx(sum(c.params for c in costs))
    assert sum(bar.get_width() for bar in right.patches) * 1e12 == pytest.approx(sum(c.macs * c.calls for c in costs))


def test_fig2_bars_add_up_to_all_units_and_none_is_cut():
    profile = synthetic.profile()
    top, bottom = figures.fig2_latency_and_parameters(synthetic.report()).axes
    time = sum(bar.get_height() for bar in top.patches) / 1e3
    assert time == pytest.approx(sum(unit.latency_s.median for unit in profile.units), rel=0.01)
    params = sum(bar.get_height() for bar in bottom.patches) * 1e6
    assert params == pytest.approx(sum(unit.params for unit in profile.units))
    for axes in (top, bottom):
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= max(bar.get_height() for bar in axes.patches)


def test_figures_of_hostile_names_are_drawn_and_leave_global_state_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for path in figures.render(hostile_report(), tmp_path):
        assert b"\x1b[31m" not in path.read_bytes()
    assert dict(matplotlib.rcParams) == before
