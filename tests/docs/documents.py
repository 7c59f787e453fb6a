"""The documents that users read, and the fenced blocks in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "console", "json", "pycon", "python", "text"}


@dataclass(frozen=True)
class Block:
    """A fenced block of one document; `line` is that of its opening fence."""

    document: str
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


@cache
def documents() -> dict[str, str]:
    """Every document's text by its path in the repository, in the order in which a user would read them."""
    others = [ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", ROOT / "asdm" / "mini" / "README.md"]
    paths = [ROOT / "README.md", DOCS / "getting-started.md", *sorted(DOCS.rglob("*.md")), *others]
    unique = dict.fromkeys(path for path in paths if "_build" not in path.parts)
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in unique}


@cache
def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of these languages in all documents, or of every language."""
    return [
        Block(document, match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for document, text in documents().items()
        for match in FENCE.finditer(text)
        if match[1] in languages or (not languages and not match[1].startswith("{"))  # a directive is Sphinx's
    ]


@dataclass(frozen=True)
class Command:
    """One line that a document tells its reader to type."""

    document: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text}"


@cache
def commands() -> list[Command]:
    """Every line of the shell blocks, continuation lines joined and comments removed."""
    typed = []
    for block in blocks("bash"):
        begun = ""
        for line, text in enumerate(block.text.splitlines(), block.line + 1):
            if text.endswith("\\"):
                begun += text[:-1]
                continue
            words, begun = shlex.split(begun + text, comments=True), ""
            if words:
                typed.append(Command(block.document, line, shlex.join(words)))
    return typed


@cache
def shown_commands() -> list[Command]:
    """Every line after a `$ ` prompt in a block that shows a command with its output."""
    return [
        Command(block.document, line, text.removeprefix("$ "))
        for block in blocks("console", "text")
        for line, text in enumerate(block.text.splitlines(), block.line + 1)
        if text.startswith("$ ")
    ]
