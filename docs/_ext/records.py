"""The directive `{record} MODULE CLASS`: the fields of a record, read off its model."""

from __future__ import annotations

import importlib
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive


class Fields(Directive):
    """A record's docstring and a table of its fields with their types."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments
        model = getattr(importlib.import_module(module), name)
        summary = nodes.paragraph()
        summary += _marked(" ".join((model.__doc__ or "").split("\n\n")[0].split()))
        return [summary, _table(model)]


def _table(model: Any) -> nodes.table:
    group = nodes.tgroup(cols=2)
    group += [nodes.colspec(colwidth=30), nodes.colspec(colwidth=70)]
    group += nodes.thead("", _row(nodes.Text("field"), nodes.Text("type")))
    body = nodes.tbody()
    for name, field in model.model_fields.items():
        shown = _type(field.annotation)
        body += _row(nodes.literal("", field.alias or name), nodes.literal("", shown))
    group += body
    return nodes.table("", group)


def _row(*cells: nodes.Node) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def _type(annotation: Any) -> str:
    """`tuple[PartRecord, ...]` for an annotation, without modules and pydantic's metadata."""
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"typing\.(Annotated\[)(.*?), FieldInfo\(.*?\)\]", r"\2", text)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")


def _marked(text: str) -> list[nodes.Node]:
    """Text whose `code` is set as code."""
    return [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(text.split("`"))]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("record", Fields)
    return {"parallel_read_safe": True}
