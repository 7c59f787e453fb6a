"""The HTML report: its figures are the records', nothing in a file can break out of its place, nothing is fetched."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asdm.plan import presets
from asdm.plan.edits import Prediction, Regret, RemoveLayer, ReplaceUnit, ShadowPrice, Why
from asdm.records.bench import BenchSchedule, Metric
from asdm.records.measurement import Estimate
from asdm_prof.planner import plan as planner
from asdm_prof.renderers import Report, html
from asdm_prof.renderers.html import tables
from asdm_prof.renderers.html.sections import damage, options, paper, provenance, roofline, validation
from tests.asdm_prof import synthetic

HOSTILE = "<script>alert(1)</script>"


@cache
def report() -> Report:
    return dataclasses.replace(synthetic.report(), damage=None, frontier=None)


@cache
def page() -> str:
    return html.page(report())


def text_of(source: str) -> str:
    """What a reader sees: no tags, no scripts, one space between words."""
    seen: list[str] = []

    class Reader(HTMLParser):
        inside: str | None = None

        def handle_starttag(self, tag, attrs):
            self.inside = tag

        def handle_data(self, data):
            if self.inside not in ("script", "style"):
                seen.append(data)

    Reader(convert_charrefs=True).feed(source)
    return re.sub(r"\s+", " ", "".join(seen))


def picture(source: str, name: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(rf'<svg class="{name}".*?</svg>', source, re.DOTALL)[0])


def table(source: str, name: str) -> str:
    return re.search(rf'<table id="table-{name}">.*?</table>', source, re.DOTALL)[0]


def with_plan(edits, **update) -> Report:
    return dataclasses.replace(report(), plan=report().plan.model_copy(update={"edits": tuple(edits), **update}))


def test_render_writes_one_whole_file(tmp_path: Path) -> None:
    assert html.render(report(), tmp_path) == [tmp_path / "report.html"]
    assert html.render(report(), tmp_path), "a second report takes the place of the first"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page()


# ---------------------------------------------------------------------------------------------- figures


def test_the_sentence_says_what_the_records_say() -> None:
    latency = report().profile.whole.latency_s
    measured = report().benches[0].students[0].unet_latency_ratio
    told = text_of(page())
    assert f"takes {latency.median:.2f} s [{latency.low:.2f}, {latency.high:.2f}] a call" in told
    assert "38 % of it is in down_blocks.0 and up_blocks.3, which hold 3.4 % of the parameters" in told
    assert "The plan at 0.90× replaces 3 units with gri_attention: predicted 0.78×" in told
    assert f"measured {measured.median:.2f}× [{measured.low:.2f}, {measured.high:.2f}]." in told


def test_another_profile_gives_another_sentence() -> None:
    profile = report().profile
    slower = profile.whole.model_copy(update={"latency_s": profile.whole.latency_s.model_copy(update={"median": 9.87})})
    changed = dataclasses.replace(report(), profile=profile.model_copy(update={"whole": slower}))
    assert "takes 9.87 s" in text_of(html.page(changed))


def test_only_the_plans_own_student_counts_as_measured() -> None:
    other = with_plan(report().plan.edits[:1])
    assert "predicted" not in text_of(html.page(other)).partition("Where does")[0].partition("The plan at")[2][:60]
    assert "The plan at 0.90× replaces 1 unit with gri_attention: not measured yet." in text_of(html.page(other))


def test_a_prediction_of_the_plan_itself_is_told_with_its_interval() -> None:
    told = Prediction(latency_s=3.5, ratio=0.85, low=0.83, high=0.87)
    assert re.search(
        r"Plan 0\.85× \[0\.83, 0\.87\]", text_of(html.page(with_plan(report().plan.edits, predicted=told)))
    )


def test_trust_card_counts_and_remedy_stands_by_the_failed_line() -> None:
    told = text_of(page())
    assert "passed 2 of 3" in told
    assert told.count("✓ passed") == 2
    assert "✗ failed noise spread 7.1 % What to do: close other programs and run again." in told


# ---------------------------------------------------------------------------------------------- pictures and tables


def test_icicle_widths_add_up_to_the_whole_and_are_the_units_times() -> None:
    icicle = picture(page(), "icicle")
    cells = [cell for cell in icicle.iter("g") if cell.get("data-level") == "part"]
    widths = {cell.find("title").text.partition(":")[0]: float(cell.find("rect").get("width")) for cell in cells}
    profile = report().profile
    whole = float(icicle.get("viewBox").split()[2])
    assert set(widths) == {part.fqn for part in profile.parts}
    assert sum(widths.values()) == pytest.approx(whole, abs=0.5)
    times = sum(part.latency_s.median for part in profile.parts)
    for part in profile.parts:
        assert widths[part.fqn] == pytest.approx(whole * part.latency_s.median / times, abs=0.01)


def test_a_squares_area_is_its_units_time() -> None:
    cells = picture(page(), "u-picture").iter("g")
    sides = {cell.find("title").text.partition(":")[0]: float(cell.find("rect").get("width")) for cell in cells}
    first, last = report().profile.part("up_blocks.3.attentions.0"), report().profile.part("mid_block.resnets.0")
    area_ratio = (sides[first.fqn] / sides[last.fqn]) ** 2
    assert area_ratio == pytest.approx(first.latency_s.median / last.latency_s.median, rel=0.01)
    assert len(sides) == len(report().profile.parts)


def test_every_skip_of_the_u_is_a_level_line() -> None:
    skips = [line for line in picture(page(), "u-picture").iter("line") if line.get("class") == "skip"]
    assert len(skips) == 12  # SD1.5: conv_in, 4 × 2 layers, 3 downsamplers
    assert all(line.get("y1") == line.get("y2") for line in skips)


def test_unit_table_has_one_row_per_unit() -> None:
    units = report().profile.units
    body = table(page(), "units").partition("<tbody>")[2].partition("</tbody>")[0]
    assert body.count("<tr>") == len(units)
    assert all(f">{unit.fqn}</th>" in body for unit in units)


def test_plan_picture_crosses_out_what_goes_and_names_what_comes() -> None:
    edits = [RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=1)]
    new = ReplaceUnit(unit="down_blocks.0.attentions.0", with_="gri_attention")
    source = html.page(with_plan([*edits, new]))
    drawn = picture(source, "plan-picture")
    assert sum(path.get("class") == "cross" for path in drawn.iter("path")) == 4
    assert [t.text for t in drawn.iter("text") if "note" in t.get("class", "")] == ["t0 → gri attention"]
    assert "removes 2 layers and replaces 1 unit with gri_attention" in text_of(source)
    assert "Of 38 units, 33 stay, 4 are removed" in text_of(source)


def test_scatter_shows_the_students_that_have_a_prediction() -> None:
    assert sum(c.get("class", "").startswith("point") for c in picture(page(), "prediction").iter("circle")) == 1
    assert "the band): 1 of 1 student. Largest miss: plan, 0.02× faster than predicted." in text_of(page())


def test_quality_columns_are_there_only_where_measured() -> None:
    bench = report().benches[0]
    metric = Metric(value=12.5, low=12.1, high=12.9, teacher=11.2, noise_floor=0.31)
    student = bench.students[0].model_copy(update={"quality": {"fd": metric}})
    measured = dataclasses.replace(report(), benches=(bench.model_copy(update={"students": (student,)}),))
    assert "fd" not in table(page(), "bench-1")
    assert "12.5 [12.1, 12.9]" in text_of(table(html.page(measured), "bench-1"))


def test_every_picture_has_a_title_and_every_figure_a_caption() -> None:
    assert page().count("<svg") == len(re.findall(r"<svg[^>]*>\s*<title", page()))
    figures = re.findall(r"<figure>.*?</figure>", page(), re.DOTALL)
    assert len(figures) == 8
    assert all(re.search(r"<figcaption>\s*\S", figure) for figure in figures)


# ---------------------------------------------------------------------------------------------- what is missing


def test_a_report_without_plan_and_benches_says_what_to_run() -> None:
    bare = dataclasses.replace(report(), plan=None, benches=(), family_costs=(), sources={})
    told = text_of(html.page(bare))
    for command in (
        "asdm-prof plan --budget 0.8",
        "asdm bench --teacher sd15 --student plan.json",
        "asdm-prof flops sd15",
    ):
        assert command in told
    assert "No plan has been made from it yet." in told


def test_a_plan_for_another_unet_is_told_not_drawn() -> None:
    source = html.page(with_plan([RemoveLayer(block="down_blocks.0", layer=1)]))
    assert "The plan does not fit this UNet: removing layer 1 of down_blocks.0" in text_of(source)
    assert 'class="plan-picture"' not in source


@pytest.mark.parametrize("family", ["sdxl", "sd21"])
def test_other_families_render(family: str) -> None:
    profile = synthetic.profile(family)
    told = text_of(html.page(Report(profile)))
    assert f"{profile.title}’s UNet takes" in told


# ---------------------------------------------------------------------------------------------- safety


def test_hostile_names_show_as_text() -> None:
    profile, bench = report().profile, report().benches[0]
    unit = profile.units[1].model_copy(update={"fqn": HOSTILE, "label": HOSTILE})
    student = bench.students[0].model_copy(update={"name": HOSTILE})
    hostile = dataclasses.replace(
        report(),
        profile=profile.model_copy(
            update={
                "title": HOSTILE,
                "command": HOSTILE,
                "units": (profile.units[0], unit, *profile.units[2:]),
                "environment": {HOSTILE: HOSTILE},
            }
        ),
        benches=(bench.model_copy(update={"students": (student,), "command": HOSTILE}),),
        sources={HOSTILE: HOSTILE},
        family_costs=tuple(dataclasses.replace(cost, title=HOSTILE) for cost in report().family_costs),
    )
    source = html.page(hostile)
    assert source.count("<script") == page().count("<script") == 2
    assert HOSTILE not in source
    assert text_of(source).count("alert(1)") > 10
    island = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)[1]
    assert "<" not in island
    assert HOSTILE in [node["name"] for node in json.loads(island)["nodes"]]


def test_commands_to_copy_hold_a_hostile_name_as_one_word() -> None:
    family = "x; touch PWNED"
    profile = synthetic.profile().model_copy(
        update={"family": family, "peaks": None, "command": "asdm-prof profile sd15; touch PWNED"}
    )
    plan = synthetic.plan().model_copy(update={"budget": "0.9; touch PWNED"})
    bare = Report(profile, plan=plan)
    sections = (
        roofline.section(bare), damage.section(bare), validation.students(bare), paper.families(bare),
        provenance.commands(bare),
    )  # fmt: skip
    blocks = [block for section in sections for block in section.blocks]
    shown = [line for block in blocks for line in getattr(block, "lines", ())]
    shown += [span for block in blocks for span in getattr(block, "spans", ()) if getattr(span, "style", "") == "code"]
    assert len(shown) == 6
    for command in shown:
        assert command.startswith(("asdm ", "asdm-prof "))
        assert "PWNED" in command
        assert ";" not in list(shlex.shlex(command, posix=True, punctuation_chars=True)), command
    assert "asdm-prof flops 'x; touch PWNED'" in shown
    assert provenance._to_copy("asdm-prof profile 'open") == "'asdm-prof profile '\"'\"'open'"
    assert provenance._to_copy("asdm_prof.profile('sd15')") == "asdm_prof.profile('sd15')"


def test_nothing_is_fetched() -> None:
    assert not re.search(r"https?://|\bsrc\s*=|url\((?!#)|@import|<link(?! rel=\"icon\" href=\"data:,\")", page())


def test_only_the_pages_own_script_may_run() -> None:
    script = re.search(r"<script>(.*?)</script>", page(), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page()


def test_the_page_is_small_and_the_same_every_time() -> None:
    assert len(page().encode()) < 500_000
    assert html.page(report()) == page()


# ---------------------------------------------------------------------------------------------- all that it can hold


@cache
def full() -> str:
    return html.page(synthetic.full_report())


def test_without_further_files_the_page_says_how_to_make_them() -> None:
    told = text_of(page())
    for command in ("asdm-prof profile sd15 measures them now", "asdm-prof sensitivity sd15", "asdm-prof frontier"):
        assert command in told


def test_every_part_stands_under_the_roof_at_its_speed() -> None:
    profile = synthetic.full_report().profile
    drawn = picture(full(), "roofline")
    dots = {cell.find("title").text.partition(":")[0] for cell in drawn.iter("g") if "dot" in cell.get("class", "")}
    assert dots == {part.fqn for part in profile.parts if part.macs}
    first = max(profile.units, key=lambda unit: unit.latency_s.median)
    assert f"{first.fqn}, the costliest unit, attains {100 * first.roofline.attained:.0f} % of its roof" in text_of(
        full()
    )


def test_the_card_of_a_part_holds_every_run_its_bound_and_its_damage() -> None:
    report_ = synthetic.full_report()
    island = re.search(r'<script type="application/json" id="data">(.*?)</script>', full(), re.DOTALL)[1]
    nodes = {node["name"]: node for node in json.loads(island)["nodes"]}
    unit = report_.profile.part("up_blocks.3.attentions.0")
    samples = nodes[unit.fqn]["samples"]
    assert samples[:3] == pytest.approx(
        [1e3 * unit.latency_s.median, 1e3 * unit.latency_s.low, 1e3 * unit.latency_s.high], rel=1e-3
    )
    assert samples[3:] == pytest.approx([1e3 * s for s in unit.latency_s.samples], rel=1e-3)
    rows = dict(nodes[unit.fqn]["rows"])
    assert rows["bound by"] in ("arithmetic", "memory", "calls")
    assert "damage, when removed" in rows


def test_the_frontier_is_drawn_with_its_plans_as_small_pictures() -> None:
    drawn = picture(full(), "frontier")
    assert sum(circle.get("class") == "point" for circle in drawn.iter("circle")) == 10
    small = re.findall(r'<svg class="small-u".*?</svg>', full(), re.DOTALL)
    assert len(small) == 6
    hollow = [sum(d.count("M") for d in re.findall(r'd="([^"]*)" class="was gone"', one)) for one in small]
    assert hollow == sorted(hollow, reverse=True), "from the fastest, which cuts most, to the teacher"
    assert hollow[-1] == 0
    assert "10 plans that no other beats in both" in text_of(full())


def test_hand_made_plans_stand_beside_the_frontier_by_the_same_damage() -> None:
    source = synthetic.full_report()
    prior = dataclasses.replace(source, frontier=source.frontier.model_copy(update={"damage_sha256": None}))
    drawn = picture(html.page(prior), "frontier")
    names = [text.text for text in drawn.iter("text")]
    assert {"a_sdm", "bk_sdm_base", "bk_sdm_small", "bk_sdm_tiny"} <= {*names}
    made = next(mark for mark in drawn.iter("g") if mark.find("title").text.startswith("bk_sdm_base: "))
    ratio = planner.price(source.profile, presets.bk_sdm_base(source.profile.topology)).ratio
    assert made.find("title").text.startswith(f"bk_sdm_base: {ratio:.2f}×, damage ")
    other = dataclasses.replace(source, frontier=source.frontier.model_copy(update={"damage_sha256": "0" * 64}))
    assert not list(picture(html.page(other), "frontier").iter("polygon"))


def test_a_large_frontier_stays_small_and_a_wide_one_is_logarithmic() -> None:
    source = synthetic.full_report()
    first = source.frontier.points[1]
    many = tuple(first.model_copy(update={"ratio": 1 - n / 5000, "damage": 1e-6 * 1.004**n}) for n in range(4000))
    drawn = dataclasses.replace(source, frontier=source.frontier.model_copy(update={"points": many}))
    shown = picture(html.page(drawn), "frontier")
    assert sum(circle.get("class") == "point" for circle in shown.iter("circle")) == 60
    heights = [float(c.get("cy")) for c in shown.iter("circle") if c.get("class") == "point"]
    assert heights[0] - heights[30] == pytest.approx(heights[30] - heights[-1], rel=0.05)


def test_the_best_plans_within_a_budget_stand_below_the_frontier() -> None:
    source = synthetic.full_report()
    assert "The best within the budget" not in text_of(full())
    points = source.frontier.points
    asked = source.frontier.model_copy(update={"best": points[3:6], "diverse": points[7:9]})
    shown = html.page(dataclasses.replace(source, frontier=asked))
    assert len(re.findall(r'<svg class="small-u"', shown)) == 6 + 3 + 2
    assert "The best within the budget" in text_of(shown)
    marked = [one for one in picture(shown, "frontier").iter("rect") if one.get("class") == "point"]
    assert [one.get("transform") is not None for one in marked] == [False] * 3 + [True] * 2
    assert "Squares: the 3 best within the budgets. Diamonds: 2 that differ from each other." in text_of(shown)
    assert len(set(re.findall(r'id="(plans-[\w-]+)"', shown))) == 11, "every title has an id of its own"


def test_the_plan_stands_on_the_frontier_where_both_measure_damage_alike() -> None:
    source = synthetic.full_report()
    drawn = picture(full(), "frontier")
    assert not any(t.text == "this plan" for t in drawn.iter("text")), "one damage is the prior's, the other measured"
    edits = source.frontier.points[2].edits
    same = dataclasses.replace(source, plan=source.plan.model_copy(update={"edits": edits}))
    assert "this plan" in "".join(t.text for t in picture(html.page(same), "frontier").iter("text"))
    assert "one more millisecond saved costs" in text_of(html.page(same))


def test_validation_and_comparison_are_told() -> None:
    told = text_of(page())
    assert "6 random legal plans, built and measured in pairs (sd15, fake, fp32): 1.5 % of the teacher’s" in told
    assert "rank the units of sd15 with Spearman" in told
    assert sum(c.get("class", "").startswith("point") for c in picture(page(), "validation").iter("circle")) == 6


def test_the_damage_table_holds_every_edit_least_first() -> None:
    edits = synthetic.full_report().damage.edits
    body = table(full(), "damage").partition("<tbody>")[2]
    assert body.count("<tr>") == len(edits)
    least = min(edits, key=lambda row: row.damage.value)
    assert str(least.edit) in body[:300]
    assert "remove layer 1 of down_blocks.0 and remove layer 1 of up_blocks.3" in text_of(body)


def test_joint_plans_tell_whether_damage_adds_up() -> None:
    plans = synthetic.full_report().damage.additivity.plans
    assert sum(c.get("class") == "point" for c in picture(full(), "additivity").iter("circle")) == len(plans)
    told = text_of(full())
    assert "8 random joint plans, predicted from single edits by the sum: Spearman 0.930 [0.850, 0.970], R² 0.9" in told
    assert "Plans use the sum. The chart shows that prediction" in told
    assert "Cheap scores and their Spearman correlation with it: structural prior 0.41." in told


def test_a_plan_with_reasons_tells_them() -> None:
    why = Why(
        binding=("latency",),
        shadow_prices={"latency": ShadowPrice(damage=0.002, per="ms", slack=1.5, next_step=7.0, next_saves=0.01)},
        regrets=(
            Regret(unit="up_blocks.3.attentions.0", choice=HOSTILE, other="keep", damage=0.5),
            Regret(unit="up_blocks.3.attentions.1", choice="keep", other="remove", damage=0.25),
            Regret(unit="mid_block.resnets.0", choice="keep", other=None, damage=None),
        ),
    )
    source = html.page(with_plan(report().plan.edits, why=why))
    told = text_of(source)
    assert "Latency binds. One ms more of latency is worth 0.00200 of damage; 1.50 ms of the budget is left." in told
    assert "7.00 ms more would buy the next plan, which does 0.0100 less damage." in told
    body = text_of(table(source, "regrets"))
    assert body.index("attentions.1") < body.index("attentions.0"), "the closest call first"
    assert "No other choice meets the budget for mid_block.resnets.0." in body
    assert HOSTILE not in source
    assert "Why not otherwise?" not in text_of(page())


def test_an_edit_that_cannot_go_alone_is_told_with_what_goes_along() -> None:
    pair = [RemoveLayer(block="down_blocks.0", layer=1), RemoveLayer(block="up_blocks.3", layer=1)]
    source = dataclasses.replace(with_plan(pair), damage=synthetic.damage_of(report().profile))
    assert "together with remove layer 1 of up_blocks.3" in text_of(html.page(source))


def test_quality_is_drawn_beside_the_teachers_noise() -> None:
    drawn = picture(full(), "quality-1-0")
    assert drawn.find("title").text == "frechet_distance of teacher and students"
    (band,) = [r for r in drawn.iter("rect") if r.get("class") == "band"]
    teacher = next(r for r in drawn.iter("rect") if r.get("class") == "series own")
    assert float(band.get("width")) / float(teacher.get("width")) == pytest.approx(2 * 4.1 / 55.0, rel=0.01)


def test_pictures_stand_in_rows_and_a_page_full_of_them_says_so() -> None:
    source = synthetic.full_report()
    rows = re.search(r'<table id="table-pictures-1" class="pictures">.*?</table>', full(), re.DOTALL)[0]
    assert rows.count("<img") == 3 * 4
    assert "a red heart, by the teacher" in rows
    bench = source.benches[0]
    many = bench.model_copy(update={"drawings": bench.drawings * 40})
    crowded = html.page(dataclasses.replace(source, benches=(many,)))
    assert "more captions did not fit this page" in text_of(crowded)
    assert len(crowded.encode()) <= 500_000


def test_a_picture_that_is_none_is_not_shown() -> None:
    source = synthetic.full_report()
    bench = source.benches[0]
    evil = bench.drawings[0].model_copy(
        update={"caption": HOSTILE, "teacher": 'x" onerror="alert(1)', "real": "PHN2Zz4="}
    )
    shown = html.page(dataclasses.replace(source, benches=(bench.model_copy(update={"drawings": (evil,)}),)))
    assert "onerror" not in shown
    assert HOSTILE not in shown
    assert "PHN2Zz4=" not in shown


def test_a_log_is_drawn_term_by_term() -> None:
    assert all(f'class="loss-{i}"' in full() for i in range(4))
    assert "400 logged steps, up to step 3990" in text_of(full())


def test_everything_fits_half_a_megabyte() -> None:
    assert len(full().encode()) <= 500_000


def test_the_plans_picture_says_why_on_hover() -> None:
    titles = [g.find("title").text for g in picture(page(), "plan-picture").iter("g") if g.find("title") is not None]
    why = [title for title in titles if "replace down_blocks.0.attentions.0 with gri_attention" in title]
    assert len(why) == 1
    assert "redundancy rank" in why[0]
    assert "timed in place" in why[0]


def test_what_each_unit_could_become_is_a_table_and_says_what_beats_what() -> None:
    """A second option of one unit, slower and more harmful than the first, is beaten by it; removing does more."""
    source = synthetic.report()
    gri = source.profile.options[0]
    share = gri.share.scaled(1.1)
    worse = gri.model_copy(update={"replacement": "narrow_feed_forward", "options": {"keep": 0.25}, "share": share,
                                   "linear_macs": gri.linear_macs // 2})  # fmt: skip
    profile = source.profile.model_copy(update={"options": (*source.profile.options, worse)})
    assert options.section(source) is None, "a profile of the usual options alone has no such table"
    made = options.section(dataclasses.replace(source, profile=profile, damage=None))
    assert made is not None
    (table,) = made.blocks
    beaten = {(row[0].text, row[1].text): row[-1].text for row in table.rows}
    assert beaten[gri.unit, "narrow_feed_forward (keep 0.25)"] == "gri_attention"
    assert beaten[gri.unit, "gri_attention"] != "narrow_feed_forward (keep 0.25)"
    assert (gri.unit, "nothing") in beaten

    before = synthetic.damage_of(source.profile)  # it has GRI, and not the other option
    trained = next(one for one in before.edits if one.edits == (gri.edit,))
    cheap = trained.model_copy(update={"damage": synthetic.around(1e-6)})
    late = trained.model_copy(update={"edit": worse.edit, "damage": synthetic.around(1e-9)})
    after = before.model_copy(update={"edits": (cheap,), "dropped": (late,), "units_sha256": "1" * 64, "prompts": 24})
    for first, second, by in ((before, after, "before"), (after, before, "after")):
        both = dataclasses.replace(source, profile=profile, damage=first, other_damage=second)
        (table,) = options.section(both).blocks
        rows = {(row[0].text, row[1].text): row for row in table.rows}
        assert [column.name for column in table.columns][-3:] == ["damage before", "damage after", "beaten by"]
        assert [cell.value for cell in rows[gri.unit, "gri_attention"][-3:-1]] == [trained.damage.value, 1e-6]
        assert [cell.value for cell in rows[gri.unit, "narrow_feed_forward (keep 0.25)"][-3:-1]] == [None, 1e-9]
        assert f"most saved first; by damage {by}." in table.caption
        assert "make them, on 64 pictures; after: units of a library (asdm distill-units), on 24" in table.caption


def test_a_residual_below_zero_is_drawn_as_nothing() -> None:
    source = synthetic.report()
    (other,) = [part for part in source.profile.glue if part.fqn == "other"]
    count = len(other.latency_s.samples)
    less = {"median": -1e-3, "low": -2e-3, "high": 0.0, "samples": (-1e-3,) * count}
    negative = other.model_copy(update={"latency_s": other.latency_s.model_copy(update=less)})
    glue = tuple(negative if part.fqn == "other" else part for part in source.profile.glue)
    profile = source.profile.model_copy(update={"glue": glue})
    assert "other" in text_of(html.page(dataclasses.replace(source, profile=profile)))


def test_schedules_of_a_benchmark_are_on_the_page_with_their_quality() -> None:
    source = synthetic.report()
    quality = {"kid": Metric(value=0.0023, low=0.0011, high=0.0042, teacher=0.0019, noise_floor=0.0007)}
    schedule = BenchSchedule(
        name="taylor:n=2", source="taylor:n=2", on="sd15", schedule_sha256="0" * 64, macs_per_image=10**13,
        macs_ratio=0.53, predicted_ratio=0.55, quality=quality,
        image_latency_ratio=Estimate(median=0.56, low=0.55, high=0.57),
    )  # fmt: skip
    bench = source.benches[0].model_copy(update={"schedules": (schedule,)})
    text = text_of(html.page(dataclasses.replace(source, benches=(bench,))))
    assert "taylor:n=2" in text
    assert "0.56" in text
    assert "0.0023" in text, "not 0.00"


def test_small_values_are_not_shown_as_nothing() -> None:
    (cell,) = tables.interval_cells([Estimate(median=0.0023, low=0.0011, high=0.0042)])
    assert (cell.text, cell.quiet) == ("0.00230", "[0.00110, 0.00420]")
    assert [cell.text.strip("\u2007") for cell in tables.number_cells([12.345, 0.5])] == ["12.3", "0.50"]
    assert [cell.text.strip("\u2007\u2008") for cell in tables.number_cells([0.04, 0.004], 3)] == ["0.040", "0.004"]


def test_a_frontier_by_macs_says_so() -> None:
    source = synthetic.full_report()
    text = text_of(html.page(dataclasses.replace(source, frontier=source.frontier.model_copy(update={"by": "macs"}))))
    assert "MACs against damage" in html.page(
        dataclasses.replace(source, frontier=source.frontier.model_copy(update={"by": "macs"}))
    )
    assert "damage by MACs" in text
    assert "what each latency costs" not in text
