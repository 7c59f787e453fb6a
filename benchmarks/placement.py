"""How much the place of compiled code moves a convolution: the same shapes in fresh processes.

    python -m benchmarks.placement -o reports/sd15/placement.json

oneDNN compiles a convolution when a shape is first called, to wherever there is room. Each process here times many
shapes; what a shape takes beyond its median over all processes is that process's luck. Each shape is timed once more
with other tensors, and with a code of its own (without bias) on the same tensors: the luck is that of the code where
it stays with the first and leaves with the second. glibc is told to keep memory, as what it gives back is a matter of
its own (benchmarks/allocator.py).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from asdm.cli.options import this_command
from asdm.measure import clocks, machine, repeats
from asdm.records.measurement import Run
from asdm.utils import console
from asdm.utils.io import Frozen, check_writable, utc_now

CHANNELS, WIDTH = 320, 32  # SD 1.5's shallowest ResNets, at half their width
LOWEST = 20  # rows of the smallest map; each next shape has one more
ROUNDS = 5
SLOW = 1.1  # times the median over processes
WAYS = ("first", "other_tensors", "other_code")


class Turn(Frozen):
    """Seconds of each shape in one process, in the order of the heights, by what was called."""

    threads: int
    first: tuple[float, ...]
    other_tensors: tuple[float, ...]
    other_code: tuple[float, ...]
    environment: dict[str, str]


class Slow(Frozen):
    """A convolution that took a tenth more than in other processes; ratios are to the median over processes."""

    process: int
    height: int
    first: float
    other_tensors: float
    other_code: float

    @property
    def hangs_on_code(self) -> bool:
        """Slow with other tensors too, and not with another code."""
        half = (self.first + 1) / 2
        return self.other_tensors > half > self.other_code


class Placement(Run):
    """`asdm.placement/1`: 3×3 convolutions (1, channels, height, width) in fresh processes."""

    SCHEMA: ClassVar[str] = "asdm.placement/1"
    schema_: Literal["asdm.placement/1"] = Field("asdm.placement/1", alias="schema")
    channels: int
    width: int
    heights: tuple[int, ...]
    processes: tuple[Turn, ...]
    middle_95: tuple[float, float]  # of all ratios to the median over processes
    slow: tuple[Slow, ...]


def turn(threads: int | None, shapes: int) -> Turn:
    """Time every shape in this process, in three ways by turns: as it is, with other tensors, with another code."""
    with machine.quiet_torch(threads) as used:
        clock = clocks.HostClock()
        weight, bias = torch.randn(CHANNELS, CHANNELS, 3, 3), torch.randn(CHANNELS)
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for height in range(LOWEST, LOWEST + shapes):
            x = torch.randn(1, CHANNELS, height, WIDTH)
            arguments = ((x, weight, bias), (x.clone(), weight.clone(), bias), (x, weight, None))
            calls = {
                way: (lambda given=given: clocks.timed(lambda: F.conv2d(*given, padding=1), clock))
                for way, given in zip(WAYS, arguments, strict=True)
            }
            for call in calls.values():
                call()
            samples = repeats.interleave(calls, WAYS, clock, max_rounds=ROUNDS)
            for way, seconds in samples.items():
                found[way].append(float(np.median(seconds)))
        facts = machine.environment("cpu", used)
    return Turn(threads=used, environment=facts, **{way: tuple(seconds) for way, seconds in found.items()})


def ratios(turns: list[Turn], way: str) -> np.ndarray:
    """What each shape takes to its median over processes, (processes, heights); a process's own speed is taken out."""
    seconds = np.array([getattr(one, way) for one in turns])
    seconds /= np.median(seconds / np.median(seconds, axis=0), axis=1, keepdims=True)
    return seconds / np.median(seconds, axis=0)


def gathered(turns: list[Turn], command: str) -> Placement:
    """The record of all turns, with what was slow in one process and not in the others."""
    found = {way: ratios(turns, way) for way in WAYS}
    low, high = np.quantile(found["first"], [0.025, 0.975])
    heights = tuple(range(LOWEST, LOWEST + len(turns[0].first)))
    slow = tuple(
        Slow(process=int(i), height=heights[j], **{way: float(found[way][i, j]) for way in WAYS})
        for i, j in np.argwhere(found["first"] > SLOW)
    )
    return Placement(
        created_utc=utc_now(),
        command=command,
        family="sd15",
        dtype="fp32",
        device="cpu",
        threads=turns[-1].threads,
        channels=CHANNELS,
        width=WIDTH,
        heights=heights,
        processes=tuple(turns),
        middle_95=(float(low), float(high)),
        slow=slow,
        environment=turns[-1].environment,
    )


def row(one: Slow) -> dict[str, str]:
    """A line of the printed table."""
    return {
        "process": str(one.process + 1),
        "map": f"{CHANNELS}×{one.height}×{WIDTH}",
        "ratio": f"{one.first:.2f}",
        "other tensors": f"{one.other_tensors:.2f}",
        "other code": f"{one.other_code:.2f}",
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(
        description="Times convolutions in fresh processes: what compiled code's place does."
    )
    parser.add_argument("-o", "--output", type=Path, help="the JSON file to write")
    parser.add_argument("--threads", type=int, help="CPU threads; default: what torch takes")
    parser.add_argument("--processes", type=int, default=30, help="fresh processes")
    parser.add_argument("--shapes", type=int, default=40, help="how many shapes each of them times")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.turn:
        print(turn(chosen.threads, chosen.shapes).model_dump_json())
        return
    if chosen.output is None:
        parser.error("name the JSON file to write with -o.")
    if chosen.processes < 3:
        parser.error(f"processes {chosen.processes} is too few for a median; choose 3 or more.")
    if chosen.shapes < 3:
        parser.error(f"shapes {chosen.shapes} is too few for a process's own speed; choose 3 or more.")
    check_writable(chosen.output, chosen.force)
    same = ["--shapes", str(chosen.shapes), *(["--threads", str(chosen.threads)] if chosen.threads else [])]
    turns: list[Turn] = []
    started = time.monotonic()
    with console.progress("Placing", "processes") as tell:
        for i in range(chosen.processes):
            left = (time.monotonic() - started) / i * (chosen.processes - i) if i else None
            tell("fresh processes", i, left)
            printed = machine.in_a_fresh_process(__file__, ["--turn", *same], keep_memory=True)
            turns.append(Turn.model_validate_json(printed))
    found = gathered(turns, this_command("python -m benchmarks.placement"))
    found.save(chosen.output, chosen.force)
    console.emit([row(one) for one in found.slow], console.Format.table)
    low, high = found.middle_95
    by_code = sum(one.hangs_on_code for one in found.slow)
    console.say(
        f"{len(found.slow)} of {len(turns) * chosen.shapes} are a tenth slower than in other processes, {by_code} of "
        f"them with other tensors too and not with another code; 95 % are within {low:.3f} to {high:.3f}. "
        f"Wrote {chosen.output}"
    )


if __name__ == "__main__":
    main()
