"""A kind of file: its content, how it is written and changed, and what commands do with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations import Original, as_json, changed, torn

Work = Callable[[Path, Any], Any]  # of the folder of all files, and of what was read


@dataclass(frozen=True)
class Kind:
    """A kind of file: `place` in the folder, its content as a JSON value, and how that is written."""

    name: str
    place: str
    content: Callable[[Path], Any]
    read: Callable[[Path], Any]  # of the folder
    use: Work = field(default=lambda *_: None)
    encode: Callable[[Any], bytes] = as_json
    raw: Callable[[Any], bytes] | None = None  # of what is torn, where that is another

    def original(self, root: Path) -> Original:
        content = self.content(root)
        return Original(content, (self.raw or self.encode)(content))

    def mutant(self, original: Original, number: int) -> bytes:
        """The file with mutation `number`; every second one is well-formed."""
        chance = Random(f"{self.name} {number}")
        for _ in range(20 if number % 2 else 0):
            with contextlib.suppress(Exception):  # not every value can be written in every format
                return self.encode(changed(original, chance))
        return torn(original.raw, chance)


def file_of(place: str) -> Callable[[Path], Any]:
    return lambda root: json.loads((root / place).read_text("utf-8"))


def lines_of(place: str) -> Callable[[Path], Any]:
    return lambda root: [json.loads(line) for line in (root / place).read_text("utf-8").splitlines()]


def header_of(raw: bytes) -> Any:
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def with_header(raw: Callable[[], bytes]) -> Callable[[Any], bytes]:
    """A safetensors file with another header."""

    def encode(header: Any) -> bytes:
        own = raw()
        length = int.from_bytes(own[:8], "little")
        text = as_json(header).replace(b": ", b":").replace(b", ", b",").ljust(length)  # of the same length, mostly
        return len(text).to_bytes(8, "little") + text + own[8 + length :]

    return encode


def of_tensors(name: str, place: str, raw: Callable[[], bytes], read: Callable[[Path], Any], use: Work) -> Kind:
    """A kind of safetensors files, whose headers are changed."""
    return Kind(name, place, lambda _: header_of(raw()), read, use, with_header(raw))
