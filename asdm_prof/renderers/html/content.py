"""What a section is made of: sentences, tables and pictures. The page shows all of them, the terminal those with text.

Texts are plain strings; what a name from a file may hold is escaped where it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

Medium = Literal["both", "page", "terminal"]


class Span(str):
    """A piece of a sentence in a style: "code", "figure" (bold), or any class of the page's style sheet."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: str, style: str) -> Span:
        span = super().__new__(cls, text)
        span.style = style
        return span


Sentence = Sequence[str]  # strings and spans, joined without anything between them


def figure(text: str) -> Span:
    """A number in a sentence."""
    return Span(text, "figure")


def bounds(text: str) -> Span:
    """An interval in a sentence, in a quieter tone."""
    return Span(text, "quiet figure")


def code(text: str) -> Span:
    """A command or the name of a module."""
    return Span(text, "code")


def listed(items: Sequence[Sentence]) -> list[str]:
    """Items as one phrase, such as “a, b and c”."""
    joined: list[str] = []
    for place, item in enumerate(items):
        if place:
            joined.append(" and " if place == len(items) - 1 else ", ")
        joined += [item] if isinstance(item, str) else item
    return joined


# ---------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Paragraph:
    """Sentences; `style` is a class of the style sheet, such as "lead", "quiet" or "missing"."""

    kind: ClassVar[str] = "paragraph"
    spans: Sentence
    style: str = ""
    medium: Medium = "both"


@dataclass(frozen=True)
class Heading:
    """The title of what follows within a section."""

    kind: ClassVar[str] = "heading"
    medium: ClassVar[Medium] = "page"
    text: str


def missing(lack: str, command: str, purpose: str) -> Paragraph:
    """What the report lacks, the command that makes it, and what that does; the page alone says so."""
    return Paragraph([lack, code(command), purpose], "missing", "page")


@dataclass(frozen=True)
class Listing:
    """A list of sentences, each with a class of its own where `styles` has one."""

    kind: ClassVar[str] = "listing"
    items: Sequence[Sentence]
    style: str = ""
    ordered: bool = False
    styles: Sequence[str] = ()
    medium: Medium = "both"


@dataclass(frozen=True)
class Column:
    """A name, the unit of every value below it, and from which width of a terminal it shows there.

    `short` is its name in a terminal. From `bounds_from` on, the cells' quiet texts stand in a column of their own;
    from `full_from` on, cells show what they show on the page; `wraps` lets texts take several lines.
    """

    name: str
    unit: str = ""
    numeric: bool = True
    terminal_from: int | None = None  # columns of the terminal; None: never
    bounds_from: int | None = None
    full_from: int | None = None
    short: str | None = None
    wraps: bool = False
    on_page: bool = True


@dataclass(frozen=True)
class Cell:
    """`value`, `low` and `high` are in the column's unit, for sorting and for CSV; `short` is for a narrow terminal."""

    text: str
    quiet: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    depth: int = 0
    short: str | None = None
    kind: str = ""  # resnet, transformer or glue: the hue in a terminal


NONE = Cell("–", short="")


@dataclass(frozen=True)
class Table:
    """A caption, a head, rows, and sums underneath where there are any.

    `summary` folds the table under that line, `head` is the column of the rows' names, and `bars` are the shares of the
    longest that a terminal draws behind the names. In `terminal_order` stand the names of the columns as a terminal has
    them, where that is another order.
    """

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    head: int = 0
    sortable: bool = False
    summary: str = ""
    style: str = ""
    bars: Sequence[float] = ()
    terminal_order: Sequence[str] = ()
    medium: Medium = "both"

    @property
    def shown(self) -> list[int]:
        """Places of the columns that the page has."""
        return [place for place, column in enumerate(self.columns) if column.on_page]


@dataclass(frozen=True)
class Picture:
    """An inline SVG and what a screen reader says of its frame."""

    svg: Markup
    label: str


@dataclass(frozen=True)
class Figure:
    """Pictures under one caption, with a key; several captions are those of the measures that a switch picks."""

    kind: ClassVar[str] = "figure"
    medium: ClassVar[Medium] = "page"
    pictures: Sequence[Picture]
    captions: Sequence[str]
    key: Sequence[tuple[Markup, str]] = ()
    tools: Markup | None = None
    aside: Markup | None = None


def picture(svg: Markup, label: str, caption: str, key: Sequence[tuple[Markup, str]] = ()) -> Figure:
    """One picture with one caption."""
    return Figure([Picture(svg, label)], [caption], key)


@dataclass(frozen=True)
class Gallery:
    """Small pictures in a row, each over a few short lines."""

    kind: ClassVar[str] = "gallery"
    medium: ClassVar[Medium] = "page"
    title: str
    items: Sequence[tuple[Markup, Sentence]]


@dataclass(frozen=True)
class Card:
    """One figure of the first screen, with a link to where it comes from."""

    name: str
    figure: str
    quiet: str
    note: str
    link: str


@dataclass(frozen=True)
class Cards:
    """The figures of the first screen."""

    kind: ClassVar[str] = "cards"
    medium: ClassVar[Medium] = "page"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Definitions:
    """Terms with what they stand for."""

    kind: ClassVar[str] = "definitions"
    medium: ClassVar[Medium] = "page"
    rows: Sequence[tuple[str, Sentence]]


@dataclass(frozen=True)
class Commands:
    """Lines to be typed."""

    kind: ClassVar[str] = "commands"
    medium: ClassVar[Medium] = "page"
    lines: Sequence[str]


@dataclass(frozen=True)
class Controls:
    """Elements that the page's script brings to life."""

    kind: ClassVar[str] = "controls"
    medium: ClassVar[Medium] = "page"
    markup: Markup


Block = Paragraph | Heading | Listing | Table | Figure | Gallery | Cards | Definitions | Commands | Controls


@dataclass(frozen=True)
class Section:
    """One answer of a report: a title and what stands under it; `anchor` is a name that links lead to."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    anchor: str = ""


def flat(sentence: Iterable[str]) -> str:
    """A sentence as plain text."""
    return "".join(sentence)
