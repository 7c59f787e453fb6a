"""Times a UNet with the allocator as it is and told to keep freed memory, in fresh processes in the order A B B A.

    python -m benchmarks.allocator -o reports/sd15/trust/allocator.json

glibc reads its settings when a process starts, so each turn is a process of its own: load, warm up, time.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated, Any

import torch
import typer

from asdm.cli.options import Force
from asdm.measure import clocks, machine
from asdm.measure.machine import KEEP_MEMORY
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import example_inputs, execution, loading
from asdm.models.families import load_family
from asdm.records.measurement import Estimate, HostUse, Latency, Run
from asdm.utils.io import check_writable
from asdm.utils.record import Frozen
from benchmarks.script import FamilyName, JsonFile, finish, in_fresh_processes, resident_peak_bytes, run, run_fields

KEPT = (False, True, True, False)  # whether each process keeps freed memory


class Turn(Frozen):
    """What one fresh process measured."""

    environment: dict[str, str]
    latency_s: Latency
    host: HostUse
    peak_resident_bytes: int


class Allocator(Run, schema="asdm.allocator/1"):
    """`asdm.allocator/1`: one UNet with freed memory given back and kept, in processes that take turns."""

    batch: int
    turns: tuple[Turn, ...]
    latency_ratio: Estimate  # kept / as it is


def time_unet(name: str, batch: int, calls: int) -> Turn:
    """Load a family's UNet with random weights into this process and time it."""
    family = load_family(name)
    with machine.quiet_torch(None):
        unet = loading.load_unet(family, execution.RANDOM, "cpu", "fp32", 0)
        inputs = example_inputs.unet_inputs(family, batch)
        call = partial(clocks.timed, partial(unet, **inputs), clocks.HostClock())
        for _ in range(2):
            call()
        watch = machine.HostWatch()
        samples = [call() for _ in range(calls)]
        host = watch.read()
    return Turn(
        environment={variable: os.environ[variable] for variable in KEEP_MEMORY if variable in os.environ},
        latency_s=latency(samples),
        host=host,
        peak_resident_bytes=resident_peak_bytes(),
    )


def compare(family: str, batch: int, turns: list[Turn]) -> Allocator:
    """The record of all turns; a ratio pairs calls that had the same place in their turns."""

    def samples(kept: bool) -> list[float]:
        return [s for turn in turns if bool(turn.environment) is kept for s in turn.latency_s.samples]

    return Allocator(
        **run_fields("allocator", family, torch.get_num_threads()),
        batch=batch,
        turns=tuple(turns),
        latency_ratio=paired_ratio(samples(True), samples(False)),
    )


def row(turn: Turn) -> dict[str, Any]:
    """A line of the printed table."""
    return {
        "freed memory": "kept" if turn.environment else "as it is",
        "s a call": f"{turn.latency_s.median:.2f}",
        "kernel": f"{turn.host.kernel_share or 0:.1%}",
        "page faults/s": f"{turn.host.page_faults_per_s or 0:,.0f}",
        "peak GB": f"{turn.peak_resident_bytes / 1e9:.2f}",
    }


def main(
    output: JsonFile,
    family: FamilyName = "sd15",
    batch: Annotated[int, typer.Option(help="Latents per call.")] = 1,
    calls: Annotated[int, typer.Option(help="Timed calls in each process.")] = 8,
    force: Force = False,
) -> None:
    """Time a UNet with freed memory given back and kept, in fresh processes that take turns."""
    check_writable(output, force)
    result = compare(family, batch, in_fresh_processes(time_unet, family, batch, calls, keep_memory=KEPT))
    ratio = result.latency_ratio
    summary = f"Kept / as it is: {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]. "
    finish(result, output, force, map(row, result.turns), summary)


if __name__ == "__main__":
    run(main)
