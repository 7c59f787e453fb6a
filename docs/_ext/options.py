"""The directive `{options} PROGRAM COMMAND`: a command's usage, arguments and options, as its `--help` has them."""

from __future__ import annotations

import re

import typer
from docutils import nodes
from docutils.parsers.rst import Directive

import asdm.cli
import asdm_prof.cli

PROGRAMS = {"asdm": asdm.cli.app, "asdm-prof": asdm_prof.cli.app}


class Options(Directive):
    """How the command is called, and a table of its arguments and options."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        program, name = self.arguments
        command = typer.main.get_command(PROGRAMS[program]).commands[name]  # type: ignore[attr-defined]
        context = typer.Context(command, info_name=f"{program} {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        records = [parameter.get_help_record(context) for parameter in command.params]
        return [
            nodes.literal_block(usage, usage, language="text"),
            _table(_row(flags, text) for flags, text in filter(None, records)),
        ]


def _row(flags: str, text: str) -> nodes.row:
    """One argument or option: its flags, and its help with the default at the end."""
    text, _, default = text.partition("  [")
    about = nodes.paragraph("", text)
    if default:
        about += [nodes.Text(" ("), nodes.emphasis("", default.removesuffix("]")), nodes.Text(")")]
    code = [nodes.literal(flag, flag) for flag in re.split(r", | / ", flags)]
    spaced = [part for flag in code for part in (nodes.Text(", "), flag)][1:]
    return nodes.row("", nodes.entry("", nodes.paragraph("", "", *spaced)), nodes.entry("", about))


def _table(rows: object) -> nodes.table:
    group = nodes.tgroup(cols=2)
    group += [nodes.colspec(colwidth=35), nodes.colspec(colwidth=65)]
    group += nodes.tbody("", *rows)  # type: ignore[misc]
    return nodes.table("", group, classes=["options"])


def setup(app: object) -> dict[str, bool]:
    app.add_directive("options", Options)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}
