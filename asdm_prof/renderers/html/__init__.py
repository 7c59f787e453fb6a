"""One offline page that answers five questions: what is the answer, where does the time go, what is redundant, what
would a plan buy, and can this be believed.

Every sentence and figure is a function of the report's records. Names from files are escaped wherever they stand.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup, escape

from asdm.utils.io import write_whole
from asdm_prof.renderers import Report
from asdm_prof.renderers._format import plain, tied
from asdm_prof.renderers.html.content import Span
from asdm_prof.renderers.html.parts import island
from asdm_prof.renderers.html.sections import QUESTIONS, Question
from asdm_prof.renderers.html.svg import tag

OUTPUT = "report.html"
HERE = Path(__file__).parent


def render(report: Report, folder: Path, questions: Sequence[Question] = QUESTIONS) -> list[Path]:
    """Write `report.html`: one file that needs no network and no JavaScript to be read."""
    return [write_whole(folder / OUTPUT, page(report, questions), force=True)]


def page(report: Report, questions: Sequence[Question] = QUESTIONS) -> str:
    """The whole page as text; the same report gives the same page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"tied": tied, "inline": inline}
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        title=plain(f"{report.profile.title}: where the UNet’s time goes, and what can go"),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        island=island(report),
        questions=[(question, _sections(report, question)) for question in questions],
    )


def _sections(report: Report, question: Question) -> list[dict[str, object]]:
    """The sections that there is data for, with the blocks that the page shows."""
    sections = [section for make in question.sections if (section := make(report))]
    return [vars(one) | {"blocks": [block for block in one.blocks if block.medium != "terminal"]} for one in sections]


def inline(sentence: Iterable[str]) -> Markup:
    """A sentence with the styles of its spans; escaped."""
    return Markup("").join(map(_piece, sentence))


def _piece(text: str) -> Markup:
    if not isinstance(text, Span):
        return escape(tied(text))
    if text.style == "code":
        return tag("code", str(text))
    bold = text.style in ("figure", "strong")
    return tag("b" if bold else "span", tied(str(text)), class_=None if text.style == "strong" else text.style or None)
