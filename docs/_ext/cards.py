"""The directive `{cards} FOLDER`: a section for every file of a folder, with the docstring that it begins with."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
LEAD = re.compile(r"^(What [^.:\n]*|When it helps):", flags=re.MULTILINE)  # the words that begin a paragraph of a card


class Cards(SphinxDirective):
    """Method cards: what each file says of itself, in Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [self._card(path) for path in sorted((ROOT / self.arguments[0]).glob("[!_]*.py"))]

    def _card(self, path: Path) -> nodes.section:
        self.env.note_dependency(str(path))
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        title = nodes.title("", "", nodes.literal("", path.stem))
        card = nodes.section("", title, names=[path.stem], ids=[nodes.make_id(path.stem)])
        self.state.nested_parse(StringList(LEAD.sub(r"**\1:**", docstring).splitlines(), str(path)), 0, card)
        return card


def setup(app: object) -> dict[str, bool]:
    app.add_directive("cards", Cards)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}
