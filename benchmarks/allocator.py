"""Times a UNet in fresh processes, by turns with the allocator as it is and told to keep freed memory (A B B A).

    python -m benchmarks.allocator -o reports/sd15/allocator.json

glibc reads what it is told when a process starts, so each turn is a process of its own: load, warm up, time.
"""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from asdm.cli.options import this_command
from asdm.measure import clocks, machine
from asdm.measure.machine import KEEP_MEMORY
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import example_inputs, execution, loading
from asdm.models.families import load_family
from asdm.records.measurement import Estimate, HostUse, Latency, Run
from asdm.utils import console
from asdm.utils.io import Frozen, check_writable, utc_now

TURNS = ("as it is", "kept", "kept", "as it is")


class Turn(Frozen):
    """What one fresh process measured."""

    environment: dict[str, str]
    latency_s: Latency
    host: HostUse
    peak_resident_bytes: int


class Allocator(Run):
    """`asdm.allocator/1`: one UNet with freed memory given back and kept, in processes that take turns."""

    SCHEMA: ClassVar[str] = "asdm.allocator/1"
    schema_: Literal["asdm.allocator/1"] = Field("asdm.allocator/1", alias="schema")
    batch: int
    turns: tuple[Turn, ...]
    latency_ratio: Estimate  # kept / as it is


def turn(family_name: str, batch: int, calls: int) -> Turn:
    """Load a family's UNet with random weights into this process and time it."""
    family = load_family(family_name)
    with machine.quiet_torch(None):
        unet = loading.load_unet(family, execution.RANDOM, "cpu", "fp32", 0)
        inputs = example_inputs.unet_inputs(family, batch)
        clock = clocks.HostClock()

        def call() -> float:
            return clocks.timed(lambda: unet(**inputs), clock)

        for _ in range(2):
            call()
        watch = machine.HostWatch()
        samples = [call() for _ in range(calls)]
        host = watch.read()
    return Turn(
        environment={name: os.environ[name] for name in KEEP_MEMORY if name in os.environ},
        latency_s=latency(samples),
        host=host,
        peak_resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # KiB on Linux
    )


def compared(family: str, batch: int, turns: list[Turn], command: str) -> Allocator:
    """The record of all turns; ratios are of the calls of one place in their turns."""

    def samples(kept: bool) -> list[float]:
        return [s for one in turns if bool(one.environment) is kept for s in one.latency_s.samples]

    return Allocator(
        created_utc=utc_now(),
        command=command,
        family=family,
        dtype="fp32",
        device="cpu",
        threads=torch.get_num_threads(),
        batch=batch,
        turns=tuple(turns),
        latency_ratio=paired_ratio(samples(True), samples(False)),
        environment=machine.environment("cpu", torch.get_num_threads()),
    )


def row(one: Turn) -> dict[str, Any]:
    """A line of the printed table."""
    return {
        "freed memory": "kept" if one.environment else "as it is",
        "s a call": f"{one.latency_s.median:.2f}",
        "kernel": f"{one.host.kernel_share or 0:.1%}",
        "page faults/s": f"{one.host.page_faults_per_s or 0:,.0f}",
        "peak GB": f"{one.peak_resident_bytes / 1e9:.2f}",
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(description="Times a UNet with freed memory given back and kept, by turns.")
    parser.add_argument("--family", default="sd15", help="a family or a diffusers folder")
    parser.add_argument("--batch", type=int, default=1, help="latents a call")
    parser.add_argument("--calls", type=int, default=8, help="timed calls in each process")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file to write")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.turn:
        print(turn(chosen.family, chosen.batch, chosen.calls).model_dump_json())
        return
    if chosen.output is None:
        parser.error("name the JSON file to write with -o.")
    check_writable(chosen.output, chosen.force)
    same = ["--family", chosen.family, "--batch", str(chosen.batch), "--calls", str(chosen.calls)]
    turns = []
    with console.progress("Comparing") as tell:
        for name in TURNS:
            tell(f"memory {name}", len(turns), None)
            printed = machine.in_a_fresh_process(__file__, ["--turn", *same], name == "kept")
            turns.append(Turn.model_validate_json(printed))
    found = compared(chosen.family, chosen.batch, turns, this_command("python -m benchmarks.allocator"))
    found.save(chosen.output, chosen.force)
    console.emit([row(one) for one in turns], console.Format.table)
    ratio = found.latency_ratio
    console.say(f"Kept / as it is: {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]. Wrote {chosen.output}")


if __name__ == "__main__":
    main()
