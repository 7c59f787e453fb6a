"""The figure over several benchmarks is that of all their pairs, and the results page quotes the committed files'."""

from __future__ import annotations

import pytest

from asdm.measure.statistics import paired_ratio
from asdm.records.bench import BenchResult
from benchmarks import students as script
from benchmarks.script import RESULTS, ROOT, between_marks

FILES = sorted((ROOT / "reports" / "sd15").glob("bench*.json"))


def test_the_figure_is_that_of_all_pairs() -> None:
    benches = [BenchResult.load(path) for path in FILES]
    students = [student for bench in benches for student in bench.students if student.name == "a_sdm"]
    assert len(students) >= 3
    ratio, pairs = script.pooled("a_sdm", benches)
    assert pairs == sum(len(student.unet_latency_s.samples) for student in students)
    assert min(s.unet_latency_ratio.median for s in students) < ratio.median
    assert ratio.median < max(s.unet_latency_ratio.median for s in students)
    assert ratio.high - ratio.low < max(s.unet_latency_ratio.high - s.unet_latency_ratio.low for s in students)
    alone, n = script.pooled("a_sdm", benches[:1])
    first = next(student for student in benches[0].students if student.name == "a_sdm")
    assert alone == paired_ratio(first.unet_latency_s.samples, first.paired_teacher_latency_s.samples)
    assert n == len(first.unet_latency_s.samples)


def test_the_results_page_quotes_it(capsys: pytest.CaptureFixture[str]) -> None:
    """After new measurements: `python -m benchmarks.students reports/sd15/bench*.json --pooled a_sdm --readme`."""
    script.main(FILES, "a_sdm")
    text = script.sentence(*script.pooled("a_sdm", [BenchResult.load(path) for path in FILES]))
    assert f"a_sdm: over all {text}." in capsys.readouterr().out
    page = RESULTS.read_text(encoding="utf-8")
    assert between_marks(page, "pooled", text) == page
    assert between_marks(page, "pooled", "none") != page


def test_files_that_cannot_be_pooled_are_refused() -> None:
    benches = [BenchResult.load(path) for path in FILES]
    with pytest.raises(ValueError, match=r"no student 'b_sdm' in these files; choose from a_sdm"):
        script.pooled("b_sdm", benches)
    other = benches[1].model_copy(update={"threads": 64})
    with pytest.raises(ValueError, match=r"threads must be the same in all files, got 2 and 64"):
        script.pooled("a_sdm", [benches[0], other])
