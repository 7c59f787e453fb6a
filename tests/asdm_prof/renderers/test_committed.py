"""The figures that are committed show what the committed files say, as today's code draws it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from asdm_prof.records import Profile
from asdm_prof.renderers import _collect, figures

FOLDER = Path(__file__).parents[3] / "reports" / "sd15"
# Not the frontier: of its long line matplotlib leaves out points, others in other layouts.
DRAWS = (figures.redundancy, figures.predicted_vs_measured, figures.roofline)
SVG = "{http://www.w3.org/2000/svg}"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def plotted(path: Path) -> Iterator[tuple[str, list[float]]]:
    """Every line, bar, marker and tick in an SVG's axes: its colours, and its points as shares of the axes' sides.

    Where axes and legends lie depends on the width of texts, which matplotlib's releases set differently.
    """
    for axes in ElementTree.parse(path).iter(f"{SVG}g"):
        if not axes.get("id", "").startswith("axes_"):
            continue
        groups = [one for one in axes.iter() if one.tag == f"{SVG}defs" or one.get("id", "").startswith("legend_")]
        besides = {shape for group in groups for shape in group.iter()}
        shapes = [one for one in axes.iter() if one.tag in (f"{SVG}path", f"{SVG}use") and one not in besides]
        background = points(shapes[0])
        (left, right), (top, bottom) = ((min(side), max(side)) for side in zip(*background, strict=True))
        for shape in shapes:
            colours = " ".join(re.findall(r"(?:fill|stroke): #\w+", shape.get("style", "")))
            places = [((x - left) / (right - left), (y - top) / (bottom - top)) for x, y in points(shape)]
            yield colours, [side for place in places for side in place]


def points(shape: ElementTree.Element) -> list[tuple[float, float]]:
    """Of a path, where it goes; of a marker, where it stands."""
    numbers = map(float, NUMBER.findall(shape.get("d") or f"{shape.get('x')} {shape.get('y')}"))
    return list(zip(numbers, numbers, strict=True))


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_a_committed_figure_is_drawn_again_from_the_committed_files(
    draw: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from the other folders under reports/
    monkeypatch.setattr(_collect, "_family_costs", lambda _: ())
    monkeypatch.setattr(figures, "METADATA", {"svg": figures.METADATA["svg"]})
    path = FOLDER / "profile.json"
    (drawn,) = figures.render(_collect.report(Profile.load(path), path), tmp_path, (draw,))
    ours, committed = list(plotted(drawn)), list(plotted(FOLDER / "figures" / drawn.name))
    assert len(committed) > 20
    assert [colours for colours, _ in ours] == [colours for colours, _ in committed]
    for (_, here), (_, there) in zip(ours, committed, strict=True):
        assert here == pytest.approx(there, abs=1e-3)
