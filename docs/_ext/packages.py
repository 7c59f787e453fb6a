"""The directive `{packages} PACKAGE`: its folders, in the order of the content, with the sentence each begins with."""

from __future__ import annotations

import ast
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from records import marked

ROOT = Path(__file__).parents[2]


class Packages(Directive):
    """A list of folders and what is in them."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        items = nodes.bullet_list()
        for name in " ".join(self.content).split():
            folder = ROOT / self.arguments[0] / name
            docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
            summary = " ".join(docstring.split("\n\n")[0].split())
            path = nodes.literal("", f"{self.arguments[0]}/{name}/")
            items += nodes.list_item("", nodes.paragraph("", "", path, nodes.Text(": "), *marked(summary)))
        return [items]


def setup(app: object) -> dict[str, bool]:
    app.add_directive("packages", Packages)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}
