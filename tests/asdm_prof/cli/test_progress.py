"""The live display: what it says while a profile runs, in whatever width there is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from asdm_prof.cli.progress import block_table, headline, split_fqn, watching
from asdm_prof.profiler.progress import Status

PARTS = {
    "conv_in": [0.010],
    "down_blocks.0.resnets.0": [0.100, 0.120, 0.110],
    "down_blocks.0.attentions.0": [0.200],
    "mid_block.attentions.0": [0.050],
    "up_blocks.0.resnets.2": [],
}


def shown(width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(block_table(PARTS, width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_row_per_block_with_the_sum_of_its_medians() -> None:
    rows = {line.split()[0]: line for line in shown(120)}
    assert "310 ms" in rows["down_blocks.0"]  # 110 + 200
    assert "r0 110  t0 200" in rows["down_blocks.0"]
    assert "50 ms" in rows["mid_block"]
    assert "up_blocks.0" not in rows, "nothing was measured there yet"


def test_fast_units_have_figures() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(block_table({"mid_block.resnets.0": [2.4e-4], "mid_block.attentions.0": [0.0123]}, 120))
    assert "r0 0.24  t0 12" in console.file.getvalue()  # type: ignore[attr-defined]


def test_bars_are_in_proportion() -> None:
    bars = {line.split()[0]: line.count("█") for line in shown(120)}
    assert bars["down_blocks.0"] == 24
    assert bars["mid_block"] == round(24 * 50 / 310)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, shown(width))) <= width
    assert len(shown(width)) == 3, "one line a block"


def test_the_headline_says_what_is_left() -> None:
    assert headline("Profiling", Status("measuring", 7, 95.0)) == "Profiling: measuring, 7 calls, 1 min 35 s left"
    assert headline("Profiling", Status("building")) == "Profiling: building"


@pytest.mark.parametrize(
    ("fqn", "expected"),
    [
        ("up_blocks.3.resnets.1", ("up_blocks.3", "r1")),
        ("mid_block.attentions.0", ("mid_block", "t0")),
        ("down_blocks.0.downsamplers.0", ("down_blocks.0", "down0")),
        ("conv_out", ("conv_out", "")),
    ],
)
def test_a_unit_s_place_is_read_off_its_name(fqn: str, expected: tuple[str, str]) -> None:
    assert split_fqn(fqn) == expected


def test_on_a_terminal_the_tree_is_drawn_and_cleared() -> None:
    stream = io.StringIO()
    with watching("Profiling", Console(file=stream, force_terminal=True, width=80)) as watch:
        watch(Status("measuring", 3, 10.0, PARTS))
    assert "down_blocks.0" in stream.getvalue()
