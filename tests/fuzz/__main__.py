"""`make fuzz`: mutations of every kind of file that is read; each must be read, or refused in one sentence.

Every kind runs in a process of its own, which is ended where a mutation takes longer than five seconds. A fault is
named with its number, by which `--kind NAME --first NUMBER --count 1` repeats it, and its file stays in the folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from asdm.utils.console import left_text
from tests.commands import files_in
from tests.fuzz.kinds import KINDS, Kind, prepare
from tests.fuzz.run import MOST_S, attempt, original

# Where a command may write unasked; nothing may be left there, nor beside the files that are read.
PLACES = {"HOME": "home", "TMPDIR": "temporary", "ASDM_CACHE": "cache"}
FORK = multiprocessing.get_context("fork")


def work(kind: Kind, root: Path, first: int, last: int, at: Any) -> None:
    """Try the mutations from `first` on; `at` holds the number that is being tried, and how many were faults."""
    os.chdir(root)
    devnull = os.open(os.devnull, os.O_WRONLY)
    told = os.dup(1)
    for stream in (1, 2):
        os.dup2(devnull, stream)  # what libraries say
    with original(kind, root) as content:
        for number in range(first, last):
            at[0] = number
            if fault := attempt(kind, root, content, number, use=True):
                at[1] += 1
                os.write(told, f"\nFAULT {kind.name} {number}: {fault}\n{kept(kind, root, number)}\n".encode())
    at[0] = last


def kept(kind: Kind, root: Path, number: int) -> str:
    """Copy a mutation's file aside; how it is repeated."""
    name = f"{kind.name.replace(' ', '-')}-{number}-{Path(kind.place).name}"
    folder = root.parent / "faults"
    folder.mkdir(exist_ok=True)
    shutil.copy(root / kind.place, folder / name)
    return f"{folder / name}; repeat with: python -m tests.fuzz --kind '{kind.name}' --first {number} --count 1"


def try_kind(kind: Kind, root: Path, first: int, last: int, tell: Any) -> int:
    """All mutations of a kind, in a new process after each that hangs or crashes; the number of faults."""
    at, faults = FORK.Array("q", [first, 0], lock=False), 0
    while at[0] < last:
        process = FORK.Process(target=work, args=(kind, root, at[0], last, at))
        process.start()
        seen, since = at[0], time.monotonic()
        while process.is_alive():
            process.join(0.2)
            if at[0] != seen:
                seen, since = at[0], time.monotonic()
            tell(kind, at[0] - first)
            if time.monotonic() - since > MOST_S and at[0] < last:
                process.kill()
                process.join()
        if at[0] < last:
            faults += 1
            how = "hangs" if process.exitcode == -9 else f"ends its process with {process.exitcode}"
            print(f"\nFAULT {kind.name} {at[0]} {how}\n{kept(kind, root, at[0])}")
            at[0] += 1
    return faults + at[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutations of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation of each kind")
    parser.add_argument("--kind", help=f"one of {', '.join(kind.name for kind in KINDS)}")
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if asked.kind in (None, kind.name)]
    if not kinds:
        parser.error(f"unknown kind {asked.kind!r}; choose from {', '.join(kind.name for kind in KINDS)}")
    each, began, done = -(-asked.count // len(kinds)), time.monotonic(), 0
    warnings.simplefilter("ignore")
    root = Path(tempfile.mkdtemp(prefix="asdm-fuzz-")) / "files"
    for name, folder in PLACES.items():
        (root.parent / folder).mkdir()
        os.environ[name] = str(root.parent / folder)
    tempfile.tempdir = None  # is read anew
    prepare(root)

    def tell(kind: Kind, here: int) -> None:
        all_done, whole = done + here, each * len(kinds)
        left = (time.monotonic() - began) * (whole - all_done) / all_done if all_done else None
        shown = "" if left is None else f", {left_text(left)} left"
        print(f"\r{all_done:,} of {whole:,} ({kind.name}){shown}    ", end="", file=sys.stderr, flush=True)

    faults = 0
    for kind in kinds:
        before = files_in(root.parent)
        found = try_kind(kind, root, asked.first, asked.first + each, tell)
        for name in [name for name in files_in(root.parent) if name not in before and not name.startswith("faults/")]:
            found += 1
            print(f"\nFAULT {kind.name} wrote {root.parent / name}")
        done, faults = done + each, faults + found
        print(f"\r{kind.name}: {each:,} mutations, {found} faults          ", flush=True)
    print(f"{done:,} mutations, {faults} faults")
    if not (root.parent / "faults").exists():
        shutil.rmtree(root.parent)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
