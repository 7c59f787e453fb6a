"""What commands print arrives whole: in any encoding and width, through any pipe, and as text alone."""

import csv
import io
import subprocess
import sys

import pytest
import typer

from asdm.utils import console

ROWS = [{"unit": "down_blocks.0.attentions.1", **{f"column {i}": f"{i}.25" for i in range(8)}}]


def app_that(act):
    app = typer.Typer()
    app.command()(act)
    return app


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_replaced_and_the_rest_is_printed(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["asdm"])
    with pytest.raises(SystemExit) as caught:
        console.run(app_that(lambda: print("0.75 → × ≤ 文, and the end")))
    assert caught.value.code == 0
    assert written.getvalue().decode(encoding).endswith(", and the end\n")


SCRIPT = """
import sys, typer
from asdm.utils import console
def act():
    print("x" * int(sys.argv[1]))
app = typer.Typer()
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(act)
console.run(app)
"""


@pytest.mark.parametrize("letters", [10, 200_000])  # less than a pipe holds, and more
def test_a_reader_that_has_gone_is_no_failed_condition(letters):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(letters)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    message = process.stderr.read()
    assert (process.wait(), message) == (console.READER_GONE, b"")


@pytest.mark.parametrize("columns", ["20", "40", "60", "200"])
def test_a_narrow_terminal_loses_no_column(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    console.emit(ROWS, console.Format.table)
    shown = capsys.readouterr().out
    for i in range(8):
        assert f"column {i}" in shown
        assert f"{i}.25" in shown


def test_a_width_of_nothing_is_not_taken(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr(sys, "argv", ["asdm"])
    with pytest.raises(SystemExit):
        console.run(app_that(lambda: console.emit(ROWS, console.Format.table)))
    assert "down_blocks.0" in capsys.readouterr().out


SMUGGLED = [{"name": "\x1b[31mred\x1b[0m\n| =1+1", "formula": "=HYPERLINK(1)", "number": "-1.5", "count": -3}]


@pytest.mark.parametrize("form", [console.Format.table, console.Format.csv, console.Format.md])
def test_a_name_in_a_table_is_text_alone(form, capsys):
    console.emit(SMUGGLED, form)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "?[31mred?[0m?" in shown
    if form is console.Format.csv:
        (row,) = csv.DictReader(io.StringIO(shown))
        assert (row["formula"], row["number"], row["count"]) == ("'=HYPERLINK(1)", "-1.5", "-3")


def test_a_message_is_one_line_of_text(capsys):
    console.say("Using a\x1b[2Jb\rc.")
    assert capsys.readouterr().err == "Using a?[2Jb?c.\n"


def test_what_a_library_says_is_one_line_without_colours() -> None:
    error = RuntimeError("\x1b[96mStep 1\x1b[0m failed.\nNext steps:")
    assert console.first_line(error) == "Step 1 failed"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("postgresql://me:secret@db:5432/asdm", "postgresql://me:…@db:5432/asdm"),
        ("--storage=postgresql://me:se@cret@db/asdm", "--storage=postgresql://me:…@db/asdm"),
        ("postgresql://me@db/asdm", "postgresql://me@db/asdm"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("folder:pictures", "folder:pictures"),
    ],
)
def test_a_password_in_a_command_is_hidden(word: str, shown: str) -> None:
    assert console.without_password(word) == shown
