"""The directive `{record} MODULE CLASS`: the fields of a record, read off its model and the comments beside them."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

COMMENT = re.compile(r"^    (\w+): .*?  # (.*)$", flags=re.MULTILINE)
ANNOTATED = re.compile(r"(?:typing\.)?Annotated\[(.*?), (?:FieldInfo|AfterValidator)\(.*?\)\]")
QUOTED_OR_MODULE = re.compile(r"('[^']*')|\b(?:\w+\.)+(\w+)")


class Fields(Directive):
    """A record's docstring and a table of its fields with their types."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments
        model = getattr(importlib.import_module(module), name)
        summary = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        return [nodes.paragraph("", "", *marked(summary)), _table(model)]


def _table(model: Any) -> nodes.table:
    """Field, type, and what the comment beside the field says."""
    comments = _comments(model)
    group = nodes.tgroup(cols=3)
    group += [nodes.colspec(colwidth=width) for width in (25, 35, 40)]
    group += nodes.thead("", _row(*([nodes.Text(text)] for text in ("field", "type", "notes"))))
    group += nodes.tbody("", *(
        _row([nodes.literal("", field.alias or name)], [nodes.literal("", _type(field.annotation))],
             marked(comments.get(name, "")))
        for name, field in model.model_fields.items()
    ))  # fmt: skip
    return nodes.table("", group)


def _comments(model: Any) -> dict[str, str]:
    """Comments behind the fields of a model and of those it inherits from."""
    sources = [inspect.getsource(parent) for parent in reversed(model.__mro__) if parent.__module__.startswith("asdm")]
    return {name: comment for source in sources for name, comment in COMMENT.findall(source)}


def _row(*cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def _type(annotation: Any) -> str:
    """`tuple[PartRecord, ...]` for an annotation, without modules and pydantic's metadata."""
    is_class = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    text = ANNOTATED.sub(r"\1", annotation.__name__ if is_class else str(annotation))
    return QUOTED_OR_MODULE.sub(r"\1\2", text).replace("NoneType", "None")


def marked(text: str) -> list[nodes.Node]:
    """Text whose `code` is set as code."""
    return [nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(text.split("`")) if part]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("record", Fields)
    return {"parallel_read_safe": True}
