"""One mutation: read, and used where that is asked; anything but a sentence of ours is a fault."""

from __future__ import annotations

import contextlib
import dis
import io
import traceback
from collections.abc import Iterator
from pathlib import Path

from asdm.utils.console import say_once
from asdm_prof.planner.plan import Infeasible, TooMuchDamage
from tests.fuzz.kinds import Kind
from tests.fuzz.mutations import Original

MOST_S = 5.0  # a mutation that takes longer hangs
OURS = tuple(str(Path(__file__).parents[2] / package) for package in ("asdm/", "asdm_prof/"))


def attempt(kind: Kind, root: Path, content: Original, number: int, use: bool) -> str:
    """Read the file with mutation `number`, and use it: the traceback of a fault, or nothing."""
    (root / kind.place).write_bytes(kind.mutant(content, number))
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            found = kind.read(root)
            if use:
                kind.use(root, found)
        except (Infeasible, TooMuchDamage):
            pass
        except ValueError as error:
            return "" if is_sentence(error) else traceback.format_exc()
        except Exception:
            return traceback.format_exc()
        finally:
            say_once.cache_clear()
    return ""


def is_sentence(error: ValueError) -> bool:
    """Whether it is one line, and a `raise` of ours wrote it, not a library or a builtin that was called there."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or "\n" in str(error):
        return False
    code = last.tb_frame.f_code
    return code.co_filename.startswith(OURS) and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


@contextlib.contextmanager
def original(kind: Kind, root: Path) -> Iterator[Original]:
    """The file's content; the file itself is restored at the end."""
    path = root / kind.place
    raw = path.read_bytes() if path.exists() else None
    try:
        yield kind.original(root)
    finally:
        path.write_bytes(raw) if raw is not None else path.unlink(missing_ok=True)
