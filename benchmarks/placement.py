"""How much the place of compiled code moves a convolution: the same shapes in fresh processes.

    python -m benchmarks.placement -o reports/sd15/placement.json

oneDNN compiles a convolution when a shape is first called, and puts the code wherever there is room. Each process times
many shapes; what a shape takes beyond its median over all processes is chance. Each shape is timed again with other
tensors, and with other code (without bias) on the same tensors: chance lies in the code if a shape stays slow with the
first and not with the second. glibc is told to keep memory, whose cost is another matter (benchmarks/allocator.py).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer

from asdm.cli.options import Force
from asdm.measure import clocks, machine, repeats
from asdm.records.measurement import Run
from asdm.utils.io import check_writable
from asdm.utils.record import Frozen
from benchmarks.script import JsonFile, Threads, finish, in_fresh_processes, run, run_fields

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
        """Slow with other tensors too, and not with other code."""
        half = (self.first + 1) / 2
        return self.other_tensors > half > self.other_code


class Placement(Run, schema="asdm.placement/1"):
    """`asdm.placement/1`: 3×3 convolutions (1, channels, height, width) in fresh processes."""

    channels: int
    width: int
    heights: tuple[int, ...]
    processes: tuple[Turn, ...]
    middle_95: tuple[float, float]  # of all ratios to the median over processes
    slow: tuple[Slow, ...]


def time_shapes(threads: int | None, shapes: int) -> Turn:
    """Time every shape in this process, in three ways by turns: as it is, with other tensors, with other code."""
    with machine.quiet_torch(threads) as used:
        clock = clocks.HostClock()
        weight, bias = torch.randn(CHANNELS, CHANNELS, 3, 3), torch.randn(CHANNELS)
        medians: dict[str, list[float]] = {way: [] for way in WAYS}
        for height in range(LOWEST, LOWEST + shapes):
            x = torch.randn(1, CHANNELS, height, WIDTH)
            arguments = ((x, weight, bias), (x.clone(), weight.clone(), bias), (x, weight, None))
            calls = {
                way: partial(clocks.timed, partial(F.conv2d, *tensors, padding=1), clock)
                for way, tensors in zip(WAYS, arguments, strict=True)
            }
            for call in calls.values():
                call()
            samples = repeats.interleave(calls, WAYS, clock, max_rounds=ROUNDS)
            for way, seconds in samples.items():
                medians[way].append(float(np.median(seconds)))
        facts = machine.environment("cpu", used)
    return Turn(threads=used, environment=facts, **{way: tuple(seconds) for way, seconds in medians.items()})


def ratios(turns: list[Turn], way: str) -> np.ndarray:
    """Each shape's time to its median over processes, (processes, heights), without each process's own speed."""
    seconds = np.array([getattr(turn, way) for turn in turns])
    seconds /= np.median(seconds / np.median(seconds, axis=0), axis=1, keepdims=True)
    return seconds / np.median(seconds, axis=0)


def compare(turns: list[Turn]) -> Placement:
    """The record of all turns, with what was slow in one process and not in the others."""
    by_way = {way: ratios(turns, way) for way in WAYS}
    low, high = np.quantile(by_way["first"], [0.025, 0.975])
    heights = tuple(range(LOWEST, LOWEST + len(turns[0].first)))
    slow = tuple(
        Slow(process=int(i), height=heights[j], **{way: float(by_way[way][i, j]) for way in WAYS})
        for i, j in np.argwhere(by_way["first"] > SLOW)
    )
    return Placement(
        **run_fields("placement", "sd15", turns[-1].threads, environment=turns[-1].environment),
        channels=CHANNELS,
        width=WIDTH,
        heights=heights,
        processes=tuple(turns),
        middle_95=(float(low), float(high)),
        slow=slow,
    )


def row(slow: Slow) -> dict[str, str]:
    """A line of the printed table."""
    return {
        "process": str(slow.process + 1),
        "map": f"{CHANNELS}×{slow.height}×{WIDTH}",
        "ratio": f"{slow.first:.2f}",
        "other tensors": f"{slow.other_tensors:.2f}",
        "other code": f"{slow.other_code:.2f}",
    }


def main(
    output: JsonFile,
    threads: Threads = None,
    processes: Annotated[int, typer.Option(help="Fresh processes, 3 or more.")] = 30,
    shapes: Annotated[int, typer.Option(help="Shapes that each of them times, 3 or more.")] = 40,
    force: Force = False,
) -> None:
    """Time convolutions in fresh processes, to see what the place of compiled code does."""
    for name, count in (("processes", processes), ("shapes", shapes)):
        if count < 3:
            raise ValueError(f"{name} must be at least 3, got {count}.")
    check_writable(output, force)
    result = compare(in_fresh_processes(time_shapes, threads, shapes, keep_memory=[True] * processes))
    low, high = result.middle_95
    by_code = sum(slow.hangs_on_code for slow in result.slow)
    summary = (
        f"{len(result.slow)} of {processes * shapes} are a tenth slower than in other processes, {by_code} of them "
        f"with other tensors too but not with other code; 95 % are within {low:.3f} to {high:.3f}. "
    )
    finish(result, output, force, map(row, result.slow), summary)


if __name__ == "__main__":
    run(main)
