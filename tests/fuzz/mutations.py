"""Changes to a file by accident: half leave it well-formed (one value, key or type is another), half do not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

VALUES = (
    None, True, -1, 0, 3, 1e308, 1e-308, -1.5, 10**40, math.nan, -math.inf, "", "x", "0", "\x1b[31m", "../x", [], {},
    [[]],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, by the keys that lead there."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from places(inner, (*path, key))


class Original:
    """What is changed: a JSON value, its places, and the bytes that are torn."""

    def __init__(self, content: Any, raw: bytes) -> None:
        self.content, self.raw = content, raw
        self.text, self.places = json.dumps(content), list(places(content))


def changed(original: Original, chance: Random) -> Any:
    """A copy of a JSON value with one value, key or type changed."""
    mutant = json.loads(original.text)
    *way, last = chance.choice(original.places)
    parent = mutant
    for key in way:
        parent = parent[key]
    kind = chance.randrange(4)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{last}?"] = parent.pop(last)
    elif kind == 2 and isinstance(parent[last], int | float):
        parent[last] *= chance.choice((-1, 0, 1e6, 1e-6, 1e300))
    else:
        parent[last] = chance.choice(VALUES)
    return mutant


def torn(raw: bytes, chance: Random) -> bytes:
    """Bytes with some lost, flipped or doubled, or with a byte-order mark or a line separator in them."""
    mutant = bytearray(raw)
    at = chance.randrange(len(raw) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        del mutant[at:]
    elif kind == 1 and at < len(raw):
        mutant[at] ^= 1 << chance.randrange(8)
    elif kind == 2:
        mutant[at:at] = mutant[at : at + chance.randrange(1, 50)]
    elif kind == 3:
        del mutant[at : at + chance.randrange(1, 50)]
    else:
        mutant[at:at] = chance.choice(
            (b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x00", b"\xe9", b"\r\n", b'"', b"9" * 5000, b"[" * 5000)
        )
    return bytes(mutant)


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def as_json_lines(rows: Any) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)
