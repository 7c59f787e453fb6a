"""What reusing activations saves: `asdm-prof sensitivity` against two plain loops over the edits, in pairs.

    python -m benchmarks.sensitivity -o reports/mini/sensitivity.json

- `beside`: teacher and student run for every edit, as scripts that prune layer by layer do.
- `kept`: the teacher's outputs are computed once and kept; every student runs whole.
- `reuse`: what `asdm-prof sensitivity` does; a student starts where it begins to differ from the one before it.

All three measure one batch of prompts at every timestep, with students that are built beforehand and share the
teacher's tensors; their results are compared bit by bit.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import torch
import typer

from asdm.cli.options import Force
from asdm.measure import clocks, machine, repeats
from asdm.measure.statistics import latency, paired_ratio
from asdm.models import example_inputs, loading
from asdm.models.families import load_family
from asdm.models.sources import weights_of
from asdm.records.measurement import Estimate, Latency, UNetRun
from asdm.utils import console, io
from asdm_prof.sensitivity import variants
from asdm_prof.sensitivity.calibration import make_calibration
from asdm_prof.sensitivity.measure import squared
from asdm_prof.sensitivity.settings import SensitivitySettings
from benchmarks.script import FamilyName, JsonFile, Threads, finish, run, run_fields

LOOPS = ("reuse", "kept", "beside")
PATTERN = (*LOOPS, *reversed(LOOPS))


class SensitivityCost(UNetRun, schema="asdm.sensitivity-cost/1"):
    """`asdm.sensitivity-cost/1`: three loops over the same edits; a ratio is a loop's time / the time of `reuse`."""

    edits: int
    prompts: int
    timesteps: int
    identical: bool  # all loops gave the same errors, bit by bit
    forwards: dict[str, float]  # in forwards of the teacher, by MACs
    seconds: dict[str, Latency]
    ratio: dict[str, Estimate]


def run_loop(name: str, ordered: list[variants.Variant], inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The error of every student in one loop, in the students' order."""
    errors = []
    teacher: Any = None
    for variant, out in variants.outputs(ordered, inputs, reuse=name == "reuse"):
        if variant.index < 0:
            teacher = out
            continue
        if name == "beside":
            teacher = ordered[0].unet(**inputs)[0]
        errors.append(squared(out.float() - teacher.float()))
    return errors


def main(
    output: JsonFile,
    family: FamilyName = "mini",
    prompts: Annotated[int, typer.Option(help="Pictures with captions in the batch.")] = 8,
    timesteps: Annotated[int, typer.Option(help="Noise levels per picture.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds, 2 or more; each loop runs twice in one.")] = 2,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Time three loops over the edits in turns, and compare their results."""
    io.check_writable(output, force)
    settings = SensitivitySettings(prompts=prompts, timesteps=timesteps, threads=threads)
    known = load_family(family)
    weights, device = weights_of(known, settings), settings.device
    teacher = loading.load_unet(known, weights, device, settings.dtype, settings.seed)
    sets = variants.measurable_edits(teacher)
    ordered = variants.make_variants(teacher, sets)
    inputs = make_calibration(known, teacher, settings).inputs(slice(0, prompts))
    clock = clocks.clock_for(device)
    errors: dict[str, list[torch.Tensor]] = {}

    def timed(name: str) -> float:
        began = clock.mark()
        errors[name] = run_loop(name, ordered, inputs)
        return clock.seconds(began, clock.mark())

    with machine.quiet_torch(threads) as used, console.progress("Timing") as tell:
        loops = {name: partial(timed, name) for name in LOOPS}
        progress = partial(tell, "loops")
        seconds = repeats.interleave(loops, PATTERN, clocks.HostClock(), rounds, budget_s=math.inf, progress=progress)
    macs = variants.step_macs(known, settings.size, ordered)
    reuse = variants.work_of(ordered, macs, reuse=True)
    plain = reuse["plain_forwards"]
    result = SensitivityCost(
        **run_fields("sensitivity", known.name, used, device, settings.dtype),
        weights=loading.weights_name(known, weights),
        backend="eager",
        seed=settings.seed,
        batch=prompts * timesteps,
        size=example_inputs.latent_size(known, settings.size) * known.vae_factor,
        edits=len(sets),
        prompts=prompts,
        timesteps=timesteps,
        identical=all(all(map(torch.equal, errors["reuse"], errors[name])) for name in LOOPS[1:]),
        forwards={"reuse": reuse["done_forwards"], "kept": plain, "beside": plain - 1 + len(sets)},
        seconds={name: latency(taken) for name, taken in seconds.items()},
        ratio={name: paired_ratio(seconds[name], seconds["reuse"]) for name in LOOPS[1:]},
    )
    summary = f"The errors are {'the same to the bit' if result.identical else 'NOT the same'}. "
    finish(result, output, force, (row(result, name) for name in LOOPS), summary)


def row(result: SensitivityCost, name: str) -> dict[str, str]:
    """A line of the printed table."""
    ratio = result.ratio.get(name)
    return {
        "loop": name,
        "teacher's forwards": f"{result.forwards[name]:.1f}",
        "seconds": f"{result.seconds[name].median:.1f}",
        "× of reuse": f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "",
    }


if __name__ == "__main__":
    run(main)
